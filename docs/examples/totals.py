"""A client sends numbers to a server, which answers with their total."""

from flowno import SocketHandle, run, socketpair, spawn


async def serve(connection: SocketHandle) -> None:
    with connection:
        while request := await connection.recv(1024):
            numbers = [int(word) for word in request.split()]
            await connection.sendAll(b"%d\n" % sum(numbers))


async def ask(connection: SocketHandle, numbers: list[int]) -> int:
    await connection.sendAll(" ".join(map(str, numbers)).encode())
    return int(await connection.recv(1024))


async def main() -> None:
    client, server = socketpair()
    await spawn(serve(server))
    with client:
        for numbers in ([1, 2, 3], [10, 20], [100, 200, 300], [41, 1], [1000, 2000]):
            print(*numbers, sep=" + ", end=" = ", flush=True)
            print(await ask(client, numbers))


run(main())
