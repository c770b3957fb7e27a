"""A program with a bug: the client gets half of the greeting."""

from flowno import connect, current_event_loop, run, sleep, socket, spawn


async def greet(server_sock):
    client_sock, _ = await server_sock.accept()
    with client_sock:
        await client_sock.sendAll(b"Hello, ")
        await sleep(0.1)  # looks up the name of the client
        await client_sock.sendAll(b"world!")


async def main():
    with socket() as server_sock, socket() as sock:
        server_sock.bind(("localhost", 0))
        server_sock.listen()
        server = await spawn(greet(server_sock))
        await connect(sock, server_sock.getsockname())
        print(current_event_loop(), await sock.recv(1024))
        await server.join()


run(main())
