"""Echo servers whose connections are held open, or asked while others are busy: see ``memory`` and ``latency``.

    python -m tests.benchmarks.echoes SERVER

listens on a free port of 127.0.0.1, prints the port, and serves until it is killed. Each server is what the
documentation of its framework shows for this level, takes a socket that listens, and imports its framework itself, so
that it is alone in its process.
"""

import argparse
import socket
from collections.abc import Callable

__all__ = ["SERVERS", "framework_of", "listening"]

BUFFER = 65_536


def flowno_handles(listener: socket.socket) -> None:
    from flowno import SocketHandle, run, spawn

    async def serve(handle: SocketHandle) -> None:
        while True:
            accepted, _ = await handle.accept()
            await spawn(echo(accepted))

    async def echo(handle: SocketHandle) -> None:
        with handle:
            while data := await handle.recv(BUFFER):
                await handle.sendAll(data)

    run(serve(SocketHandle(listener)))


def flowno_streams(listener: socket.socket) -> None:
    from flowno import SocketHandle, Stream, run, serve_sockets

    async def serve() -> None:
        async with await serve_sockets(echo, [SocketHandle(listener)]) as server:
            await server.serve_forever()

    async def echo(stream: Stream) -> None:
        while data := await stream.read(BUFFER):
            await stream.write(data)

    run(serve())


def asyncio_streams(listener: socket.socket) -> None:
    import asyncio

    asyncio.run(_serve_asyncio_streams(listener))


def uvloop_streams(listener: socket.socket) -> None:
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_asyncio_streams(listener))


async def _serve_asyncio_streams(listener: socket.socket) -> None:
    import asyncio

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(BUFFER):
            writer.write(data)
            await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(echo, sock=listener) as server:
        await server.serve_forever()


def trio_streams(listener: socket.socket) -> None:
    import trio

    async def echo(stream: trio.SocketStream) -> None:
        while data := await stream.receive_some(BUFFER):
            await stream.send_all(data)

    trio.run(trio.serve_listeners, echo, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])


def curio_sockets(listener: socket.socket) -> None:
    import curio
    import curio.io
    import curio.network

    async def echo(client: curio.io.Socket, address: object) -> None:
        while data := await client.recv(BUFFER):
            await client.sendall(data)

    curio.run(curio.network.run_server, curio.io.Socket(listener), echo)


def gevent_sockets(listener: socket.socket) -> None:
    import gevent.server
    import gevent.socket

    def echo(client: gevent.socket.socket, address: object) -> None:
        while data := client.recv(BUFFER):
            client.sendall(data)

    own = gevent.socket.socket(listener.family, listener.type, fileno=listener.detach())
    gevent.server.StreamServer(own, echo).serve_forever()


#: By the name of the framework and its level.
SERVERS: dict[str, Callable[[socket.socket], None]] = {
    "flowno-handles": flowno_handles,
    "flowno-streams": flowno_streams,
    "asyncio-streams": asyncio_streams,
    "uvloop-streams": uvloop_streams,
    "trio-streams": trio_streams,
    "curio-sockets": curio_sockets,
    "gevent-sockets": gevent_sockets,
}


def framework_of(server: str) -> str:
    """The module that a server needs."""
    return server.partition("-")[0]


def listening() -> socket.socket:
    """A socket that listens on a free port of 127.0.0.1, with room for everybody who connects at the same time."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    listener.setblocking(False)
    return listener


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.echoes", description=__doc__)
    parser.add_argument("server", choices=SERVERS)
    server = parser.parse_args().server
    listener = listening()
    print(listener.getsockname()[1], flush=True)
    SERVERS[server](listener)


if __name__ == "__main__":
    main()
