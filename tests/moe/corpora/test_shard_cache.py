"""Shards at an address are kept whole or not at all, within the bound, the least recently used goes first, and nobody reads a wrong byte."""

import functools
import http.server
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

import tests.toys.corpora as toys
from moe.corpora import shard_cache
from moe.corpora.locations import CorpusRoot, read_range
from moe.corpora.manifest import read_utterance
from moe.corpora.shard_cache import ShardCache, ShardCacheOptions, stated

SIZE = 100


@pytest.fixture(autouse=True)
def asked_anew():
    stated.cache_clear()


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """Ten shards of one size."""
    (tmp_path / "bucket").mkdir()
    for number in range(10):
        (tmp_path / "bucket" / f"{number}.tar").write_bytes(bytes([number]) * SIZE)
    return tmp_path / "bucket"


def address(bucket: Path, number: int) -> str:
    return f"file://{bucket}/{number}.tar"


def kept(cache: ShardCache) -> list[str]:
    """What lies in the cache, by content."""
    return sorted(str(path.read_bytes()[0]) for path in Path(cache.folder).iterdir() if path.name.endswith(f"-{SIZE}"))


def cache_of(bucket: Path, n_shards: float, **options) -> ShardCache:
    return ShardCache(str(bucket.parent / "cache"), int(n_shards * SIZE), **options)


def read(cache: ShardCache, bucket: Path, number: int) -> bytes | None:
    file = cache.open(address(bucket, number))
    if file is None:
        return None
    with file:
        return file.read()


def grown_old(cache: ShardCache) -> None:
    for path in Path(cache.folder).iterdir():
        os.utime(path, (path.stat().st_atime - 1000, path.stat().st_mtime - 1000))


def test_a_shard_is_fetched_once_and_the_least_recently_used_goes_first(bucket) -> None:
    cache = cache_of(bucket, 3.5)
    for number in (0, 1, 2):
        assert read(cache, bucket, number) == bytes([number]) * SIZE
        grown_old(cache)
    (bucket / "0.tar").unlink()
    assert read(cache, bucket, 0) == bytes(SIZE), "from the cache, though it is gone"
    grown_old(cache)
    assert read(cache, bucket, 3) and kept(cache) == ["0", "2", "3"]


def test_what_was_just_read_is_put_out_by_what_is_known_to_come_and_not_by_what_is_merely_read(bucket) -> None:
    cache = cache_of(bucket, 2)
    assert read(cache, bucket, 0) and read(cache, bucket, 1)
    assert read(cache, bucket, 2) is None and kept(cache) == ["0", "1"]
    for number in (0, 1):
        os.utime(cache._path(stated(address(bucket, number))), (number, number))
    assert cache.fetch(address(bucket, 2), before=[address(bucket, 0)]) and kept(cache) == ["0", "2"], "0 is still to be read"
    assert read(cache_of(bucket, 2, spared_s=0.0), bucket, 3) and len(kept(cache)) == 2


def test_what_is_larger_than_the_bound_or_the_disk_is_read_where_it_lies(bucket, monkeypatch) -> None:
    assert read(cache_of(bucket, 0.9), bucket, 0) is None
    monkeypatch.setattr(shard_cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": SIZE - 1}))
    cache = cache_of(bucket, 5)
    assert read(cache, bucket, 0) is None and not kept(cache)


def test_a_shard_that_changed_at_its_address_is_fetched_again(bucket) -> None:
    cache = cache_of(bucket, 5)
    assert read(cache, bucket, 0) == bytes(SIZE)
    (bucket / "0.tar").write_bytes(b"\7" * SIZE)
    os.utime(bucket / "0.tar", (5, 5))
    stated.cache_clear()  # as in a new process
    assert read(cache, bucket, 0) == b"\7" * SIZE


def test_what_a_killed_process_left_is_neither_read_nor_counted_and_what_another_fetches_is(bucket) -> None:
    cache = cache_of(bucket, 2)
    assert cache.fetch(address(bucket, 0))
    parts = [Path(f"{cache._path(stated(address(bucket, number)))}.part") for number in (1, 2)]
    for part in parts:
        part.write_bytes(b"half")
    assert read(cache, bucket, 1) == b"\1" * SIZE and not any(part.exists() for part in parts)
    parts[1].write_bytes(b"half")
    with FileLock(str(parts[1].with_suffix("")) + ".lock"):
        assert cache.fetch(address(bucket, 3)) and kept(cache) == ["3"] and parts[1].exists()


def test_a_shard_that_comes_short_is_refused_and_nothing_of_it_stays(bucket) -> None:
    cache, asked = cache_of(bucket, 2), stated(address(bucket, 0))
    (bucket / "0.tar").write_bytes(b"short")
    with pytest.raises(OSError, match=r"0\.tar: 5 bytes came of 100"):
        read(cache, bucket, 0)
    assert asked and not kept(cache) and not list(Path(cache.folder).glob("*.part"))


def test_many_at_once_read_what_they_ask_for_and_the_bound_holds(bucket) -> None:
    cache, numbers = cache_of(bucket, 4, spared_s=0.0), np.random.default_rng(0).integers(10, size=150).tolist()

    def asked(number: int) -> tuple[bool, int]:
        found = read(cache, bucket, number)
        here = [path.name for path in Path(cache.folder).iterdir() if not path.name.endswith(".lock")]
        return found in (None, bytes([number]) * SIZE), len(here)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(asked, numbers))
    assert all(right for right, _ in answers) and len(kept(cache)) == 4


def test_utterances_of_shards_at_an_address_are_those_of_the_folder(tmp_path) -> None:
    for write, member, shard in (
        (toys.write_webdataset, "u0.flac", "train/000000.tar"),
        (toys.write_parquet, "audio:0", "data/train-00000-of-00001.parquet"),
    ):
        write(tmp_path / write.__name__)
        row, cache = {"audio": shard, "member": member}, ShardCache(str(tmp_path / "cache"), 1 << 20)
        root = CorpusRoot(f"file://{tmp_path / write.__name__}", (), cache)
        expected = read_utterance(tmp_path / write.__name__, row)
        np.testing.assert_array_equal(read_utterance(root, row), expected)
        (tmp_path / write.__name__ / shard).unlink()
        np.testing.assert_array_equal(read_utterance(root, row), expected)


def test_a_server_that_sends_no_parts_of_files_is_refused_and_served_by_the_cache(bucket: Path) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(bucket))
    (bucket / "0.tar").write_bytes(bytes(range(SIZE)))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        root = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(
            OSError, match="0.tar: 100 bytes came of 5, the server sends no parts of files: give shard_cache_gb room"
        ):
            read_range(root, "0.tar", 10, 5)
        assert read_range(CorpusRoot(root, cache=cache_of(bucket, 2)), "0.tar", 10, 5) == bytes(range(10, 15))
        server.shutdown()


def test_options_say_where_and_how_much(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = ShardCacheOptions(shard_cache_gb=2).shard_cache()
    assert (
        found == ShardCache(f"{tmp_path}/whisper-moe/shards", 2 * 10**9)
        and ShardCacheOptions(shard_cache_gb=0).shard_cache() is None
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"shard_cache_dir=.*file/below: .*file is no folder that can be written to"):
        ShardCacheOptions(shard_cache_dir=str(tmp_path / "file" / "below"))
