"""Files are whole or absent: written aside, flushed to the disk and renamed; known by the digest of their bytes."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Gives a path aside to write to; when the block ends well, that file replaces `path` in one rename."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    os.chmod(aside, 0o666 & ~_umask())  # mkstemp's files are private, ours are not
    try:
        yield Path(aside)
        _flush(Path(aside))
        os.replace(aside, path)
        _flush(path.parent)
    finally:
        Path(aside).unlink(missing_ok=True)


@contextlib.contextmanager
def write_whole_dir(path: Path) -> Iterator[Path]:
    """Like `write_whole` for a folder; an older folder of that name is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    aside.chmod(0o777 & ~_umask())
    try:
        yield aside
        for entry in [*aside.rglob("*"), aside]:
            _flush(entry)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(aside, path)
        _flush(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON, keys in the order given, in UTF-8."""
    with write_whole(path) as aside:
        aside.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value of a JSON file."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def entry_digest(path: Path) -> str:
    """SHA-256 of a file or a folder; of what is neither (a dead link, a pipe, a socket), which is not opened, of that it is there."""
    if path.is_dir():
        return folder_digest(path)
    return file_digest(path) if path.is_file() else hashlib.sha256(b"no file").hexdigest()


def folder_digest(path: Path, but: Collection[str] = ()) -> str:
    """SHA-256 over the relative names and digests of all files below a folder, but for those with the names `but`."""
    files = sorted(file for file in Path(path).rglob("*") if file.is_file() and file.name not in but)
    lines = [f"{file.relative_to(path).as_posix()} {file_digest(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    """Bytes of a file, or names of a folder, to the disk: only then does a rename outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
