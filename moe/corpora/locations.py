"""Where a corpus lies: a folder or any address fsspec knows, and never a byte from outside it.

Every path of a manifest is relative to the corpus root and is checked here each time it is opened: absolute paths, `..`, links
that lead out, and things that are no regular files are refused.
"""

import functools
import os
from pathlib import Path
from typing import BinaryIO

import fsspec

MAX_FILE_BYTES = 1 << 30  # an utterance's own file; shards are never read whole


class OutsideRoot(ValueError):
    """A path that leads out of the corpus root."""


def is_address(root: str | Path) -> bool:
    """Whether the root is an address for fsspec (`s3://…`, `memory://…`) and not a folder of this machine."""
    return "://" in str(root)


def locate(root: str | Path, relative: str) -> str:
    """The full path or address of a path relative to the root.

    Raises:
        OutsideRoot: the path is absolute, climbs out by `..`, holds a NUL, or is a link that leads out.
    """
    relative = str(relative)
    parts = relative.replace("\\", "/").split("/")
    if not relative or "\0" in relative or relative.startswith(("/", "\\", "~")) or ".." in parts or "://" in relative:
        raise OutsideRoot(f"{relative!r} is not a path inside the corpus root")
    if is_address(root):
        return f"{str(root).rstrip('/')}/{relative}"
    base = _real(str(root))
    full = os.path.realpath(os.path.join(base, relative))
    if full != base and not full.startswith(base.rstrip(os.sep) + os.sep):
        raise OutsideRoot(f"{relative!r} is a link that leads out of the corpus root")
    return full


def open_file(root: str | Path, relative: str) -> BinaryIO:
    """A seekable binary file of the corpus.

    Raises:
        OutsideRoot: as `locate`.
        FileNotFoundError: there is no such regular file.
    """
    full = locate(root, relative)
    if is_address(root):
        return fsspec.open(full, "rb").open()
    if not os.path.isfile(full):
        raise FileNotFoundError(f"{relative}: {'not a regular file' if os.path.exists(full) else 'no such file'}")
    return open(full, "rb")


def read_file(root: str | Path, relative: str) -> bytes:
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


def read_range(root: str | Path, relative: str, offset: int, n_bytes: int) -> bytes:
    """A part of one file of the corpus, by one request where it is remote; shorter where the file ends before.

    Raises:
        OutsideRoot, FileNotFoundError: as `open_file`.
        ValueError: the part is larger than `MAX_FILE_BYTES`.
    """
    if n_bytes > MAX_FILE_BYTES:
        raise ValueError(f"{relative}: a member larger than {MAX_FILE_BYTES >> 20} MiB")
    if is_address(root):
        filesystem, path = fsspec.core.url_to_fs(locate(root, relative))
        return filesystem.cat_file(path, start=offset, end=offset + n_bytes)
    with open_file(root, relative) as file:
        file.seek(offset)
        return file.read(n_bytes)


def find_files(root: str | Path, suffixes: str | tuple[str, ...]) -> list[str]:
    """Relative paths of all files below the root that end in a suffix (any case), sorted; links to folders are not entered."""
    suffixes = (suffixes,) if isinstance(suffixes, str) else suffixes
    names = _find_remote(str(root)) if is_address(root) else _find_local(str(root))
    return sorted(name for name in names if name.lower().endswith(suffixes))


def links_out(root: str | Path) -> list[str]:
    """Relative paths of links to folders outside the root, sorted: what lies behind them is not listed."""
    if is_address(root):
        return []
    links = []
    for folder, names, _ in os.walk(root):
        relative = [
            os.path.relpath(os.path.join(folder, name), root) for name in names if os.path.islink(os.path.join(folder, name))
        ]
        links += [name for name in relative if _leads_out(root, name)]
    return sorted(links)


def _leads_out(root: str | Path, relative: str) -> bool:
    try:
        locate(root, relative)
    except OutsideRoot:
        return True
    return False


@functools.lru_cache(maxsize=64)
def _real(root: str) -> str:
    return os.path.realpath(root)


def _find_local(root: str) -> list[str]:
    found = []
    for folder, _, files in os.walk(root):
        relative = os.path.relpath(folder, root).replace(os.sep, "/")
        found += [name if relative == "." else f"{relative}/{name}" for name in files]
    return found


def _find_remote(root: str) -> list[str]:
    filesystem, base = fsspec.core.url_to_fs(root)
    base = base.rstrip("/") + "/"
    return [name.removeprefix(base).lstrip("/") for name in filesystem.find(base)]
