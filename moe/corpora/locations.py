"""Where a corpus lies: a folder or any address fsspec knows, and never a byte from outside it.

Every path of a manifest is relative to the corpus root and is checked here each time it is opened: absolute paths, `..`, links
that lead out, and things that are no regular files are refused. Only links into folders that the user trusts by name may lead out.
"""

import contextlib
import functools
import os
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec
from fsspec.registry import known_implementations

from moe.corpora.names import canonical
from moe.corpora.shard_cache import ShardCache

MAX_FILE_BYTES = 1 << 30  # an utterance's own file; shards are never read whole


SHARDS = (".tar", ".parquet")
NO_RIGHT = re.compile(r"credential|forbidden|access.?denied|unauthorized|accesskey|\b40[13]\b", re.IGNORECASE)
CREDENTIALS = (
    "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3://, GOOGLE_APPLICATION_CREDENTIALS for gs://, "
    "or what FSSPEC_… variables say"
)

PINNED = {"s3fs": "-r requirements-buckets.txt"}  # packages of addresses that come with pins of their own

_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


class OutsideRoot(ValueError):
    """A path that leads out of the corpus root."""


@dataclass(frozen=True)
class CorpusRoot:
    """A corpus root with the folders that links in it may lead into, and a place for shards that lie elsewhere.

    Attributes:
        path: folder or address.
        trusted: folders of this machine.
        cache: of shards at an address; None reads them where they lie, each time.
    """

    path: str
    trusted: tuple[str, ...] = ()
    cache: ShardCache | None = None

    def __str__(self) -> str:
        return self.path


Root = str | Path | CorpusRoot


def is_address(root: Root) -> bool:
    """Whether the root is an address for fsspec (`s3://…`, `memory://…`) and not a folder of this machine."""
    return "://" in str(root)


def address_fault(address: str) -> str | None:
    """Why nothing can be read at an address; None where something is there.

    The package of its scheme may be missing, nobody may have credentials for it, its host may not answer, or the folder may be empty.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
        return None if filesystem.ls(path, detail=False) else "nothing is there"
    except Exception as error:  # each scheme's library raises kinds of its own
        return _without_package(address) if isinstance(error, ImportError) else fault_of(error)


def _without_package(address: str) -> str:
    """Which package an address needs that is not installed."""
    scheme = address.partition("://")[0].rpartition("::")[2]
    known = known_implementations.get(scheme, {"class": ""})
    package = known["class"].partition(".")[0]
    if package in ("", "fsspec"):  # of what fsspec reads by itself it says what else that takes
        return f"{scheme}:// needs a package that is not installed ({known.get('err', 'fsspec does not say which')})"
    return f"{scheme}:// needs {package}: pip install {PINNED.get(package, package)}"


def fault_of(error: Exception) -> str:
    """What stands in the way of reading at an address, in one line with what to do about it."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if isinstance(error, FileNotFoundError):
        return "there is no such bucket, folder or file"
    if isinstance(error, PermissionError) or NO_RIGHT.search(said):
        return f"no credentials that may read it ({said}): {CREDENTIALS}"
    return f"does not answer ({said})"


