"""Sends the lines of its standard input through TLS, and prints what comes back for each.

``python tls_echo_client.py [--host HOST] [--port PORT] [--ca FILE]``
"""

import argparse
import ssl
import sys

from flowno import open_connection, run


async def main(options, lines):
    # The settings verify the server: its certificate has to be for this name, by an authority that is trusted.
    tls = ssl.create_default_context(cafile=options.ca)
    stream = await open_connection(options.host, options.port, tls=tls, server_hostname=options.server_name)
    async with stream:  # leaving it says goodbye in TLS, so that the server knows that this was all
        name, version, _ = stream.get_extra_info("cipher")
        print(f"Connected: {version}, {name}", flush=True)
        for line in lines:
            await stream.write(line.encode())
            answer = await stream.readline()
            if not answer:
                raise ConnectionError("the server has closed the connection")
            print(answer.decode(), end="", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sends lines through TLS, and prints what comes back.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8443)
    parser.add_argument("--server-name", help="the name in the server's certificate, where it is not the host's")
    parser.add_argument("--ca", metavar="FILE", help="PEM certificates to trust, instead of the system's")
    options = parser.parse_args()
    try:
        # Read before the loop begins: reading from a terminal or a file would hold up its tasks.
        run(main(options, sys.stdin.readlines()))
    except OSError as error:  # ssl.SSLError is one
        sys.exit(f"{options.host}:{options.port}: {type(error).__name__}: {error}")
