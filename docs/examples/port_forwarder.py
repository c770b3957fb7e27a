"""Carries connections on to another server: ``python port_forwarder.py --port PORT --to-port PORT``, ended by Ctrl-C.

Whatever one side sends is written to the other one. write() returns when the system has taken the data, so a side that
reads slowly slows down the one that sends, and no more than one piece a direction is ever held here.
"""

import argparse
import sys

from flowno import open_connection, run, serve_tcp, spawn


async def carry(source, sink):
    """Carry one direction to its end."""
    try:
        while data := await source.read(65536):
            await sink.write(data)
        # The end of this direction, which the other one may outlive: a client that has sent all of its question, and
        # says so, still waits for the answer.
        await sink.write_eof()
    except OSError:
        # Broken on one side is broken on both. Closing them also ends the wait of the other direction.
        source.close()
        sink.close()
        raise


async def main(options):
    async def forward(client):
        try:
            server = await open_connection(options.to_host, options.to_port)
        except OSError as error:
            print(f"cannot forward: {error}", file=sys.stderr, flush=True)
            return  # the client's connection is closed
        async with server:
            upwards = await spawn(carry(client, server))
            try:
                await carry(server, client)
                await upwards.join()
            except OSError:
                pass  # both are closed by now
            finally:
                await end(upwards)

    async with await serve_tcp(forward, options.host, options.port) as server:
        print(f"Listening on {options.host}:{server.addresses[0][1]}", flush=True)
        await server.serve_forever()


async def end(task):
    try:
        await task.cancel()
    except OSError:
        pass  # the same error, seen from the other side


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Carries connections on to another server.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--to-host", default="localhost")
    parser.add_argument("--to-port", type=int, required=True)
    try:
        run(main(parser.parse_args()))
    except KeyboardInterrupt:
        print("Stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