@contextlib.contextmanager
def reading(address: str) -> Iterator[None]:
    """Says of what fails inside which address it was, and why.

    Raises:
        FileNotFoundError: nothing is there.
        OSError: anything else that stands in the way.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{address}: {fault_of(error)}") from error
    except Exception as error:  # each scheme's library raises kinds of its own
        raise OSError(f"{address}: {fault_of(error)}") from error


def locate(root: Root, relative: str) -> str:
    """The full path or address of a path relative to the root.

    Raises:
        OutsideRoot: the path is absolute, climbs out by `..`, holds a NUL, or is a link that leads out.
    """
    relative = str(relative)
    parts = relative.replace("\\", "/").split("/")
    trusted = tuple(map(_real, root.trusted)) if isinstance(root, CorpusRoot) else ()
    if trusted and os.path.isabs(relative) and any(_lies_in(os.path.realpath(relative), folder) for folder in trusted):
        return os.path.realpath(relative)
    if not relative or "\0" in relative or relative.startswith(("/", "\\", "~")) or ".." in parts or "://" in relative:
        raise OutsideRoot(f"{relative!r} is not a path inside the corpus root")
    if _DRIVE.match(relative):
        raise OutsideRoot(f"{relative!r} is a path of a Windows machine: write it relative to the corpus root")
    if is_address(root):
        return f"{str(root).rstrip('/')}/{relative}"
    base = _real(str(root))
    full = os.path.realpath(os.path.join(base, relative))
    if not any(_lies_in(full, folder) for folder in (base, *trusted)):
        folder = os.path.dirname(full)
        raise OutsideRoot(
            f"{relative!r} is a link that leads out of the corpus root, to {full}; trusted_root={folder} (or a folder above it) allows that"
        )
    return full


def inside(root: Root, path: str) -> str:
    """A path as the corpus writes it, relative to the root where it can be: absolute paths into the root, backslashes and `./` are rewritten.

    What leads elsewhere stays as it is and is refused when it is opened.
    """
    if "\\" in path and ".." not in path and not (is_address(root) or os.path.exists(os.path.join(str(root), path))):
        path = path.replace("\\", "/")
    if not path.startswith("/"):
        return posixpath.normpath(path) if path and "://" not in path and ".." not in path.split("/") else path
    if is_address(root):
        own = re.sub(r"^[a-z0-9+]+://", "/", str(root)).rstrip("/") + "/"
        return path.removeprefix(own)
    for base in (os.path.abspath(str(root)), _real(str(root))):
        if path.startswith(base.rstrip(os.sep) + os.sep):
            return os.path.relpath(path, base).replace(os.sep, "/")
    return path


def _lies_in(full: str, folder: str) -> bool:
    return full == folder or full.startswith(folder.rstrip(os.sep) + os.sep)


def open_file(root: Root, relative: str) -> BinaryIO:
    """A seekable binary file of the corpus.

    Raises:
        OutsideRoot: as `locate`.
        FileNotFoundError: there is no such regular file.
    """
    full = locate(root, relative)
    if is_address(root):
        with reading(full):
            return _kept(root, full) or fsspec.open(full, "rb").open()
    if not os.path.isfile(full):
        full = _other_form(root, relative) or full
    if not os.path.isfile(full):
        raise FileNotFoundError(f"{relative}: {_what_is_there(root, relative, full)}")
    return open(full, "rb")


def read_file(root: Root, relative: str) -> bytes:
    """All bytes of one file of the corpus.

    Raises:
        OutsideRoot, FileNotFoundError: as `open_file`.
        ValueError: the file is larger than `MAX_FILE_BYTES`.
    """
    with open_file(root, relative) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{relative}: larger than {MAX_FILE_BYTES >> 20} MiB")
    return data


def read_range(root: Root, relative: str, offset: int, n_bytes: int) -> bytes:
    """A part of one file of the corpus, by one request where it is remote; shorter where the file ends before.

    Raises:
        OutsideRoot, FileNotFoundError: as `open_file`.
        ValueError: the part is larger than `MAX_FILE_BYTES`.
    """
    if n_bytes > MAX_FILE_BYTES:
        raise ValueError(f"{relative}: a member larger than {MAX_FILE_BYTES >> 20} MiB")
    if is_address(root):
        return _remote_range(root, locate(root, relative), offset, n_bytes)
    with open_file(root, relative) as file:
        file.seek(offset)
        return file.read(n_bytes)


def _remote_range(root: Root, full: str, offset: int, n_bytes: int) -> bytes:
    with reading(full):
        if (kept := _kept(root, full)) is not None:
            with kept:
                kept.seek(offset)
                return kept.read(n_bytes)
        filesystem, path = fsspec.core.url_to_fs(full)
        data: bytes = filesystem.cat_file(path, start=offset, end=offset + n_bytes)
    if len(data) > n_bytes:  # as servers do that know no ranges
        raise OSError(
            f"{full}: {len(data)} bytes came of {n_bytes}, the server sends no parts of files: give shard_cache_gb room for whole shards"
        )
    return data


def _kept(root: Root, full: str) -> BinaryIO | None:
    """A shard at an address as it is kept on this machine; None where it is not."""
    cache = root.cache if isinstance(root, CorpusRoot) else None
    return cache.open(full) if cache is not None and full.lower().endswith(SHARDS) else None


def _other_form(root: Root, relative: str) -> str | None:
    """The file whose name is the same text in another form (NFC or NFD, another apostrophe), where there is exactly one."""
    folder = ""
    for part in str(relative).split("/"):
        entries = _entries(locate(root, folder) if folder else _real(str(root)))
        same = entries.get(canonical(part), ())
        if part not in same:
            if len(same) != 1:
                return None
            part = same[0]
        folder = f"{folder}/{part}" if folder else part
    return locate(root, folder)


def _what_is_there(root: Root, relative: str, full: str) -> str:
    """Why a path is no file that can be read."""
    if os.path.exists(full):
        return "not a regular file"
    if os.path.islink(os.path.join(str(root), relative)):
        return "a link to nothing"
    name = canonical(os.path.basename(full))
    other = next(
        (entry for entry in _entries(os.path.dirname(full)) if entry != name and entry.casefold() == name.casefold()), None
    )
    return "no such file" + (f"; {other!r} differs from it in case alone" if other else "")


@functools.lru_cache(maxsize=64)
def _entries(folder: str) -> dict[str, tuple[str, ...]]:
    """The names in a folder by their canonical form."""
    found: dict[str, tuple[str, ...]] = {}
    with contextlib.suppress(OSError):
        for entry in sorted(os.listdir(folder)):
            found[canonical(entry)] = (*found.get(canonical(entry), ()), entry)
    return found


@functools.lru_cache(maxsize=64)
def _real(root: str) -> str:
    return os.path.realpath(root)
