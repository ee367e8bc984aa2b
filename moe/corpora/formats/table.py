"""The formats a corpus may come in.

A new one is a file with one function, `(root, options) -> Iterator[Item]`, and an entry in `FORMATS`.
"""

import os
from collections.abc import Callable, Iterator

from moe.corpora.formats.folder import read_folder
from moe.corpora.formats.hugging_face import hf_root, read_hf
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Note, Read
from moe.corpora.formats.inventory import take_inventory
from moe.corpora.formats.kaldi import read_kaldi
from moe.corpora.formats.lhotse import read_lhotse
from moe.corpora.formats.openslr import read_openslr
from moe.corpora.formats.parquet import read_parquet
from moe.corpora.formats.sap import read_sap
from moe.corpora.formats.sidecars import read_sidecars
from moe.corpora.formats.webdataset import read_webdataset
from moe.corpora.locations import Root, address_fault, is_address

WEBDATASET = "webdataset"


def read_synthetic(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """What `synthesize` wrote: a folder of recordings, or shards."""
    shards = take_inventory(root).ending(".tar")
    return read_webdataset(root, options) if shards else read_folder(root, options)


FORMATS: dict[str, Callable[[Root, CorpusOptions], Iterator[Item]]] = {
    "folder": read_folder,
    "synthetic": read_synthetic,
    "sap": read_sap,
    WEBDATASET: read_webdataset,
    "parquet": read_parquet,
    "openslr": read_openslr,
    "hf": read_hf,
    "sidecars": read_sidecars,
    "kaldi": read_kaldi,
    "lhotse": read_lhotse,
}


def corpus_root(corpus: str, location: str) -> str:
    """The root that the paths of a manifest are relative to: the location itself, or a cache for a Hugging Face dataset by name.

    Raises:
        ValueError: an unknown format, no such folder, or an address where nothing can be read.
    """
    if corpus not in FORMATS:
        raise ValueError(f"corpus={corpus!r}: must be one of {', '.join(FORMATS)}")
    if corpus == "hf":
        return hf_root(location)
    if is_address(location) and (fault := address_fault(location)):
        raise ValueError(f"dataset_root={location}: {fault}")
    if not is_address(location) and not os.path.isdir(location):
        raise ValueError(f"dataset_root={location!r}: no such folder")
    return location


__all__ = ["FORMATS", "CorpusOptions", "Fault", "FoundUtterance", "Item", "Note", "Read", "corpus_root"]
