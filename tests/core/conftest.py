"""Certificates for the tests of TLS; making them takes longer than most tests, so there is one set for all."""

import ssl

import pytest
import trustme

from tests.support.tls import client_context_of, server_context_of


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    return server_context_of(authority)


@pytest.fixture(scope="session")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    return client_context_of(authority)


@pytest.fixture(params=[64 << 20, pytest.param(1 << 30, marks=pytest.mark.long)], ids=["64MiB", "1GiB"])
def transfer_size(request: pytest.FixtureRequest) -> int:
    """Bytes."""
    size: int = request.param
    return size
