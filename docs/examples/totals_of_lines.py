"""A client sends numbers to a server, which answers with their total; each message is a line."""

from flowno import SocketHandle, Stream, run, socketpair, spawn


async def serve(connection: SocketHandle) -> None:
    async with Stream(connection) as stream:
        async for request in stream:
            numbers = [int(word) for word in request.split()]
            await stream.write(b"%d\n" % sum(numbers))


async def ask(stream: Stream, numbers: list[int]) -> int:
    await stream.write(" ".join(map(str, numbers)).encode() + b"\n")
    return int(await stream.readline())


async def main() -> None:
    client, server = socketpair()
    await spawn(serve(server))
    async with Stream(client) as stream:
        for numbers in ([1, 2, 3], [10, 20], [100, 200, 300], [41, 1], [1000, 2000]):
            print(*numbers, sep=" + ", end=" = ", flush=True)
            print(await ask(stream, numbers))


run(main())
