"""Runs one server, and says on request what it has cost so far.

The first line of the output is ``{"port": ...}``. Each line of the input is answered by what the process has used until
then, ``{"cpu": seconds, "system": seconds of these in the kernel, "time": seconds}``; at the end of the input the
process ends. A thread does this, so that it is the same for every framework; it waits in a system call meanwhile, and
costs nothing.
"""

import argparse
import importlib
import json
import os
import socket
import ssl
import sys
import threading
import time

#: How many connections may wait to be accepted.
BACKLOG = 1024


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.servers", description=__doc__)
    parser.add_argument("module")
    parser.add_argument("function")
    parser.add_argument("--loop", default="", help="the event loop, or the selector, of the framework")
    parser.add_argument("--certificate", help="a PEM file with the key and the certificate of a server")
    parser.add_argument("--core", type=int, help="the processor to run on")
    arguments = parser.parse_args()
    if arguments.core is not None:
        os.sched_setaffinity(0, {arguments.core})
    module = importlib.import_module(f"tests.benchmarks.servers.{arguments.module}")
    context = None
    if arguments.certificate:
        context = getattr(module, "SSLContext", ssl.SSLContext)(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.certificate)
    with socket.create_server(("127.0.0.1", 0), backlog=BACKLOG) as listener:
        # Some frameworks do it by themselves. The connections inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        _say({"port": listener.getsockname()[1]})
        threading.Thread(target=_answer, daemon=True).start()
        module.serve(listener, getattr(module, arguments.function), context, arguments.loop)


def _answer() -> None:
    for _ in sys.stdin:
        _say({"cpu": time.process_time(), "system": os.times().system, "time": time.perf_counter()})
    os._exit(0)  # whatever the framework is doing, and would do at its end


def _say(words: dict[str, float]) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    main()
