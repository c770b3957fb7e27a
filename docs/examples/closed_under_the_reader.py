"""In asyncio, a task waits for a message on a socket that another one closes."""

import asyncio
import socket

import flowno


async def read(sock):
    try:
        async with asyncio.timeout(2):
            print("received", await asyncio.get_running_loop().sock_recv(sock, 1024))
    except (TimeoutError, OSError) as error:
        print(repr(error))


async def main():
    one, other = socket.socketpair()
    one.setblocking(False)
    reader = asyncio.create_task(read(one))
    await asyncio.sleep(0)  # it begins to wait
    one.close()  # which nobody has told the reader
    await reader
    other.close()


with asyncio.Runner(loop_factory=flowno.asyncio_loop_factory) as runner:
    runner.run(main())
