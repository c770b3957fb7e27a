"""Fetches URLs, all of them at once: ``python http_client.py [--body] URL [URL...]``.

The protocol is h11's, which never touches a socket: what to send is asked of it, and what was received is given to it.
"""

import argparse
import ssl
import sys
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from flowno import open_connection, run, spawn, timeout

BODY_LIMIT = 64 << 20  # bytes; a server can send without end


@dataclass
class Response:
    status: int
    reason: str
    headers: dict[str, str]
    body: bytes


async def fetch(url, *, method="GET", body=b"", tls=True, seconds=30.0):
    """The answer to one request, made by a connection of its own.

    ``tls`` are the TLS settings for https, True the usual ones; ``seconds`` are how long the server may be silent.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("a URL begins with http:// or https:// and the name of a host")
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    async with timeout(seconds):
        stream = await open_connection(parts.hostname, port, tls=tls if secure else None)
    try:
        protocol = h11.Connection(h11.CLIENT)
        request = h11.Request(
            method=method,
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            headers=[
                ("Host", parts.netloc.rpartition("@")[2]),
                ("Connection", "close"),
                *([("Content-Length", str(len(body)))] if body else []),
            ],
        )
        events = [request, h11.Data(data=body), h11.EndOfMessage()] if body else [request, h11.EndOfMessage()]
        async with timeout(seconds):
            await stream.write(b"".join(protocol.send(event) for event in events))
        return await receive(protocol, stream, seconds)
    finally:
        stream.close()  # the answer is complete, or useless: there is no reason to wait for the server's goodbye


async def receive(protocol, stream, seconds):
    body = bytearray()
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            # b"" is the end. h11 raises an error where that is in the middle of something.
            async with timeout(seconds):
                data = await stream.read(65536)
            protocol.receive_data(data)
        elif isinstance(event, h11.Response):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > BODY_LIMIT:
                raise ValueError(f"the body is longer than {BODY_LIMIT} bytes")
        elif isinstance(event, h11.EndOfMessage):
            headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
            return Response(head.status_code, head.reason.decode("latin-1"), headers, bytes(body))
        elif isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("the server closed the connection without an answer")


async def show(url, options, tls):
    """Fetch a URL and print what came; whether that worked."""
    try:
        response = await fetch(
            url,
            method="HEAD" if options.head else "POST" if options.data is not None else "GET",
            body=(options.data or "").encode(),
            tls=tls,
            seconds=options.seconds,
        )
    except (OSError, ValueError, h11.ProtocolError) as error:
        print(f"{url}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    kind = response.headers.get("content-type", "of no type")
    print(f"{url}: {response.status} {response.reason}, {len(response.body)} bytes, {kind}", flush=True)
    if options.body:
        sys.stdout.buffer.write(response.body)
        sys.stdout.flush()
    return response.status < 400


async def main(options):
    tls = ssl.create_default_context(cafile=options.ca) if options.ca else True
    tasks = [await spawn(show(url, options, tls)) for url in options.urls]
    return all([await task.join() for task in tasks])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetches URLs, all of them at once.")
    parser.add_argument("urls", nargs="+", metavar="URL")
    parser.add_argument("--body", action="store_true", help="print also what came")
    parser.add_argument("--head", action="store_true", help="ask for everything but the body")
    parser.add_argument("--data", metavar="TEXT", help="post this")
    parser.add_argument("--ca", metavar="FILE", help="PEM certificates to trust, instead of the system's")
    parser.add_argument("--seconds", type=float, default=30, help="how long a server may be silent")
    sys.exit(0 if run(main(parser.parse_args())) else 1)
