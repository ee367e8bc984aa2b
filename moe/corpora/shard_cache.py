"""Shards of a corpus at an address, kept in a folder of this machine: never more than its bound, the least recently used goes first.

All processes of a machine share the folder. A shard is fetched whole by the process that needs it first; another that needs it meanwhile
waits. Until it is whole it has another name, and what a killed process left of one is removed by the next. fsspec's own caches on disk
(`filecache`, `blockcache`) have no bound.
"""

import functools
import hashlib
import os
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from filelock import FileLock, Timeout

from moe.options import Options, option

GB = 10**9
PART, LOCK, FOLDER_LOCK = ".part", ".lock", "folder.lock"
NAME = re.compile(r"[0-9a-f]{40}-\d+(\.part)?")  # digest and size: whatever else lies in the folder is left alone
SPARED_S = 600.0  # a shard used in the last ten minutes does not go for one that is merely read: reading would go in circles
# what changes with a file
STAMPS = ("ETag", "etag", "LastModified", "last_modified", "Last-Modified", "mtime", "md5Hash", "generation")


@dataclass(frozen=True)
class ShardCacheOptions(Options):
    """Where shards of a corpus at an address are kept on each machine; no result depends on it."""

    group = "data"

    shard_cache_gb: float = option(
        50.0, "room on each machine for shards of a corpus at an address, shared by its processes, GB (0: none is kept)", low=0
    )
    shard_cache_dir: str | None = option(None, "folder for them, on a disk of the machine (none: ~/.cache/whisper-moe/shards)")

    not_in_fingerprint = frozenset({"shard_cache_gb", "shard_cache_dir"})

    def faults(self) -> list[str]:
        """A folder that cannot be written to."""
        if self.shard_cache_dir is None:
            return []
        path = Path(self.shard_cache_dir).expanduser().absolute()
        there = next(place for place in (path, *path.parents) if place.exists())
        if there.is_dir() and os.access(there, os.W_OK):
            return []
        return [f"shard_cache_dir={self.shard_cache_dir}: {there} is no folder that can be written to"]

    def shard_cache(self, in_order: bool = False) -> "ShardCache | None":
        """The cache that the options say.

        Args:
            in_order: shards are read one after the other, so that one that was just read is not needed soon.
        """
        folder = self.shard_cache_dir or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "whisper-moe", "shards")
        path = os.path.abspath(os.path.expanduser(folder))
        return ShardCache(path, int(self.shard_cache_gb * GB), 0.0 if in_order else SPARED_S) if self.shard_cache_gb else None


@dataclass(frozen=True)
class ShardOrderOptions(ShardCacheOptions):
    """How many shards are read at a time, where not all have room."""

    shards_together: int | None = option(
        None,
        "shards whose utterances come together in batches, in training shuffled, for a corpus larger than shard_cache_gb (none: all)",
        low=1,
    )


