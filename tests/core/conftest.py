"""What several tests of the core are run with."""

import pytest


@pytest.fixture(params=[64 << 20, pytest.param(1 << 30, marks=pytest.mark.long)], ids=["64MiB", "1GiB"])
def transfer_size(request: pytest.FixtureRequest) -> int:
    """Bytes."""
    size: int = request.param
    return size
