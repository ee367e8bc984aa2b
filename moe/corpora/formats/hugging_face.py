"""A dataset of the `datasets` library: a folder written by `save_to_disk`, or a name that `load_dataset` knows.

Its Arrow files are read directly, so no audio decoder of `datasets` is ever needed. By name, the root is the library's cache;
this is the one format that may reach for a hub, and only because the user names a dataset.
"""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from moe.corpora.formats.arrow_types import fields_of, holds_audio, is_bytes, is_nested
from moe.corpora.formats.columns import Columns, class_names
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Note
from moe.corpora.formats.parquet import unread_columns
from moe.corpora.formats.split_names import split_of_folder
from moe.corpora.locations import Root
from moe.corpora.shards import arrow_table

SAVED = ("dataset_dict.json", "state.json")
PIECE_ROWS = 4096


def hf_root(location: str) -> str:
    """The folder that the Arrow files of a dataset lie below: the saved folder, or the cache for a dataset by name."""
    if _is_saved(location):
        return location
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE)


def read_hf(location: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read a saved dataset or one by name.

    Raises:
        ValueError: it cannot be loaded, or has no audio or transcript column.
    """
    root = os.path.realpath(hf_root(str(location)))
    for split, dataset in _load(str(location), options).items():
        for file in dataset.cache_files:
            path = os.path.realpath(file["filename"])
            try:
                yield from _read_file(path, root, split_of_folder(split) or split, options)
            except (pa.ArrowException, OSError) as error:
                yield Fault(os.path.relpath(path, root), "bad_shard", f"{type(error).__name__}: {error}")


def dataset_fault(name: str, config: str | None) -> str | None:
    """Why a data set by name cannot be had; of a hub only its description is read, which also shows an unknown configuration."""
    import datasets

    try:
        datasets.load_dataset_builder(name, config)
    except Exception as error:  # the library raises many kinds, its own and those of the network
        return f"datasets cannot load it ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
    return None


def _load(location: str, options: CorpusOptions) -> dict[str, Any]:
    import datasets  # seconds to import, and only this format needs it

    try:
        if _is_saved(location):
            loaded = datasets.load_from_disk(location)
        else:
            loaded = datasets.load_dataset(location, options.hf_config)
    except Exception as error:  # the library raises many kinds, its own and those of the network
        raise ValueError(f"dataset_root={location!r}: datasets cannot load it ({type(error).__name__}: {error})") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def _read_file(path: str, root: str, split: str, options: CorpusOptions) -> Iterator[FoundUtterance | Note]:
    table, shard = arrow_table(path), os.path.relpath(path, root)
    schema = table.schema
    columns = Columns.of(
        schema.names, options, shard, class_names(schema), [field.name for field in schema if holds_audio(field.type)]
    )
    yield from (Note(note, shard) for note in [*columns.notes, *unread_columns(schema, columns)])
    audio = columns.roles["audio"]
    cells = table.column(audio)
    number = 0
    for piece in table.select([field.name for field in schema if field.name != audio and not is_nested(field.type)]).to_batches(
        PIECE_ROWS
    ):
        for row in piece.to_pylist():
            inside = _has_bytes(cells[number])
            file, member = (shard, f"{audio}:{number}") if inside else (_relative(cells[number], root), None)
            yield columns.found(row, file, member, f"{split or 'all'}/{os.path.basename(shard)}:{number}", split)
            number += 1


def _has_bytes(cell: pa.Scalar) -> bool:
    """Whether a cell holds a recording itself: bytes or samples."""
    if not cell.is_valid:
        return False
    names = fields_of(cell.type)
    return is_bytes(cell.type) or any(name in names and cell[name].is_valid for name in ("bytes", "array"))


def _relative(cell: pa.Scalar, root: str) -> str:
    value = cell.as_py()
    path = (value or {}).get("path") if isinstance(value, dict) or value is None else str(value)
    return os.path.relpath(path, root) if path and os.path.isabs(path) and path.startswith(root + os.sep) else path or ""


def _is_saved(location: str) -> bool:
    return any(os.path.isfile(os.path.join(location, name)) for name in SAVED)
