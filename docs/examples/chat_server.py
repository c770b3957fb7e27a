"""A chat room for telnet, nc and the like: ``python chat_server.py [--host HOST] [--port PORT]``, ended by Ctrl-C.

What somebody says goes to everybody. A client that does not read must not hold up the others, nor may what it has not
read fill the memory. So what is said is not sent, but put into a queue for each client, which never waits; a task for
each client sends what is in its queue; and a queue that is full says that its client is too slow to stay.
"""

import argparse
import sys

from flowno import AsyncQueue, QueueFullError, run, serve_tcp, sleep, spawn

QUEUE_LIMIT = 1000  # lines that a client may be behind, apart from what its connection holds
LINE_LIMIT = 1000  # bytes


class Member:
    """Somebody in the room."""

    def __init__(self, name, stream):
        self.name = name
        self.stream = stream
        self.lines = AsyncQueue(maxsize=QUEUE_LIMIT)

    def tell(self, line):
        """Put a line into the queue; close the connection where that is full."""
        if self.lines.closed:
            return
        try:
            self.lines.put_nowait(line)
        except QueueFullError:
            print(f"{self.name} is too slow", flush=True)
            self.lines.close()
            self.stream.close()  # ends the task that sends, and the one that receives

    async def send_lines(self):
        try:
            async for line in self.lines:
                lines = [line]
                while len(self.lines):  # one write for all that is there
                    lines.append(self.lines.get_nowait())
                await self.stream.write("".join(f"{line}\n" for line in lines).encode())
        except OSError:
            pass  # gone, or closed by tell(); whoever reads from this client finds out, too


class Room:
    def __init__(self):
        self.members = {}

    def tell(self, line, *, but=None):
        """Tell everybody. This waits for nobody, so all hear everything in the same order."""
        for member in self.members.values():
            if member is not but:
                member.tell(line)

    async def serve(self, stream):
        """Serve one connection. The server closes it when this returns."""
        try:
            await stream.write(b"What is your name?\n")
            name = text_of(await stream.readline())
            if name in self.members:
                await stream.write(b"Somebody has that name already.\n")
            elif name:
                await self.serve_member(Member(name, stream))
        except (OSError, ValueError) as error:
            # Gone; or closed because it was too slow; or a line was longer than the limit, which is a ValueError.
            print(f"a connection has ended: {error}", flush=True)

    async def serve_member(self, member):
        others = ", ".join(self.members) or "nobody"
        member.tell(f"* {others} is here")
        self.members[member.name] = member
        self.tell(f"* {member.name} has come", but=member)
        print(f"{member.name} has come", flush=True)
        sender = await spawn(member.send_lines())
        try:
            async for line in member.stream:
                self.tell(f"{member.name}: {text_of(line)}", but=member)
                await sleep(0)  # one line at a time, however many have come: the tasks that send have their turn
        finally:
            del self.members[member.name]
            self.tell(f"* {member.name} has left")
            print(f"{member.name} has left", flush=True)
            await sender.cancel()


def text_of(line):
    """A line as text, without what could play tricks on the terminals of the others."""
    return "".join(filter(str.isprintable, line.decode(errors="replace").strip()))


async def main(options):
    room = Room()
    async with await serve_tcp(room.serve, options.host, options.port, limit=LINE_LIMIT) as server:
        print(f"Listening on {options.host}:{server.addresses[0][1]}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat room.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    try:
        run(main(parser.parse_args()))
    except KeyboardInterrupt:
        print("Stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
