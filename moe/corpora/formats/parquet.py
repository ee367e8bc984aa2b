"""Folders of Parquet files, as `datasets` writes them: an audio struct (`bytes`, `path`), bytes or a path, and a text.

Audio stays in its file: the listing reads the other columns only, a piece at a time. The split is a column, or a folder or file
name such as `train-00000-of-00004.parquet`.
"""

import posixpath
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from moe.corpora.formats.columns import Columns, class_names
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance
from moe.corpora.formats.links import linked_away
from moe.corpora.formats.split_names import split_of_folder
from moe.corpora.locations import find_files, open_file

PIECE_ROWS = 4096


def read_parquet(root: str, options: CorpusOptions) -> Iterator[FoundUtterance | Fault]:
    """Read every Parquet file below the root. One that cannot be read is a fault.

    Raises:
        ValueError: there is no Parquet file.
    """
    names = find_files(root, ".parquet")
    if not names:
        raise ValueError(f"dataset_root={root!r}: holds no *.parquet")
    yield from linked_away(root)
    for name in names:
        try:
            with open_file(root, name) as file:
                yield from _read_file(pq.ParquetFile(file), name, options)
        except (pa.ArrowException, OSError, ValueError) as error:
            yield Fault(name, "bad_shard", f"{type(error).__name__}: {error}")


def _read_file(file: pq.ParquetFile, name: str, options: CorpusOptions) -> Iterator[FoundUtterance]:
    schema = file.schema_arrow
    columns = Columns.of(schema.names, options, name, class_names(schema))
    audio, split = columns.roles["audio"], split_of_folder(name.removesuffix(".parquet"))
    by_path = _holds_paths(file, schema.field(audio))
    read = [column for column in schema.names if column != audio or pa.types.is_string(schema.field(audio).type)]
    read += [f"{audio}.path"] if by_path and audio not in read else []
    number = 0
    for piece in file.iter_batches(PIECE_ROWS, columns=read):
        for row in piece.to_pylist():
            yield _utterance(row, columns, name, number, split, by_path)
            number += 1


def _utterance(row: dict, columns: Columns, name: str, number: int, split: str, by_path: bool) -> FoundUtterance:
    audio = columns.roles["audio"]
    given = f"{name}:{number}"
    if not by_path:
        return columns.found(row, name, f"{audio}:{number}", given, split)
    path = row[audio]["path"] if isinstance(row[audio], dict) else row[audio]
    if not path:
        return columns.found(row, name, None, given, split, fault=("missing_file", "the row has neither audio bytes nor a path"))
    return columns.found(row, posixpath.join(posixpath.dirname(name), path), None, given, split)


def _holds_paths(file: pq.ParquetFile, field: pa.Field) -> bool:
    """Whether the audio column holds paths: a column of text, or a struct whose bytes are all null by the file's statistics."""
    if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
        return True
    if pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
        return False
    if not pa.types.is_struct(field.type) or field.type.get_field_index("path") < 0:
        raise ValueError(f"audio column {field.name!r} is {field.type}, not bytes, a path or a struct of both")
    return field.type.get_field_index("bytes") < 0 or not _any_bytes(file.metadata, f"{field.name}.bytes")


def _any_bytes(metadata: pq.FileMetaData, path: str) -> bool:
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            if chunk.path_in_schema == path and not (chunk.statistics and chunk.statistics.null_count == chunk.num_values):
                return True
    return False
