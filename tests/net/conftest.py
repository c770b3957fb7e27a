"""Certificates, one set for all tests of this folder."""

import ssl

import pytest
import trustme

from tests.support.tls import client_context_of, server_context_of


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_context(authority: trustme.CA) -> ssl.SSLContext:
    return server_context_of(authority, "localhost", "127.0.0.1")


@pytest.fixture(scope="session")
def client_context(authority: trustme.CA) -> ssl.SSLContext:
    return client_context_of(authority)