@dataclass(frozen=True)
class ShardCache:
    """A bounded folder of shards.

    Attributes:
        n_bytes: bound of the folder, what is being fetched included.
        spared_s: seconds since its last use for which a shard is not removed for one that is merely read.
    """

    folder: str
    n_bytes: int
    spared_s: float = SPARED_S

    def open(self, address: str) -> BinaryIO | None:
        """The shard at an address as a file of this machine, fetched if need be; None where there is no room for it.

        Raises:
            FileNotFoundError: nothing is at the address.
        """
        shard = stated(address)
        while shard is not None:
            try:
                file = open(self._path(shard), "rb")
            except FileNotFoundError:
                if not self._fetch(shard, self.spared_s):
                    return None
                continue  # another process may have put it out again
            os.utime(file.fileno())
            return file
        return None

    def fetch(self, address: str, before: Sequence[str] = ()) -> bool:
        """Bring a shard here that will be read soon; those named in `before`, which are still to be read, are the last to go for it."""
        shard = stated(address)
        for each in filter(None, map(stated, before)):
            self._used_now(each)
        return shard is not None and self._fetch(shard, 0.0)

    def size(self, address: str) -> int:
        """Bytes that a shard takes here; 0 where it is not kept."""
        shard = stated(address)
        return 0 if shard is None or shard.n_bytes > self.n_bytes else shard.n_bytes

    def _fetch(self, shard: "Stated", spared_s: float) -> bool:
        """Whether the shard is here now."""
        path = self._path(shard)
        if path.exists():
            return True
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + PART)
        with FileLock(_lock_of(path)):
            if path.exists():
                return True
            part.unlink(missing_ok=True)  # a killed process left it: whoever fetches holds the lock
            with self._folder_lock():
                if not self._make_room(shard.n_bytes, spared_s):
                    return False
                part.touch()
            try:
                shard.copy_to(part)
                with self._folder_lock():
                    os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        return True

    def _make_room(self, n_bytes: int, spared_s: float) -> bool:
        """Remove what a dead process left, and shards that were used least recently, until there is room; nothing where there would be none."""
        kept, used = list[tuple[float, int, Path]](), 0
        for path in (path for path in Path(self.folder).iterdir() if NAME.fullmatch(path.name)):
            if path.suffix == PART and _is_left(path):
                path.unlink()
                continue
            used += _bytes_of(path)
            kept += [(path.stat().st_mtime, _bytes_of(path), path)] if path.suffix != PART else []
        going = _first_enough(sorted(kept), used + n_bytes - self.n_bytes, time.time() - spared_s)
        if going is None or shutil.disk_usage(self.folder).free + sum(map(_bytes_of, going)) < n_bytes:
            return False
        for path in going:
            path.unlink()
        return True

    def _folder_lock(self) -> FileLock:
        return FileLock(os.path.join(self.folder, FOLDER_LOCK))

    def _used_now(self, shard: "Stated") -> None:
        try:
            os.utime(self._path(shard))
        except FileNotFoundError:
            return

    def _path(self, shard: "Stated") -> Path:
        return Path(self.folder, f"{shard.digest}-{shard.n_bytes}")


@dataclass(frozen=True)
class Stated:
    """What an address says of the file there: a digest of its name and version, and its size."""

    address: str
    digest: str
    n_bytes: int

    def copy_to(self, path: Path) -> None:
        """Bring the file here.

        Raises:
            OSError: it came with another size than was stated.
        """
        filesystem, name = fsspec.core.url_to_fs(self.address)
        filesystem.get_file(name, str(path))
        if path.stat().st_size != self.n_bytes:
            raise OSError(f"{self.address}: {path.stat().st_size} bytes came of {self.n_bytes}")


@functools.lru_cache(maxsize=1 << 16)
def stated(address: str) -> Stated | None:
    """What an address says of its file, asked once by each process, whatever was listed before; None where it does not tell the size.

    Raises:
        FileNotFoundError: nothing is there.
    """
    filesystem, name = fsspec.core.url_to_fs(address)
    filesystem.invalidate_cache(filesystem._parent(name))
    found: dict[str, Any] = filesystem.info(name)
    if not found.get("size"):
        return None
    version = [f"{stamp}={found[stamp]}" for stamp in STAMPS if found.get(stamp) is not None]
    digest = hashlib.sha256("\n".join([address, *version]).encode()).hexdigest()[:40]
    return Stated(address, digest, int(found["size"]))


def _first_enough(kept: Sequence[tuple[float, int, Path]], n_bytes: int, last: float) -> list[Path] | None:
    """The first of these that give so many bytes, none of them used after `last`; None where they do not."""
    going = list[Path]()
    for used_at, size, path in kept:
        if n_bytes <= 0 or used_at > last:
            break
        going.append(path)
        n_bytes -= size
    return going if n_bytes <= 0 else None


def _is_left(part: Path) -> bool:
    """Whether nobody fetches a part any more: who does holds its lock, which goes with the process."""
    try:
        with FileLock(_lock_of(part.with_suffix("")), timeout=0):
            return True
    except Timeout:
        return False


def _bytes_of(path: Path) -> int:
    return int(path.name.removesuffix(PART).rpartition("-")[2])


def _lock_of(path: Path) -> str:
    return f"{path}{LOCK}"
