"""Certificates for the examples that speak TLS."""

import datetime
from pathlib import Path

import pytest
import trustme


class Certificates:
    """Certificates in files: those of an authority, and what it has issued."""

    def __init__(self, folder: Path, authority: trustme.CA) -> None:
        self._authority = authority
        self._folder = folder
        self.authority = str(folder / "authority.pem")
        self._authority.cert_pem.write_to_path(self.authority)
        self.server = self._issue("server", "localhost", "127.0.0.1")
        self.client = self._issue("client", "client.test", common_name="a client")
        self.other_name = self._issue("other", "other.test")
        yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        self.expired = self._issue("expired", "localhost", "127.0.0.1", not_after=yesterday)

    def _issue(
        self, name: str, *hosts: str, common_name: str | None = None, not_after: datetime.datetime | None = None
    ) -> str:
        """The path of a file with a key and its certificates."""
        path = self._folder / f"{name}.pem"
        issued = self._authority.issue_cert(*hosts, common_name=common_name, not_after=not_after)
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"), authority)
