"""An HTTP/1.1 server: ``python http_server.py [--host HOST] [--port PORT]``, ended by Ctrl-C.

The protocol is h11's, which never touches a socket: bytes go in and events come out, and the other way round. What is
left to the program is what such a library cannot know: where bytes come from, how many are too many, and how long is
too long.
"""

import argparse
import logging
import signal
import ssl
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from urllib.parse import parse_qs, urlsplit

import h11

from flowno import open_signal_receiver, run, serve_tcp, sleep, timeout

logger = logging.getLogger("http_server")

HEAD_LIMIT = 16 << 10  # bytes of a request before its body, about; more get a 431
BODY_LIMIT = 1 << 20  # bytes of a request's body; more get a 413
LINGER_SECONDS = 2.0  # how long a client has to read the last answer
GRACE_SECONDS = 5.0  # how long requests have to finish when the server stops

# ----------------------------------------------------------------------------------------------- what the server serves


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Response:
    body: bytes | AsyncIterator[bytes]  # an iterator is sent in chunks, as it gives them
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=lambda: [("Content-Type", "text/plain; charset=utf-8")])


class HTTPError(Exception):
    """Ends a request with an answer that says why."""

    def __init__(self, status, *headers):
        super().__init__(status)
        self.response = Response(f"{status} {HTTPStatus(status).phrase}\n".encode(), status)
        self.response.headers += headers


async def hello(request):
    return Response(b"Hello, world!\n")


async def echo(request):
    return Response(request.body, headers=[("Content-Type", request.headers.get("content-type", "text/plain"))])


async def count(request):
    async def lines():
        for number in range(1, 11):
            yield f"{number}\n".encode()
            await sleep(0.01)  # as if each took a moment to find out

    return Response(lines())


async def inverse(request):
    # This has bugs. They become a 500, and the server lives on.
    return Response(f"{1 / float(request.query['of'][0])}\n".encode())


ROUTES = {
    "/": {"GET": hello},
    "/echo": {"POST": echo},
    "/count": {"GET": count},
    "/inverse": {"GET": inverse},
}


def request_of(head):
    try:
        target = urlsplit(head.target.decode())
    except ValueError:
        raise HTTPError(400) from None
    headers = {name.decode(): value.decode("latin-1") for name, value in head.headers}
    return Request(head.method.decode(), target.path, parse_qs(target.query), headers)


def find_handler(method, path):
    if path not in ROUTES:
        raise HTTPError(404)
    methods = ROUTES[path]
    # HEAD is GET without the body, which is left out where it would be sent.
    handler = methods.get("GET" if method == "HEAD" else method)
    if handler is None:
        allowed = [*methods, "HEAD"] if "GET" in methods else [*methods]
        raise HTTPError(405, ("Allow", ", ".join(allowed)))
    return handler


async def answer(handler, request):
    try:
        return await handler(request)
    except HTTPError as error:
        return error.response
    except Exception:
        logger.exception("no answer to %s %s", request.method, request.path)
        return HTTPError(500).response


# ----------------------------------------------------------------------------------------------------- how it does that


class Site:
    """All connections of a server."""

    def __init__(self, idle_seconds, request_seconds):
        self.idle_seconds = idle_seconds
        self.request_seconds = request_seconds
        self.idle = set()  # the streams of connections that are between two requests
        self.stopping = False

    async def serve(self, stream):
        """Serve one connection. The server closes it when this returns, and logs what is raised."""
        try:
            await Connection(self, stream).serve()
        except (ConnectionError, TimeoutError, ssl.SSLError):
            pass  # the client is gone, or has stopped reading; there is nobody to tell

    def stop(self):
        """Let requests finish, and no other begin."""
        self.stopping = True
        for stream in self.idle:
            stream.close()


