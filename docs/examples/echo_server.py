"""An echo server for any number of clients: ``python echo_server.py [port]``, ended by Ctrl-C."""

import errno
import sys

from flowno import current_event_loop, run, sleep, socket, spawn

# No descriptor or no memory is free for another connection. It waits in the backlog, and some client will leave.
OUT_OF_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


async def serve_client(client_sock, address):
    with client_sock:
        try:
            while data := await client_sock.recv(65536):
                await client_sock.sendAll(data)
        except ConnectionError as error:  # reset by the peer: this client is gone, the others are not
            print(f"{address}: {error}", file=sys.stderr)


async def main(port):
    with socket() as server_sock:
        server_sock.bind(("localhost", port))
        server_sock.listen()
        print(f"Listening on port {server_sock.getsockname()[1]}: {current_event_loop()}", flush=True)
        while True:
            try:
                client_sock, address = await server_sock.accept()
            except OSError as error:
                if error.errno not in OUT_OF_ROOM:
                    raise
                await sleep(0.1)
            else:
                await spawn(serve_client(client_sock, address))


if __name__ == "__main__":
    try:
        run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8888))
    except KeyboardInterrupt:
        print("Stopped")
    except (OSError, ValueError, OverflowError) as error:  # OverflowError: no port has such a number
        sys.exit(f"{type(error).__name__}: {error}")
