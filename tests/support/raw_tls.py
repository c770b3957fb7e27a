"""A client of TLS 1.3 that makes its records itself: what OpenSSL would never send, or not so often.

The handshake is OpenSSL's; the key is the one that it writes to its key log.
"""

import ssl
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from flowno import SocketHandle

__all__ = ["APPLICATION_DATA", "HANDSHAKE", "RawTLSClient"]

#: The types of a record, RFC 8446 section 5.1, and the message KeyUpdate(update_requested), section 4.6.3.
HANDSHAKE, APPLICATION_DATA = 22, 23
_KEY_UPDATE = b"\x18\x00\x00\x01\x01"


class RawTLSClient:
    """The sending side of a connection whose handshake is done.

    Args:
        handle: The plain connection.
        secret: The ``client_application_traffic_secret_0``.
    """

    def __init__(self, handle: SocketHandle, secret: bytes) -> None:
        self.handle = handle
        self._hash = {32: hashes.SHA256(), 48: hashes.SHA384()}[len(secret)]
        self._use(secret)

    @classmethod
    async def connected(cls, handle: SocketHandle, context: ssl.SSLContext, key_log: Path) -> "RawTLSClient":
        """Make the handshake of a client.

        Args:
            handle: A plain connection to a TLS server that is ``localhost``.
            context: The settings of the client, which nobody else uses meanwhile.
            key_log: A path that is free.
        """
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.keylog_filename = str(key_log)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await handle.sendAll(outgoing.read())
                incoming.write(await handle.recv(65536))
            else:
                await handle.sendAll(outgoing.read())
                break
        context.keylog_filename = None  # type: ignore[assignment]  # which closes the file
        lines = [line.split() for line in key_log.read_text().splitlines()]
        (secret,) = [line[2] for line in lines if line[0] == "CLIENT_TRAFFIC_SECRET_0"]
        return cls(handle, bytes.fromhex(secret))

    def record(self, kind: int, content: bytes) -> bytes:
        """A record of this type, encrypted: RFC 8446 section 5.2."""
        inner = content + bytes([kind])
        header = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2)
        nonce = int.from_bytes(self._iv) ^ self._sequence
        self._sequence += 1
        return header + self._cipher.encrypt(nonce.to_bytes(12), inner, header)

    def key_updates(self, number: int) -> Iterator[bytes]:
        """So many records, each of which is the end of a key, and demands that the server changes its own."""
        for _ in range(number):
            yield self.record(HANDSHAKE, _KEY_UPDATE)
            self._use(self._derived("traffic upd", self._hash.digest_size))

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._sequence = 0
        self._cipher = AESGCM(self._derived("key", 32 if self._hash.digest_size == 48 else 16))
        self._iv = self._derived("iv", 12)

    def _derived(self, label: str, size: int) -> bytes:
        """HKDF-Expand-Label without a context, RFC 8446 section 7.1."""
        name = b"tls13 " + label.encode()
        info = size.to_bytes(2) + bytes([len(name)]) + name + b"\0"
        return HKDFExpand(self._hash, size, info).derive(self._secret)
