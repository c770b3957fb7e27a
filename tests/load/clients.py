"""The other end, in a process of its own: ``python -m tests.load.clients KIND ARGUMENTS``.

``hold PORT NUMBER`` opens so many connections to the port of 127.0.0.1, and says ``connected``. For each line that it
is given it sends a message on every one of them, wants all of them back, and says ``answered``. At the end of its input
it closes them.

``talk tcp|tls|unix ADDRESS NUMBER [AUTHORITY]`` opens so many connections, and sends and receives on all of them for as
long as it lives.
"""

import socket
import ssl
import sys
from contextlib import ExitStack
from functools import partial

from flowno import Stream, TaskGroup, open_connection, open_unix_connection, run

#: Bytes that are sent at a time: more than a TLS record, less than the buffers of a socket.
BLOCK = 20_000


def hold(port: str, number: str) -> None:
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", int(port)))) for _ in range(int(number))
        ]
        print("connected", flush=True)
        for _ in sys.stdin:
            for each, connection in enumerate(connections):
                connection.sendall(each.to_bytes(4))
            for each, connection in enumerate(connections):
                answer = connection.recv(4, socket.MSG_WAITALL)
                if answer != each.to_bytes(4):
                    raise ValueError(f"connection {each} got {answer!r}")
            print("answered", flush=True)


async def talk(kind: str, address: str, number: str, authority: str | None = None) -> None:
    if kind == "unix":
        connect = partial(open_unix_connection, address)
    elif kind == "tls":
        context = ssl.create_default_context(cafile=authority)
        connect = partial(open_connection, "127.0.0.1", int(address), tls=context, server_hostname="localhost")
    else:
        connect = partial(open_connection, "127.0.0.1", int(address))
    async with TaskGroup() as group:
        for _ in range(int(number)):
            stream = await connect()
            await group.spawn(send(stream))
            await group.spawn(receive(stream))


async def send(stream: Stream) -> None:
    while True:
        await stream.write(bytes(BLOCK))


async def receive(stream: Stream) -> None:
    async for _ in stream.chunks():
        pass


if __name__ == "__main__":
    what, *arguments = sys.argv[1:]
    if what == "hold":
        hold(*arguments)
    else:
        run(talk(*arguments))
