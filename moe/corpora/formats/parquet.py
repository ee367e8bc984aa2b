"""Folders of Parquet files, as `datasets` writes them: an audio struct (`bytes`, `path`), bytes or a path, and a text.

Audio stays in its file: the listing reads the other columns only, a piece at a time. The split is a column, or a folder or file
name such as `train-00000-of-00004.parquet`, whose number also says which files should be there.
"""

import posixpath
import re
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from moe.corpora.formats.arrow_types import fields_of, holds_audio, is_bytes, is_nested, is_text
from moe.corpora.formats.columns import Columns, class_names
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Note, Read
from moe.corpora.formats.inventory import take_inventory
from moe.corpora.formats.split_names import split_of_folder
from moe.corpora.locations import Root, inside, open_file

PIECE_ROWS = 4096
PIECE_ROWS_WITH_AUDIO = 64
_NUMBERED = re.compile(r"(?i)(.*)-(\d{5})-of-(\d{5})\.parquet")


def read_parquet(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read every Parquet file below the root. One that cannot be read is a fault.

    Raises:
        ValueError: there is no Parquet file.
    """
    inventory = take_inventory(root)
    names = inventory.ending(".parquet")
    yield from inventory.remarks(lambda name: name.lower().endswith(".parquet"))
    if not names and not inventory.outside:
        raise ValueError(f"dataset_root={str(root)!r}: holds no *.parquet")
    yield from _missing(names)
    for name in names:
        yield Read(name)
        try:
            with open_file(root, name) as file:
                yield from _read_file(root, pq.ParquetFile(file), name, options)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield Fault(name, "bad_shard", f"{type(error).__name__}: {error}")


def _missing(names: list[str]) -> Iterator[Fault]:
    """Files that the numbers of others say should be there."""
    there = {match.groups() for name in names if (match := _NUMBERED.fullmatch(name))}
    for prefix, n_files in sorted({(prefix, n_files) for prefix, _, n_files in there}):
        for number in range(int(n_files)):
            if (prefix, f"{number:05d}", n_files) not in there:
                yield Fault(
                    f"{prefix}-{number:05d}-of-{n_files}.parquet", "missing_file", f"there are to be {int(n_files)} such files"
                )


def _read_file(root: Root, file: pq.ParquetFile, name: str, options: CorpusOptions) -> Iterator[FoundUtterance | Note]:
    schema = file.schema_arrow
    columns = Columns.of(
        schema.names, options, name, class_names(schema), [field.name for field in schema if holds_audio(field.type)]
    )
    yield from (Note(note, name) for note in [*columns.notes, *unread_columns(schema, columns)])
    audio, split = columns.audio, split_of_folder(name.removesuffix(".parquet"))
    held = _held(file, schema.field(audio))
    read = [field.name for field in schema if field.name != audio and not is_nested(field.type)]
    if held is not True:
        read.append(audio if is_text(schema.field(audio).type) else f"{audio}.path")
    for number, (row, is_held) in enumerate(_rows(file, read, audio, held)):
        yield _utterance(root, row, columns, name, number, split, not is_held)


def _rows(file: pq.ParquetFile, read: list[str], audio: str, held: bool | None) -> Iterator[tuple[dict, bool]]:
    """Every row without its audio, and whether the recording itself is in it; where only the bytes tell, they are read for that."""
    if held is not None:
        for piece in file.iter_batches(PIECE_ROWS, columns=read):
            yield from ((row, held) for row in piece.to_pylist())
        return
    for piece in file.iter_batches(PIECE_ROWS_WITH_AUDIO, columns=[*read, f"{audio}.bytes"]):
        place = piece.schema.get_field_index(audio)
        cells = piece.column(place)
        paths = pa.StructArray.from_arrays([cells.field("path")], names=["path"])
        rows = piece.set_column(place, audio, paths).to_pylist()
        yield from zip(rows, cells.field("bytes").is_valid().to_pylist(), strict=True)


def unread_columns(schema: pa.Schema, columns: Columns) -> list[str]:
    """What is to be said of columns that a manifest cannot keep."""
    nested = [field for field in schema if is_nested(field.type) and field.name != columns.audio]
    return [f"column {field.name!r} ({field.type}) is not read" for field in nested]


def _utterance(root: Root, row: dict, columns: Columns, name: str, number: int, split: str, by_path: bool) -> FoundUtterance:
    audio, place = columns.roles["audio"], f"{name}:{number}"
    if not by_path:
        return columns.found(row, name, f"{audio}:{number}", place, split)
    path = row[audio]["path"] if isinstance(row[audio], dict) else row[audio]
    if not path:
        return columns.found(row, name, None, place, split, fault=("missing_file", "the row has neither audio bytes nor a path"))
    return columns.found(row, inside(root, posixpath.join(posixpath.dirname(name), path)), None, place, split)


def _held(file: pq.ParquetFile, field: pa.Field) -> bool | None:
    """Whether the audio column holds the recordings rather than paths; None where rows differ or the file's statistics do not say."""
    if is_text(field.type):
        return False
    names = fields_of(field.type)
    if is_bytes(field.type) or {"array", "sampling_rate"} <= names:
        return True
    if "path" not in names:
        raise ValueError(f"audio column {field.name!r} is {field.type}, not bytes, a path or a struct of both")
    if "bytes" not in names:
        return False
    held = {_held_in(chunk) for chunk in _chunks(file.metadata, f"{field.name}.bytes")}
    return held.pop() if len(held) == 1 else None


def _held_in(chunk: pq.ColumnChunkMetaData) -> bool | None:
    n_null = chunk.statistics.null_count if chunk.statistics and chunk.statistics.has_null_count else None
    return {0: True, chunk.num_values: False}.get(n_null)


def _chunks(metadata: pq.FileMetaData, path: str) -> Iterator[pq.ColumnChunkMetaData]:
    for group in range(metadata.num_row_groups):
        chunks = (metadata.row_group(group).column(column) for column in range(metadata.num_columns))
        yield from (chunk for chunk in chunks if chunk.path_in_schema == path)
