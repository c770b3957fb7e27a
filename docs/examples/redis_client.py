"""Sends commands to Redis, all at once: ``printf 'SET a 1\\nINCR a\\nGET a\\n' | python redis_client.py``.

The protocol is hiredis', which packs commands and takes replies apart. This program adds the connection, which any
number of tasks can share: nobody waits for another one's reply before sending ("pipelining"), and as Redis answers in
order, each reply belongs to whoever has waited longest.
"""

import argparse
import shlex
import sys
from collections import deque

import hiredis

from flowno import Event, Lock, open_connection, open_unix_connection, run, spawn


class Reply:
    """The reply to one command, which comes later."""

    def __init__(self):
        self.arrived = Event()
        self.value = None

    def arrive(self, value):
        self.value = value
        self.arrived.set()


class Redis:
    """A connection to Redis. Leaving it as an asynchronous context manager closes it.

    >>> async with Redis(await open_connection("localhost", 6379)) as redis:
    ...     await redis.call("SET", "greeting", "Hello")
    ...     print(await redis.pipeline([("APPEND", "greeting", ", world!"), ("GET", "greeting")]))
    [13, b'Hello, world!']
    """

    def __init__(self, stream):
        self.stream = stream
        self.writing = Lock()  # commands must not be mixed up
        self.waiting = deque()  # the replies that are still to come
        self.error = None  # why there will be no more

    async def __aenter__(self):
        self.reader = await spawn(self.read_replies())
        return self

    async def __aexit__(self, *error):
        self.close(ConnectionError("the connection to Redis was closed"))
        await self.reader.join()

    async def call(self, *command):
        """The reply to one command. Raises hiredis.ReplyError where that is an error."""
        (reply,) = await self.pipeline([command])
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def pipeline(self, commands):
        """The replies to several commands, which are sent at once. Errors of single commands are among the replies."""
        packed = b"".join(hiredis.pack_command(tuple(command)) for command in commands)
        async with self.writing:
            if self.error:
                raise ConnectionError(str(self.error))
            replies = [Reply() for _ in commands]
            self.waiting += replies
            try:
                await self.stream.write(packed)
            except BaseException as error:
                # Half a command may be on its way, also where the task was cancelled: nothing can follow it.
                self.close(ConnectionError(f"sending to Redis broke off: {error or type(error).__name__}"))
                raise
        for reply in replies:
            # Whoever is cancelled here goes without its reply, which still has its place among the others.
            await reply.arrived.wait()
            if isinstance(reply.value, ConnectionError):
                raise ConnectionError(str(reply.value))
        return [reply.value for reply in replies]

    async def read_replies(self):
        nothing = object()
        reader = hiredis.Reader(notEnoughData=nothing)
        try:
            while data := await self.stream.read(65536):
                reader.feed(data)
                while (value := reader.gets()) is not nothing:
                    self.waiting.popleft().arrive(value)
            error = ConnectionError("Redis has closed the connection")
        except (OSError, hiredis.ProtocolError, IndexError) as reason:  # IndexError: a reply that nobody asked for
            error = ConnectionError(f"the connection to Redis broke off: {reason}")
        self.close(error)

    def close(self, error):
        """Close the connection, and tell everybody who waits for a reply."""
        self.error = self.error or error
        self.stream.close()
        while self.waiting:
            self.waiting.popleft().arrive(self.error)


def text_of(reply):
    if isinstance(reply, list):
        return "\n".join(map(text_of, reply)) if reply else "(empty)"
    if isinstance(reply, bytes):
        return reply.decode(errors="replace")
    return f"(error) {reply}" if isinstance(reply, Exception) else "(nil)" if reply is None else str(reply)


async def main(options, commands):
    if options.unix:
        stream = await open_unix_connection(options.unix)
    else:
        stream = await open_connection(options.host, options.port)
    async with Redis(stream) as redis:
        for reply in await redis.pipeline(commands):
            print(text_of(reply))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sends commands to Redis: a line of standard input each.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=6379)
    parser.add_argument("--unix", metavar="PATH", help="connect to this Unix socket instead")
    options = parser.parse_args()
    try:
        # Read before the loop begins: reading from a terminal or a file would hold up its tasks.
        run(main(options, [words for line in sys.stdin if (words := shlex.split(line))]))
    except OSError as error:
        sys.exit(f"{type(error).__name__}: {error}")