class Connection:
    """One connection, which serves one request after the other."""

    def __init__(self, site, stream):
        self.site = site
        self.stream = stream
        self.protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)

    async def serve(self):
        while await self.another_request():
            await self.serve_request()
            # A client may send several requests without waiting for answers ("pipelining"). Those that have come
            # already are kept by h11 until the next cycle, so they are answered one by one, in their order.
            if self.protocol.our_state is not h11.DONE or self.protocol.their_state is not h11.DONE:
                await self.say_goodbye()
                break
            self.protocol.start_next_cycle()

    async def another_request(self):
        """Wait for the first bytes of a request; False where none comes."""
        data, ended = self.protocol.trailing_data
        if data or ended or self.site.stopping:
            return bool(data)
        self.site.idle.add(self.stream)
        try:
            async with timeout(self.site.idle_seconds):
                data = await self.stream.read(HEAD_LIMIT)
        except OSError:
            return False  # too late, gone, or closed by Site.stop()
        finally:
            self.site.idle.discard(self.stream)
        self.protocol.receive_data(data)
        return bool(data)

    async def serve_request(self):
        # One limit for all of the request: a client that sends a byte now and then does not hold on to the connection.
        deadline = time.monotonic() + self.site.request_seconds
        method = ""
        try:
            head = await self.next_event(deadline)
            method = head.method.decode()
            request = request_of(head)
            handler = find_handler(method, request.path)
            request.body = await self.read_body(head, deadline)
        except HTTPError as error:
            response = error.response
        except h11.RemoteProtocolError as error:  # h11 knows the status that says what is wrong with the request
            response = HTTPError(error.error_status_hint).response
        except TimeoutError:
            response = HTTPError(408).response
        else:
            response = await answer(handler, request)
        await self.respond(method, response)

    async def read_body(self, head, deadline):
        for name, value in head.headers:
            if name == b"content-length" and int(value) > BODY_LIMIT:
                raise HTTPError(413)  # before the client has sent it
        body = bytearray()
        # h11 takes the chunks apart, or counts up to the content length.
        while isinstance(event := await self.next_event(deadline), h11.Data):
            body += event.data
            if len(body) > BODY_LIMIT:
                raise HTTPError(413)
        return bytes(body)

    async def next_event(self, deadline):
        while (event := self.protocol.next_event()) is h11.NEED_DATA:
            if self.protocol.they_are_waiting_for_100_continue:
                # "Expect: 100-continue": the client sends the body when it hears that somebody wants it.
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            async with timeout(deadline - time.monotonic()):
                data = await self.stream.read(HEAD_LIMIT)
            self.protocol.receive_data(data)  # b"" is the end; h11 knows whether it comes too early
        return event

    async def respond(self, method, response):
        headers = [*response.headers, ("Date", formatdate(usegmt=True))]
        whole = isinstance(response.body, bytes)
        if whole:
            headers.append(("Content-Length", str(len(response.body))))
        if self.site.stopping or not self.request_is_read():
            headers.append(("Connection", "close"))
        head = h11.Response(status_code=response.status, reason=HTTPStatus(response.status).phrase, headers=headers)
        if method == "HEAD":
            await self.send(head, h11.EndOfMessage())
        elif whole:
            await self.send(head, h11.Data(data=response.body), h11.EndOfMessage())
        else:
            await self.send(head)
            # Without a length h11 sends chunks. Where the iterator fails it is too late for another status: the error
            # ends the connection, and the missing last chunk tells the client that this was not all.
            async for data in response.body:
                await self.send(h11.Data(data=data))
            await self.send(h11.EndOfMessage())

    def request_is_read(self):
        """Whether all of the request has been read, or has come at least; then another one can follow."""
        try:
            while self.protocol.their_state is h11.SEND_BODY and isinstance(self.protocol.next_event(), h11.Data):
                pass
        except h11.RemoteProtocolError:
            pass
        return self.protocol.their_state is h11.DONE

    async def send(self, *events):
        # write() returns when the system has taken it all, so a slow client slows down its own connection only.
        data = b"".join(self.protocol.send(event) or b"" for event in events)
        async with timeout(self.site.request_seconds):
            await self.stream.write(data)

    async def say_goodbye(self):
        """See that the client can read the last answer.

        Where something is still unread, closing resets the connection, and an answer may be lost that is on its way.
        RFC 9112 section 9.6 says what to do: end the writing side, and read until the client has ended its own.
        """
        try:
            await self.stream.write_eof()
            async with timeout(LINGER_SECONDS):
                while await self.stream.read(65536):
                    pass
        except OSError:
            pass  # too late, or gone


async def main(options):
    tls = None
    if options.certificate:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.certificate, options.key)
        tls.set_alpn_protocols(["http/1.1"])
    site = Site(options.idle_seconds, options.request_seconds)
    async with await serve_tcp(site.serve, options.host, options.port, tls=tls) as server:
        with open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            print(f"Listening on {'https' if tls else 'http'}://{options.host}:{server.addresses[0][1]}", flush=True)
            await anext(signals)
        # From here on Ctrl-C has its usual meaning: whoever presses it again does not want to wait.
        server.close()
        site.stop()
        await server.aclose(grace=GRACE_SECONDS)
    print("Stopped")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An HTTP/1.1 server.")
    parser.add_argument("--host", default="localhost")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--certificate", help="a PEM file, for https")
    parser.add_argument("--key", help="a PEM file, where the key is not in that of the certificate")
    parser.add_argument("--idle-seconds", type=float, default=60, help="how long to wait for a request")
    parser.add_argument("--request-seconds", type=float, default=30, help="how long a client may take to send one")
    try:
        run(main(parser.parse_args()))
    except KeyboardInterrupt:
        print("Stopped at once")
    except (OSError, ValueError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
