"""``http_client.py``, against the server of the standard library."""

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.examples.conftest import Certificates
from tests.examples.programs import run

pytestmark = pytest.mark.usefixtures("backend")

BODY = b"".join(b"line %d\n" % number for number in range(10_000))


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the path that it is asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/length":
            self.answer(("Content-Length", str(len(BODY))))
            self.wfile.write(BODY)
        elif self.path == "/chunked":
            self.answer(("Transfer-Encoding", "chunked"))
            for start in range(0, len(BODY), 1000):
                piece = BODY[start : start + 1000]
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
        elif self.path == "/until-the-end?really=yes":
            self.answer()
            self.wfile.write(BODY)
        elif self.path == "/cut-off":
            self.answer(("Content-Length", str(len(BODY) + 1)))
            self.wfile.write(BODY)
        elif self.path == "/silent":
            self.rfile.read(1)  # until the client has gone
        elif self.path == "/nonsense":
            self.wfile.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
        elif self.path != "/nothing":
            self.send_error(404)

    def do_HEAD(self) -> None:
        self.answer(("Content-Length", str(len(BODY))))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(("Content-Length", str(len(body))))
        self.wfile.write(body[::-1])

    def answer(self, *headers: tuple[str, str]) -> None:
        self.send_response(200)
        for name, value in (("Content-Type", "text/plain"), *headers):
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that does not trust the certificate


@contextmanager
def serving(certificate: str | None = None) -> Iterator[str]:
    """The standard library's server; yields its URL."""
    with Server(("127.0.0.1", 0), Handler) as server:
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_a_body_is_read_however_its_end_is_told() -> None:
    with serving() as url:
        for path in ("/length", "/chunked", "/until-the-end?really=yes"):
            result = run("http_client", "--body", url + path)
            assert (result.returncode, result.stderr) == (0, "")
            first, _, body = result.stdout.partition("\n")
            assert first == f"{url}{path}: 200 OK, {len(BODY)} bytes, text/plain"
            assert body.encode() == BODY


def test_https_verifies_the_server(certificates: Certificates) -> None:
    with serving(certificates.server) as url:
        result = run("http_client", "--ca", certificates.authority, f"{url}/chunked", f"{url}/length")
        assert (result.returncode, result.stderr) == (0, "")
        assert sorted(result.stdout.splitlines()) == [
            f"{url}/chunked: 200 OK, {len(BODY)} bytes, text/plain",
            f"{url}/length: 200 OK, {len(BODY)} bytes, text/plain",
        ]
        untrusted = run("http_client", f"{url}/length")
        assert untrusted.returncode == 1
        assert "SSLCertVerificationError" in untrusted.stderr


@pytest.mark.parametrize("which", ["other_name", "expired"])
def test_https_refuses_a_certificate_that_is_not_good(certificates: Certificates, which: str) -> None:
    with serving(getattr(certificates, which)) as url:
        result = run("http_client", "--ca", certificates.authority, f"{url}/length")
        assert (result.returncode, result.stdout) == (1, "")
        assert "SSLCertVerificationError" in result.stderr
        assert {"other_name": "IP address mismatch", "expired": "expired"}[which] in result.stderr


def test_head_and_post() -> None:
    with serving() as url:
        head = run("http_client", "--body", "--head", f"{url}/length")
        assert head.stdout == f"{url}/length: 200 OK, 0 bytes, text/plain\n"
        post = run("http_client", "--body", "--data", "drawer", f"{url}/")
        assert post.stdout == f"{url}/: 200 OK, 6 bytes, text/plain\nreward"


def test_all_urls_are_fetched_at_once_and_the_failure_of_one_is_its_own(certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = f"http://127.0.0.1:{taken.getsockname()[1]}/"
    with serving() as url, serving(certificates.server) as secure:
        wrong = {
            f"{url}/missing": "404 Not Found",
            f"{url}/cut-off": "RemoteProtocolError: peer closed connection without sending complete message body",
            f"{url}/silent": "TimeoutError: the block took longer than 1 s",
            f"{url}/nothing": "RemoteProtocolError|ConnectionError",
            f"{url}/nonsense": "RemoteProtocolError",
            refused: "ConnectionRefusedError",
            "http://name.invalid/": "gaierror",
            "ftp://127.0.0.1/": "ValueError: a URL begins with http",
            url.replace("http", "https"): "SSLError",  # TLS to a plain port
            secure.replace("https", "http"): "RemoteProtocolError|ConnectionResetError|ConnectionError",
        }
        result = run("http_client", "--seconds", "1", f"{url}/length", *wrong)
        assert result.returncode == 1
        lines = (result.stdout + result.stderr).splitlines()
        assert f"{url}/length: 200 OK, {len(BODY)} bytes, text/plain" in lines
        assert len(lines) == 1 + len(wrong), result.stderr
        for asked, text in wrong.items():
            (line,) = [line for line in lines if line.startswith(f"{asked}: ")]
            assert any(each in line for each in text.split("|")), line


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
def test_a_host_may_be_a_number_of_ipv6() -> None:
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                request = connection.recv(65536)
                assert f"Host: [::1]:{listener.getsockname()[1]}".encode() in request
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            result = run("http_client", f"http://[::1]:{listener.getsockname()[1]}/")
        finally:
            thread.join()
        assert (result.returncode, result.stderr) == (0, "")
