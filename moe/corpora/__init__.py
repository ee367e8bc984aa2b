"""The formats a corpus may come in. A new one is a file with one function, `(root, options) -> Iterator[Found | Fault]`, and an entry here."""

from collections.abc import Callable, Iterator

from moe.corpora.folder import read_folder
from moe.corpora.found import CorpusOptions, Fault, Found
from moe.corpora.sap import read_sap

FORMATS: dict[str, Callable[[str, CorpusOptions], Iterator[Found | Fault]]] = {
    "folder": read_folder,
    "synthetic": read_folder,  # `synthesize` writes a folder corpus
    "sap": read_sap,
}

__all__ = ["FORMATS", "CorpusOptions", "Fault", "Found"]
