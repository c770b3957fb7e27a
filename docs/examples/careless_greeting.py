"""A program with mistakes: it prints what it should, and debug mode says what is wrong with it."""

import time

from flowno import connect, run, sleep, socket, spawn


def number_of(client):
    time.sleep(0.5)  # asks a database
    return 42


async def greet(server_sock):
    client_sock, client = await server_sock.accept()
    number = number_of(client)
    await client_sock.sendAll(b"Hello, number %d!" % number)
    sleep(0.1)  # time for the client to read
    return number


async def main():
    with socket() as server_sock, socket() as sock:
        server_sock.bind(("localhost", 0))
        server_sock.listen()
        await spawn(greet(server_sock), name="greeter")
        await connect(sock, server_sock.getsockname())
        print(await sock.recv(1024))


run(main())
