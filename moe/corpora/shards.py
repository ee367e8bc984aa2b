"""One member out of a shard: a tar (also a tar inside a tar), a Parquet file or an Arrow file.

A tar is indexed once per process (`TarIndex`, headers only) and then read by seeking, so that loader workers can read utterances in
any order. A Parquet or Arrow member is `column:row`; of a long recording it is a part, `from=1.5,to=3.25`.
"""

import functools
import hashlib
import io
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from moe.audio.parts import Part, cut_part
from moe.corpora.locations import MAX_FILE_BYTES, Root, locate, open_file, read_file, read_range
from moe.corpora.names import canonical

TAR_ERRORS = (tarfile.TarError, EOFError, ValueError, OSError, OverflowError, MemoryError, RecursionError)
CHUNK_BYTES = 1 << 16
ROW_OF_CELL = r":(\d+)$"
NESTED = "!/"  # between the name of an inner tar and the name of a member in it
MOST_INDEXES = 1 << 14  # shards whose members' places a process keeps


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in a tar: where its bytes lie. `fault` says why it may not be used, if so."""

    name: str
    offset: int
    n_bytes: int
    fault: str = ""
    damaged: bool = False


class TarIndex:
    """Where the members of a tar lie, by digests of their names: 24 bytes for each, where names and objects take a kilobyte.

    Of members with one name the first counts. A name in another Unicode form finds the member too.
    """

    def __init__(self, members: Iterable[TarMember]) -> None:
        places, others = dict[int, tuple[int, int]](), dict[int, tuple[int, int]]()
        for member in members:
            place = member.offset, member.n_bytes
            places.setdefault(_name_digest(member.name), place)
            others.setdefault(_name_digest(canonical(member.name)), place)
        found = sorted((others | places).items())
        self._digests = np.array([digest for digest, _ in found], np.uint64)
        self._places = np.array([place for _, place in found], np.int64).reshape(-1, 2)

    def find(self, name: str) -> tuple[int, int] | None:
        """Offset and number of bytes of a member."""
        for digest in (_name_digest(name), _name_digest(canonical(name))):
            row = int(np.searchsorted(self._digests, np.uint64(digest)))
            if row < len(self._digests) and int(self._digests[row]) == digest:
                return int(self._places[row, 0]), int(self._places[row, 1])
        return None


def _name_digest(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def read_member(root: Root, audio: str, member: str) -> bytes:
    """The bytes of one member of a shard.

    Raises:
        OutsideRoot: the shard lies outside the corpus root.
        FileNotFoundError: no such shard or member.
        EOFError, ValueError: the shard is damaged or the member too large.
    """
    suffix = audio.rsplit(".", 1)[-1].lower()
    if suffix == "parquet":
        return _parquet_cell(root, audio, *_cell(member))
    if suffix == "arrow":
        return _arrow_cell(root, audio, *_cell(member))
    if suffix != "tar" and (part := Part.of(member)) is not None:
        return cut_part(_recording(root, audio), part)
    place = _tar_index(root, audio).find(member)
    if place is None:
        raise FileNotFoundError(f"{audio}: no member {member!r}")
    offset, n_bytes = place
    data = read_range(root, audio, offset, n_bytes)
    if len(data) < n_bytes:
        raise EOFError(f"{audio}: ends within {member!r}, {n_bytes - len(data)} bytes too early")
    return data


def reading_order(rows: pd.DataFrame) -> np.ndarray:
    """Numbers of a table's rows in the order in which they lie, (N,): file by file, in a Parquet file by row.

    A row group is decoded for every utterance that is not the neighbour of the one before it.
    """
    inside = pd.to_numeric(rows["member"].astype("str").str.extract(ROW_OF_CELL)[0], errors="coerce")
    places = pd.DataFrame({"audio": rows["audio"].to_numpy(), "row": inside.to_numpy(), "id": rows["utterance_id"].to_numpy()})
    return places.sort_values(["audio", "row", "id"], kind="stable").index.to_numpy()


def read_at(file: BinaryIO, member: TarMember) -> bytes:
    """The bytes of a tar member out of the open tar.

    Raises:
        ValueError: the member is larger than any utterance may be.
        EOFError: the tar ends within the member.
    """
    if member.n_bytes > MAX_FILE_BYTES:
        raise ValueError(f"{member.name}: larger than {MAX_FILE_BYTES >> 20} MiB")
    file.seek(member.offset)
    data = file.read(member.n_bytes)
    if len(data) < member.n_bytes:
        raise EOFError(f"{member.name}: the tar ends {member.n_bytes - len(data)} bytes too early")
    return data


def tar_members(file: BinaryIO, inner: TarMember | None = None) -> Iterator[TarMember]:
    """The files of an uncompressed tar in their order, headers only; inner tars are entered once, their names joined by `!/`.

    Damage raises nothing: it is given as a member with a `fault` and `damaged`, in the place where it
    lies, and the walk goes on behind it where it can (behind a damaged inner tar).

    Args:
        file: seekable tar. inner: the inner tar to walk, for the recursion.
    """
    file.seek(inner.offset if inner else 0)
    end = inner.offset + inner.n_bytes if inner else None
    try:
        with tarfile.TarFile(fileobj=file, mode="r") as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # not in its stubs; else a million members grow in memory
                yield from _as_members(file, info, inner)
                if tar.offset <= info.offset or (end is not None and tar.offset > end):
                    raise tarfile.ReadError(f"{info.name!r}: absurd size in its header")
            _check_end(file, tar.offset, end)
    except TAR_ERRORS as error:
        yield TarMember(inner.name if inner else "", 0, 0, f"damaged tar: {error}", damaged=True)


def _check_end(file: BinaryIO, offset: int, end: int | None) -> None:
    """A tar ends with blocks of zeros. What ends it earlier, a header that is none or the end of the file, hides whatever lies behind.

    Raises:
        ReadError: there are none, or something else follows them.
    """
    file.seek(offset)
    left = (end or sys.maxsize) - offset
    if not (chunk := file.read(min(left, CHUNK_BYTES))):
        raise tarfile.ReadError("no zeros mark its end: it may be cut short")
    while chunk:
        if chunk.strip(b"\0"):
            raise tarfile.ReadError(f"data follow its end at byte {offset}: several tars in one, or a damaged header")
        left -= len(chunk)
        chunk = file.read(min(left, CHUNK_BYTES))


def _as_members(file: BinaryIO, info: tarfile.TarInfo, inner: TarMember | None) -> Iterator[TarMember]:
    name = f"{inner.name}{NESTED}{info.name}" if inner else info.name
    if info.issym() or info.islnk():
        yield TarMember(name, 0, 0, f"a link to {info.linkname!r}")
    elif info.isreg() and info.issparse():
        yield TarMember(name, 0, 0, "a sparse file")
    elif info.isreg():
        unsafe = info.name.startswith(("/", "\\")) or ".." in info.name.replace("\\", "/").split("/")
        member = TarMember(name, info.offset_data, info.size, "named to lie outside" if unsafe else "")
        entered = inner is None and not unsafe and info.name.lower().endswith(".tar")
        yield from tar_members(file, member) if entered else [member]


@functools.lru_cache(maxsize=2)
def _recording(root: Root, audio: str) -> bytes:
    return read_file(root, audio)


@functools.lru_cache(maxsize=MOST_INDEXES)
def _tar_index(root: Root, audio: str) -> TarIndex:
    with open_file(root, audio) as file:
        return TarIndex(member for member in tar_members(file) if not member.fault)


def _cell(member: str) -> tuple[str, int]:
    column, _, row = member.rpartition(":")
    if not column or not row.isdigit():
        raise ValueError(f"member {member!r} is not column:row")
    return column, int(row)


def _parquet_cell(root: Root, audio: str, column: str, row: int) -> bytes:
    for group, (first, n_rows) in enumerate(_row_groups(root, audio)):
        if first <= row < first + n_rows:
            return cell_bytes(_row_group(root, audio, group, column)[row - first])
    raise FileNotFoundError(f"{audio}: no row {row}")


@functools.lru_cache(maxsize=MOST_INDEXES)
def _row_groups(root: Root, audio: str) -> list[tuple[int, int]]:
    with open_file(root, audio) as file:
        metadata = pq.ParquetFile(file).metadata
    groups, first = [], 0
    for index in range(metadata.num_row_groups):
        groups.append((first, metadata.row_group(index).num_rows))
        first += metadata.row_group(index).num_rows
    return groups


@functools.lru_cache(maxsize=2)
def _row_group(root: Root, audio: str, group: int, column: str) -> pa.ChunkedArray:
    with open_file(root, audio) as file:
        return pq.ParquetFile(file).read_row_group(group, columns=[column]).column(column)


def _arrow_cell(root: Root, audio: str, column: str, row: int) -> bytes:
    table = arrow_table(locate(root, audio))
    if row >= len(table):
        raise FileNotFoundError(f"{audio}: no row {row}")
    return cell_bytes(table.column(column)[row])


@functools.lru_cache(maxsize=64)
def arrow_table(path: str) -> pa.Table:
    """The table of a local Arrow stream file, mapped into memory, not read."""
    return pa.ipc.open_stream(pa.memory_map(path)).read_all()


def cell_bytes(cell: pa.Scalar) -> bytes:
    """The encoded audio in a cell: an audio struct (`bytes`, `path` or `array`, `sampling_rate`) or plain binary.

    Raises:
        FileNotFoundError: the cell is empty.
    """
    value = cell.as_py()
    if isinstance(value, dict) and value.get("array") is not None:
        return _wav_of(value["array"], value["sampling_rate"])
    value = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(value, bytes):
        raise FileNotFoundError("the cell holds no audio bytes")
    return value


def _wav_of(samples: list, rate: int) -> bytes:
    """Samples as `datasets` decodes them, (n_samples,) or (n_channels, n_samples), as the bytes of a wav."""
    array = np.asarray(samples)
    array = array.astype(np.int16 if array.dtype.kind == "i" and np.abs(array).max(initial=0) > 1 else np.float32).T
    buffer = io.BytesIO()
    soundfile.write(buffer, array, rate, format="WAV", subtype="PCM_16" if array.dtype == np.int16 else "FLOAT")
    return buffer.getvalue()
