"""An echo server of one process for each core: ``python process_per_core.py [--processes N]``, ended by Ctrl-C.

The processes share nothing but the port. Each has a loop, a listening socket and connections of its own, and the system
deals the connections out to them (SO_REUSEPORT). A line comes back with the number of the process that has answered it.

This program starts itself once more for each of them, and serves nobody. One that ends is replaced. The pipe that a
process has as its standard input tells it when to stop: that ends when this program wants it to, or is killed.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys

import flowno
from flowno import CountdownLatch, TaskGroup, move_on_after, open_process, open_signal_receiver, serve_tcp, sleep

GRACE_SECONDS = 5  # for the connections of a process, when it stops
RESTART_SECONDS = 1  # before another process is started: whatever has ended one may end the next


async def echo(stream):
    async for line in stream:
        await stream.write(b"%d: %b" % (os.getpid(), line))


async def serve(host, port):
    """What each process does."""
    async with await serve_tcp(echo, host, port, reuse_port=True) as server:
        print("ready", flush=True)
        await end_of_input()
        await server.aclose(grace=GRACE_SECONDS)


async def end_of_input():
    """Wait for the end of the standard input, where nothing is ever written."""
    os.set_blocking(sys.stdin.fileno(), False)
    while True:
        await flowno.wait_readable(sys.stdin)
        try:
            os.read(sys.stdin.fileno(), 1)
            return
        except BlockingIOError:
            pass  # it was said to be readable and is not, which systems may do, select(2)


async def keep_running(host, port, ready):
    """Have a process that serves, and another one when it has ended."""
    command = [sys.executable, __file__, "--serve", "--host", host, "--port", str(port)]
    while True:
        # In a process group of its own it does not get the Ctrl-C that is meant for this program.
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        async with await open_process(command, **pipes, process_group=0) as process:
            try:
                if await process.stdout.readline():
                    ready.count_down()
                status = await process.wait()
            finally:
                with move_on_after(2 * GRACE_SECONDS, shield=True):  # after that it is killed
                    await process.stdin.aclose()
                    await process.wait()
        print(f"Process {process.pid} has ended ({status})", file=sys.stderr, flush=True)
        await sleep(RESTART_SECONDS)


async def announce(host, port, ready):
    await ready.wait()
    print(f"Listening on {host}:{port}", flush=True)


async def main(options):
    if not hasattr(socket, "SO_REUSEPORT"):
        raise OSError(f"{sys.platform} has no SO_REUSEPORT")
    found = await flowno.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)
    family, kind, protocol, _, address = found[0]
    with flowno.socket(family, kind, protocol) as place:
        # A socket that is bound and does not listen keeps the port, which is the same for all, and gets no connections.
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        place.bind(address)
        host, port = place.getsockname()[:2]
        ready = CountdownLatch(options.processes)
        async with TaskGroup() as group:
            for _ in range(options.processes):
                await group.spawn(keep_running(host, port, ready))
            await group.spawn(announce(host, port, ready))
            with open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                await anext(signals)
            group.cancel_scope.cancel()
    print("Stopped")


def cores():
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An echo server of one process for each core.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888, help="0 takes a free one")
    parser.add_argument("--processes", type=int, default=cores(), help="how many; one for each core by default")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)  # be one of the processes
    options = parser.parse_args()
    if options.processes < 1:
        parser.error("--processes must be at least 1")
    try:
        flowno.run(serve(options.host, options.port) if options.serve else main(options))
    except KeyboardInterrupt:
        print("Stopped at once")
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
