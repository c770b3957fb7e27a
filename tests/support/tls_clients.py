"""Many TLS clients in a process of their own: ``python -m tests.support.tls_clients PORT NUMBER AUTHORITY``.

All of them connect to the port of localhost at once, each sends its number as a line, and wants it back.
"""

import ssl
import sys

from flowno import TaskGroup, open_connection, run


async def ask(port: int, number: int, context: ssl.SSLContext) -> None:
    async with await open_connection("127.0.0.1", port, tls=context, server_hostname="localhost") as stream:
        await stream.write(b"%d\n" % number)
        answer = await stream.readline()
        if answer != b"%d\n" % number:
            raise ValueError(f"client {number} got {answer!r}")


async def main(port: str, number: str, authority: str) -> None:
    context = ssl.create_default_context(cafile=authority)
    async with TaskGroup() as group:
        for each in range(int(number)):
            await group.spawn(ask(int(port), each, context))


if __name__ == "__main__":
    run(main(*sys.argv[1:]))
