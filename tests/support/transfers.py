"""Much data over one connection: what is sent, what must arrive, and the memory that it may take."""

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

from flowno import SocketHandle

__all__ = ["little_memory", "receive_all", "send_blocks"]

_BLOCK = bytes(range(256)) * 4096


async def send_blocks(handle: SocketHandle, size: int) -> None:
    """Send so many bytes, block by block."""
    for _ in range(size // len(_BLOCK)):
        await handle.sendAll(_BLOCK)


async def receive_all(handle: SocketHandle) -> int:
    """Take what ``send_blocks`` sends, byte for byte, until the stream ends; how many bytes there were."""
    buffer = bytearray(65536)
    expected = memoryview(_BLOCK * 2)
    received = 0
    while size := await handle.recv_into(buffer):
        start = received % len(_BLOCK)
        assert buffer[:size] == expected[start : start + size]
        received += size
    return received


@contextmanager
def little_memory() -> Iterator[None]:
    """A block in which Python never holds more than 8 MiB beyond what it held before."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
