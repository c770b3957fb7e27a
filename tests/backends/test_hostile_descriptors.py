"""What a backend makes of descriptors that are no good where the protocol leaves it the choice.

That one bad one harms no other is in the conformance kit, which test_conformance.py runs on each backend.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

import pytest

from tests.backends.conftest import MakePair, Pair, ready_fds

resource = pytest.importorskip("resource", reason="on Windows only sockets are waited for, and closed as such")
BOTH = EVENT_READ | EVENT_WRITE


class TestClosedBeforeItWasUnregistered:
    @pytest.mark.stdlib_differs("select of the standard library raises EBADF for all")
    @pytest.mark.only("epoll", "kqueue")
    def test_the_kernel_forgets_it_and_the_others_are_served(self, selector: Any, make_pair: MakePair) -> None:
        assert "sees_closed" not in selector.capabilities
        bad, _ = make_pair()
        good, peer = make_pair()
        selector.register(bad.fileno(), BOTH)
        selector.register(good, EVENT_READ)
        bad.close()
        assert selector.select(0) == []
        peer.send(b"x")
        assert ready_fds(selector.select(0)) == {good.fileno(): EVENT_READ}


class TestRegularFile:
    @pytest.mark.only("epoll")
    def test_epoll_refuses_it_and_leaves_no_trace(self, selector: Any) -> None:
        with tempfile.TemporaryFile() as file:
            with pytest.raises(PermissionError) as raised:
                selector.register(file, EVENT_READ)
            assert raised.value.errno == errno.EPERM
            assert not selector.get_map()
            with pytest.raises(KeyError):
                selector.unregister(file)
        assert selector.select(0) == []


@pytest.fixture
def large_fd(pair: Pair) -> Iterator[int]:
    """A descriptor of the first pair beyond FD_SETSIZE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip(f"RLIMIT_NOFILE allows {hard} descriptors, and 2048 are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    fd = 2000
    os.dup2(pair[0].fileno(), fd, inheritable=False)
    yield fd
    os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class TestLargeNumber:
    @pytest.mark.only("select")
    @pytest.mark.stdlib_differs("the standard library takes it, and every wait raises ValueError from then on")
    def test_select_refuses_it_with_the_limit_and_the_way_out(self, selector: Any, pair: Pair, large_fd: int) -> None:
        with pytest.raises(ValueError, match=r"2000.*FD_SETSIZE.*1024.*use epoll, kqueue or poll"):
            selector.register(large_fd, EVENT_WRITE)
        assert not selector.get_map()
        selector.register(pair[1], EVENT_WRITE)
        assert ready_fds(selector.select(0)) == {pair[1].fileno(): EVENT_WRITE}
        assert "any_fd" not in selector.capabilities
