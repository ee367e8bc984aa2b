"""Addresses of tracking stores, read by SQLAlchemy's own parser: an address is no path, and cutting it would make one of its `%20` and `?`."""

import dataclasses
from pathlib import Path
from urllib.parse import quote, urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

SQLITE = "sqlite"
MEMORY = ("", ":memory:")


@dataclasses.dataclass(frozen=True)
class Address:
    """What MLflow is given as tracking URI, and the sqlite file it names; None for every other store."""

    uri: str
    sqlite_path: Path | None = None

    @property
    def artifact_root(self) -> str | None:
        """URI of the folder beside a sqlite file that holds the artifacts; a server decides for itself."""
        return None if self.sqlite_path is None else (self.sqlite_path.parent / "mlruns").as_uri()


def parse_address(uri: str) -> Address:
    """The address with the path of a sqlite file made absolute, so that child processes elsewhere mean the same file."""
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError):  # `databricks`, a folder: MLflow says what it makes of them
        return Address(uri)
    name = url.database or ""
    if url.get_backend_name() != SQLITE or name in MEMORY or url.query.get("mode") == "memory":
        return Address(uri)
    if name.startswith("file:"):  # sqlite's own form, for `?uri=true`
        return Address(uri, Path(urlsplit(name).path).absolute())
    path = Path(name).absolute()
    return Address(_render(url, path), path)


def sqlite_address(path: Path) -> Address:
    """The address of a sqlite file."""
    return Address(_render(URL.create(SQLITE), path.absolute()), path.absolute())


def _render(url: URL, path: Path) -> str:
    """The address of a file, read back as that file.

    MLflow also cuts the address itself and makes the folder above the file: the text is the path as it stands or, where the parser would
    read that otherwise, encoded whole, so that no folder is seen in it.
    """
    head, mark, query = url.set(database="").render_as_string(hide_password=False).partition("?")
    plain, encoded = (f"{head}{text}{mark}{query}" for text in (str(path), quote(str(path), safe="")))
    return plain if make_url(plain).database == str(path) else encoded
