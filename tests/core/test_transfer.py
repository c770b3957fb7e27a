"""Much data over a plain connection."""

import pytest

import flowno
from flowno import spawn
from tests.support.transfers import little_memory, receive_all, send_blocks

pytestmark = pytest.mark.usefixtures("backend")


def test_a_long_transfer_arrives_intact_and_takes_no_more_memory_than_a_short_one(transfer_size: int) -> None:
    async def main() -> int:
        with flowno.socket() as listener:
            listener.bind(("localhost", 0))
            listener.listen()
            one = flowno.socket()
            await flowno.connect(one, listener.getsockname())
            other, _ = await listener.accept()

        async def send() -> None:
            with one:
                await send_blocks(one, transfer_size)

        with other:
            sender = await spawn(send())
            received = await receive_all(other)
            await sender.join()
            return received

    with little_memory():
        assert flowno.run(main()) == transfer_size
