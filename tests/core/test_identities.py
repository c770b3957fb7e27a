"""What tells an fd from a later one of the same number."""

import os
import socket

import pytest

from flowno.core.event_loop.fd_table import Identity, identity_of, is_same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((2, 1, 80), (2, 1, 80), True),
        ((2, 1, 80), (2, 1, 81), False),
        ((2, 1, None), (2, 1, 80), True),
        ((None, 1, None), (2, 1, 80), True),
        ((None, 1, None), (2, 2, 80), False),
        ((0, 1, 80), (2, 1, 80), False),
        (None, (2, 1, 80), False),
        (None, (None, None, None), False),
        (None, None, True),
    ],
)
def test_what_could_not_be_told_decides_nothing(one: Identity, other: Identity, same: bool) -> None:
    assert is_same(one, other) is same
    assert is_same(other, one) is same


def test_a_socket_stays_the_same_when_it_is_bound_and_connects() -> None:
    with socket.socket() as listener, socket.socket() as client:
        seen = [identity_of(client.fileno())]
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.bind(("127.0.0.1", 0))
        seen.append(identity_of(client.fileno()))
        client.connect(listener.getsockname())
        seen.append(identity_of(client.fileno()))
        assert None not in seen
        assert all(is_same(one, other) for one in seen for other in seen)
        assert not is_same(seen[-1], identity_of(listener.fileno()))


def test_what_is_closed_has_none() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert identity_of(reading) is None
    finally:
        os.close(writing)
