"""What several tests of the core are run with."""

import ssl
from functools import partial

import pytest

from tests.support.tls import TLSEnds, tls_pair


@pytest.fixture
def tls_ends(server_context: ssl.SSLContext, client_context: ssl.SSLContext) -> TLSEnds:
    """``tls_pair`` with the certificates of all tests."""
    return partial(tls_pair, server_context, client_context)


@pytest.fixture(params=[64 << 20, pytest.param(1 << 30, marks=pytest.mark.long)], ids=["64MiB", "1GiB"])
def transfer_size(request: pytest.FixtureRequest) -> int:
    """Bytes."""
    size: int = request.param
    return size
