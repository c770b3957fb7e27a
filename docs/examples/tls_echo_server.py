"""Sends back what it gets, through TLS: ``python tls_echo_server.py --certificate FILE [--key FILE]``, ended by Ctrl-C.

    openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost -addext subjectAltName=DNS:localhost \\
        -keyout key.pem -out certificate.pem
    python tls_echo_server.py --certificate certificate.pem --key key.pem
    openssl s_client -connect localhost:8443 -CAfile certificate.pem
"""

import argparse
import logging
import ssl
import sys

from flowno import run, serve_tcp


logger = logging.getLogger("tls_echo_server")


async def echo(stream):
    """Serve one client. The handshake is over by now, and was made in this client's task: it held up nobody else."""
    host, port, *_ = stream.get_extra_info("peername")
    name, version, _ = stream.get_extra_info("cipher")
    client = stream.get_extra_info("peercert")
    who = dict(pair for names in client["subject"] for pair in names).get("commonName") if client else "anonymous"
    logger.info("%s port %s: %s, %s, %s", host, port, version, name, who)
    try:
        while data := await stream.read(65536):
            await stream.write(data)
    except (ConnectionError, ssl.SSLError) as error:
        # Among them TruncatedStreamError: the client has gone without a goodbye, so something may be missing.
        logger.info("%s port %s: %s", host, port, error)


async def main(options):
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(options.certificate, options.key)
    if options.client_ca:
        tls.load_verify_locations(options.client_ca)
        tls.verify_mode = ssl.CERT_REQUIRED
    async with await serve_tcp(echo, options.host, options.port, tls=tls, handshake_timeout=10) as server:
        print(f"Listening on {options.host}:{server.addresses[0][1]}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Sends back what it gets, through TLS.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8443, help="0 takes a free one")
    parser.add_argument("--certificate", required=True, help="a PEM file")
    parser.add_argument("--key", help="a PEM file, where the key is not in that of the certificate")
    parser.add_argument("--client-ca", help="a PEM file: only clients with a certificate by this authority are served")
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # the server logs handshakes that fail
    try:
        run(main(parser.parse_args()))
    except KeyboardInterrupt:
        print("Stopped")
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
