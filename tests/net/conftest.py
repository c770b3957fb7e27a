"""Certificates of servers that are reached by their address, too."""

import ssl
from typing import TYPE_CHECKING

import pytest

from tests.support.tls import server_context_of

if TYPE_CHECKING:
    import trustme


@pytest.fixture(scope="session")
def server_context(authority: "trustme.CA") -> ssl.SSLContext:
    """Of a server that is ``localhost`` and ``127.0.0.1``, not to be changed."""
    return server_context_of(authority, "localhost", "127.0.0.1")
