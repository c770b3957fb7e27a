"""Opens many connections at once: ``python many_sockets.py [how many]``."""

import sys

from flowno import connect, current_event_loop, run, socket, spawn


async def hold(server_sock, held):
    while True:
        sock, _ = await server_sock.accept()
        held.append(sock)


async def main(wanted):
    held = []
    with socket() as server_sock:
        server_sock.bind(("localhost", 0))
        server_sock.listen()
        server = await spawn(hold(server_sock, held))
        try:
            for _ in range(wanted):
                held.append(socket())
                await connect(held[-1], server_sock.getsockname())
            print(f"{current_event_loop()} holds {wanted} connections")
        finally:
            await server.cancel()
            for sock in held:
                sock.close()


try:
    run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 600))
except (OSError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
