"""An echo server and its client, in asyncio, on a backend of flowno."""

import asyncio

import flowno


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line)
        await writer.drain()
    writer.close()


async def main():
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"Hello, world!\n")
        print(await reader.readline())
        writer.close()
        await writer.wait_closed()


with asyncio.Runner(loop_factory=flowno.asyncio_loop_factory) as runner:
    runner.run(main())
