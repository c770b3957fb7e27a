"""asyncio's protocols: callbacks, and no coroutine; also on uvloop."""

import asyncio
import socket
import ssl
from typing import cast

from tests.benchmarks.servers.asyncio_loops import run


def serve(listener: socket.socket, protocol: type[asyncio.Protocol], context: ssl.SSLContext | None, loop: str) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(protocol, sock=listener, ssl=context, backlog=1024)
        await server.serve_forever()

    run(main(), loop)


class echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class lines(echo):
    rest = b""

    def data_received(self, data: bytes) -> None:
        *complete, self.rest = (self.rest + data).split(b"\n")
        for line in complete:
            self.transport.write(line + b"\n")


tls_echo = echo


class churn(echo):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


class sink(asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        pass
