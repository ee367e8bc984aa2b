"""What a corpus format finds, as one table: the draft of a manifest before any audio is read.

Built in pieces, so that a million utterances need no million Python objects at a time; sorted, so that the order in which files were found
has no part in what follows.
"""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pandas as pd

from moe.corpora import FORMATS, CorpusOptions, Fault, Found, corpus_root
from moe.manifest import UNKNOWN

PIECE_ROWS = 1 << 16
TEXT = ("utterance_id", "audio", "member", "transcript", "speaker", "etiology", "split", "language")
ORDER = ["utterance_id", "audio", "member", "transcript"]


@dataclass(frozen=True)
class Listing:
    """A corpus as its files tell.

    Attributes:
        root: what the paths are relative to.
        utterances: columns of `Found` (reason and detail in place of its fault) and the corpus's further columns, sorted by id.
        faults: file, reason, detail of what could not be read, sorted.
    """

    root: str
    utterances: pd.DataFrame
    faults: pd.DataFrame


def list_corpus(corpus: str, location: str, options: CorpusOptions) -> Listing:
    """List a corpus.

    Args:
        corpus: a name in `FORMATS`. location: folder or address of the corpus, or name of a Hugging Face dataset.
    Raises:
        ValueError: an unknown format, no such folder, a wrong `speaker_pattern`, or a corpus without one utterance.
    """
    root = corpus_root(corpus, location)
    faults: list[Fault] = []
    utterances = _table(_without_faults(FORMATS[corpus](location, options), faults))
    if not len(utterances):
        raise ValueError(f"corpus_dir={location!r}: the corpus has no utterance{_first_fault(faults)}")
    utterances = _fill(utterances, options).sort_values(ORDER, kind="stable", ignore_index=True, na_position="first")
    return Listing(root, utterances, _fault_table(faults))


def _without_faults(found: Iterable[Found | Fault], faults: list[Fault]) -> Iterator[Found]:
    for item in found:
        if isinstance(item, Fault):
            faults.append(item)
        else:
            yield item


def _table(found: Iterator[Found]) -> pd.DataFrame:
    pieces = []
    while piece := list(itertools.islice(found, PIECE_ROWS)):
        pieces.append(_piece(piece))
    return _one_type_per_column(pd.concat(pieces, ignore_index=True)) if pieces else pd.DataFrame()


def _piece(found: list[Found]) -> pd.DataFrame:
    columns = {name: pd.array([getattr(item, name) for item in found], dtype="str") for name in TEXT}
    columns["severity"] = pd.array([item.severity for item in found], dtype="float64")
    for place, name in enumerate(("reason", "detail")):
        columns[name] = pd.array([item.fault[place] if item.fault else None for item in found], dtype="str")
    further = dict.fromkeys(name for item in found for name in item.further)
    for name in further:
        columns[name] = _column([item.further.get(name) for item in found])
    return pd.DataFrame(columns)


def _column(values: list) -> pd.api.extensions.ExtensionArray:
    if all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values):
        return pd.array(values, dtype="float64") if any(value is not None for value in values) else pd.array(values, dtype="str")
    return pd.array([None if value is None else str(value) for value in values], dtype="str")


def _one_type_per_column(table: pd.DataFrame) -> pd.DataFrame:
    for name in table.columns[table.dtypes == object]:
        table[name] = pd.array([None if pd.isna(value) else str(value) for value in table[name]], dtype="str")
    return table


def _fill(table: pd.DataFrame, options: CorpusOptions) -> pd.DataFrame:
    if options.speaker_pattern is not None:
        matched = _matches(table["utterance_id"], options.speaker_pattern)
        table["speaker"] = table["speaker"].where(table["speaker"] != "", matched)
    for name, value in (("speaker", UNKNOWN), ("etiology", UNKNOWN), ("language", options.language)):
        table[name] = table[name].where((table[name] != "") & table[name].notna(), value)
    return table


def _matches(ids: pd.Series, pattern: str) -> pd.Series:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"speaker_pattern={pattern!r}: not a regular expression ({error})") from error
    return ids.str.extract(f"({pattern})" if compiled.groups == 0 else pattern, expand=True)[0].fillna("")


def _fault_table(faults: list[Fault]) -> pd.DataFrame:
    rows = sorted((fault.file, fault.reason, fault.detail) for fault in faults)
    return pd.DataFrame(rows, columns=["file", "reason", "detail"], dtype="str")


def _first_fault(faults: list[Fault]) -> str:
    return f" ({len(faults)} files could not be read, first {faults[0].file}: {faults[0].detail})" if faults else ""
