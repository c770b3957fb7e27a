"""Certificates for all tests, a pytest plugin: one authority, and TLS settings of both ends, made once a session."""

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.tls import client_context_of, server_context_of

if TYPE_CHECKING:
    import trustme

__all__ = ["authority", "authority_file", "client_context", "server_context"]


@pytest.fixture(scope="session")
def authority() -> "trustme.CA":
    import trustme  # takes longer than most tests, and most processes of tests load this for nothing

    return trustme.CA()


@pytest.fixture(scope="session")
def authority_file(authority: "trustme.CA", tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a client in another process trusts."""
    path = tmp_path_factory.mktemp("authority") / "authority.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="session")
def server_context(authority: "trustme.CA") -> ssl.SSLContext:
    """Of a server that is ``localhost``, not to be changed."""
    return server_context_of(authority)


@pytest.fixture(scope="session")
def client_context(authority: "trustme.CA") -> ssl.SSLContext:
    """Of a client that trusts the authority, not to be changed."""
    return client_context_of(authority)
