"""``tls_echo_server.py`` and ``tls_echo_client.py``, against openssl and against each other."""

import re
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.examples.conftest import Certificates
from tests.examples.programs import PATIENCE, Program, command, environment, require, run, started
from tests.support.loopback import reset

pytestmark = pytest.mark.usefixtures("backend")


@contextmanager
def openssl(*args: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [require("openssl"), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def s_client(server: Program, certificates: Certificates, *args: str, lines: str) -> tuple[int, str]:
    """The lines that come back, read while openssl still may send: at the end of its input it breaks off."""
    trust = [
        "-CAfile",
        certificates.authority,
        "-verify_return_error",
        "-verify_hostname",
        "localhost",
        "-servername",
        "localhost",
    ]
    with openssl(
        "s_client", "-connect", f"{server.host}:{server.port}", "-quiet", "-no_ign_eof", *trust, *args
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(lines)
        client.stdin.flush()
        output = "".join(client.stdout.readline() for _ in lines.splitlines())
        client.stdin.close()
        output += client.stdout.read()
        return client.wait(PATIENCE), output


LINES = "".join(f"line {number}\n" for number in range(500))


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_client_gets_back_what_it_sends(certificates: Certificates, version: str) -> None:
    with started("tls_echo_server", "--certificate", certificates.server) as server:
        code, output = s_client(server, certificates, version, lines=LINES)
        assert output == LINES
        assert (code, server.stop()) == (0, "Stopped\n")
        name = version.replace("-tls", "TLSv").replace("_", ".")
        assert re.fullmatch(rf"127\.0\.0\.1 port \d+: {name}, \S+, anonymous\n", server.errors())


def test_the_pair_talks_to_each_other(certificates: Certificates) -> None:
    with started("tls_echo_server", "--certificate", certificates.server) as server:
        for lines in ("one\ntwo\nthree\n", "", "x" * 20_000 + "\n"):
            result = run(
                "tls_echo_client", "--host", server.host, "--port", str(server.port),
                "--ca", certificates.authority, "--server-name", "localhost", lines=lines,
            )  # fmt: skip
            assert (result.returncode, result.stderr) == (0, "")
            assert re.fullmatch(rf"Connected: TLSv1\.3, \S+\n{lines}", result.stdout)
        assert server.stop() == "Stopped\n"
        assert len(server.errors().splitlines()) == 3  # who has come; nobody went without a goodbye


def test_a_client_may_have_to_show_a_certificate(certificates: Certificates) -> None:
    with started(
        "tls_echo_server", "--certificate", certificates.server, "--client-ca", certificates.authority
    ) as server:
        context = ssl.create_default_context(cafile=certificates.authority)
        context.load_cert_chain(certificates.client)
        assert echo(server, context) == b"hello"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            echo(server, ssl.create_default_context(cafile=certificates.authority))
        assert server.logs("the TLS handshake with 127.0.0.1")
        assert ", a client\n" in server.errors()
        assert server.stop() == "Stopped\n"


def echo(server: Program, context: ssl.SSLContext) -> bytes:
    with (
        socket.create_connection(server.address, PATIENCE) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"hello")
        return tls.recv(100)


def test_one_bad_client_is_a_line_in_the_log_and_disturbs_nobody(certificates: Certificates) -> None:
    with started("tls_echo_server", "--certificate", certificates.server) as server:
        context = ssl.create_default_context(cafile=certificates.authority)
        with socket.create_connection(server.address, PATIENCE):  # one that never begins its handshake
            with socket.create_connection(server.address, PATIENCE) as plain:
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
                assert b"HTTP" not in b"".join(iter(lambda: plain.recv(100), b""))
            with socket.create_connection(server.address, PATIENCE) as sock:
                tls = context.wrap_socket(sock, server_hostname="localhost")
                tls.sendall(b"hello")
                assert tls.recv(100) == b"hello"
                # Gone without a goodbye, so that the server gets a reset.
                reset(tls)
            assert echo(server, context) == b"hello"
            assert server.logs("the TLS handshake with 127.0.0.1")
        assert server.stop() == "Stopped\n"
        assert "Traceback" not in server.errors()


@contextmanager
def s_server(certificate: str, *args: str) -> Iterator[int]:
    """An ``openssl s_server`` that sends lines back reversed; yields its port."""
    with openssl("s_server", "-accept", "127.0.0.1:0", "-cert", certificate, "-key", certificate, *args) as server:
        assert server.stdout is not None
        line = ""
        while not line.startswith("ACCEPT"):
            line = server.stdout.readline()
            assert line, "openssl s_server has ended"
        yield int(line.rpartition(":")[2])


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_s_server_gets_what_the_client_sends(certificates: Certificates, version: str) -> None:
    with s_server(certificates.server, "-rev", version) as port:
        result = run(
            "tls_echo_client", "--host", "127.0.0.1", "--port", str(port), "--ca", certificates.authority,
            lines="drawer\nstressed\n",
        )  # fmt: skip
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.splitlines()[1:] == ["reward", "desserts"]


@pytest.mark.parametrize(
    ("which", "message"), [("other_name", "IP address mismatch"), ("expired", "certificate has expired")]
)
def test_the_client_refuses_a_certificate_that_is_not_good(
    certificates: Certificates, which: str, message: str
) -> None:
    with s_server(getattr(certificates, which), "-rev") as port:
        result = run(
            "tls_echo_client", "--host", "127.0.0.1", "--port", str(port), "--ca", certificates.authority, lines="no\n"
        )
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith(f"127.0.0.1:{port}: SSLCertVerificationError: ")
        assert message in result.stderr


def test_the_client_says_what_is_wrong_with_a_server_that_speaks_no_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE)
        port = listener.getsockname()[1]
        with subprocess.Popen(
            command("tls_echo_client", "--host", "127.0.0.1", "--port", str(port)),
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        ) as client:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(b"220 mail.example.test ESMTP\r\n")
                output, errors = client.communicate(timeout=PATIENCE)
        assert (client.returncode, output) == (1, "")
        assert errors.startswith(f"127.0.0.1:{port}: SSLError: ")
