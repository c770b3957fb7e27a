"""Much data over a plain connection."""

import tracemalloc

import pytest

import flowno
from flowno import spawn

pytestmark = pytest.mark.usefixtures("backend")


def test_a_long_transfer_arrives_intact_and_takes_no_more_memory_than_a_short_one(transfer_size: int) -> None:
    block = bytes(range(256)) * 4096

    async def main() -> int:
        with flowno.socket() as listener:
            listener.bind(("localhost", 0))
            listener.listen()
            one = flowno.socket()
            await flowno.connect(one, listener.getsockname())
            other, _ = await listener.accept()

        async def send() -> None:
            with one:
                for _ in range(transfer_size // len(block)):
                    await one.sendAll(block)

        with other:
            sender = await spawn(send())
            buffer = bytearray(65536)
            expected = memoryview(block * 2)
            received = 0
            while size := await other.recv_into(buffer):
                start = received % len(block)
                assert buffer[:size] == expected[start : start + size]
                received += size
            await sender.join()
            return received

    tracemalloc.start()
    try:
        assert flowno.run(main()) == transfer_size
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
