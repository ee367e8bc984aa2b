"""A dataset of the `datasets` library: a folder written by `save_to_disk`, or a name that `load_dataset` knows.

Its Arrow files are read directly, so no audio decoder of `datasets` is ever needed. By name, the root is the library's cache;
this is the one format that may reach for a hub, and only because the user names a dataset.
"""

import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from moe.corpora.formats.columns import Columns, class_names
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance
from moe.corpora.formats.split_names import split_of_folder
from moe.corpora.shards import arrow_table

SAVED = ("dataset_dict.json", "state.json")
PIECE_ROWS = 4096


def hf_root(location: str) -> str:
    """The folder that the Arrow files of a dataset lie below: the saved folder, or the cache for a dataset by name."""
    if _is_saved(location):
        return location
    import datasets

    return str(datasets.config.HF_DATASETS_CACHE)


def read_hf(location: str, options: CorpusOptions) -> Iterator[FoundUtterance | Fault]:
    """Read a saved dataset or one by name.

    Raises:
        ValueError: it cannot be loaded, or has no audio or transcript column.
    """
    root = os.path.realpath(hf_root(location))
    for split, dataset in _load(location, options).items():
        for file in dataset.cache_files:
            path = os.path.realpath(file["filename"])
            try:
                yield from _read_file(path, root, split_of_folder(split) or split, options)
            except (pa.ArrowException, OSError) as error:
                yield Fault(os.path.relpath(path, root), "bad_shard", f"{type(error).__name__}: {error}")


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


def _read_file(path: str, root: str, split: str, options: CorpusOptions) -> Iterator[FoundUtterance]:
    table, shard = arrow_table(path), os.path.relpath(path, root)
    columns = Columns.of(table.column_names, options, shard, class_names(table.schema))
    audio = columns.roles["audio"]
    cells = table.column(audio)
    is_struct = pa.types.is_struct(cells.type)
    number = 0
    for piece in table.drop_columns([audio]).to_batches(PIECE_ROWS):
        for row in piece.to_pylist():
            cell = cells[number]
            has_bytes = (
                cell["bytes"].is_valid if is_struct and cell.is_valid else cell.is_valid and pa.types.is_binary(cells.type)
            )
            place = (shard, f"{audio}:{number}") if has_bytes else (_relative(cell, root), None)
            yield columns.found(row, *place, f"{split or 'all'}/{os.path.basename(shard)}:{number}", split)
            number += 1


def _relative(cell: pa.Scalar, root: str) -> str:
    value = cell.as_py()
    path = (value or {}).get("path") if isinstance(value, dict) or value is None else str(value)
    return os.path.relpath(path, root) if path and os.path.isabs(path) and path.startswith(root + os.sep) else path or ""


def _is_saved(location: str) -> bool:
    return any(os.path.isfile(os.path.join(location, name)) for name in SAVED)
