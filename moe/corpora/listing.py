"""What a corpus format finds, as one table: the draft of a manifest before any audio is read.

Built in pieces, so that a million utterances need no million Python objects at a time; sorted, so that the order in which files
were found has no part in what follows.
"""

import dataclasses
import itertools
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from moe.corpora.formats.interface import SHARD_SPEAKER, SHARDS
from moe.corpora.formats.inventory import take_inventory
from moe.corpora.formats.table import FORMATS, CorpusOptions, Fault, FoundUtterance, Item, Read, corpus_root
from moe.corpora.locations import Root
from moe.corpora.manifest import UNKNOWN
from moe.corpora.names import canonical
from moe.corpora.naming import merge_forms, tell_apart

PIECE_ROWS = 1 << 16
TEXT = ("utterance_id", "audio", "member", "transcript", "speaker", "etiology", "split", "language")


@dataclass(frozen=True)
class Listing:
    """A corpus as its files tell.

    Attributes:
        root: what the paths are relative to.
        utterances: columns of `FoundUtterance` (reason and detail in place of its fault) and the corpus's further columns, sorted by id.
        faults: file, reason, detail, n_lost of what could not be read, sorted.
        notes: what was decided in reading and what means nothing to the format, a sentence each.
    """

    root: Root
    utterances: pd.DataFrame
    faults: pd.DataFrame
    notes: tuple[str, ...] = ()


def list_corpus(corpus: str, location: str, options: CorpusOptions) -> Listing:
    """List a corpus.

    Args:
        corpus: a name in `FORMATS`. location: folder or address of the corpus, or name of a Hugging Face dataset.

    Raises:
        ValueError: an unknown format, no such folder, a wrong `speaker_pattern`, or a corpus without one utterance.
    """
    root = options.root_of(corpus_root(corpus, location))
    found = _Found(FORMATS[corpus](root if corpus != "hf" else location, options))
    utterances = _table(iter(found))
    if not len(utterances):
        raise ValueError(f"dataset_root={location!r}: the corpus has no utterance{_first_fault(found.faults)}")
    notes = found.said() + ([] if corpus == "hf" else _unread(root, utterances, found))
    utterances = _fill(tell_apart(utterances, notes), options)
    merge_forms(utterances, ("speaker", "etiology"), notes)
    return Listing(root, _in_order(utterances), _fault_table(found.faults), tuple(notes))


class _Found:
    """Iterates over the utterances that a format finds and keeps what else it gives."""

    def __init__(self, items: Iterable[Item]) -> None:
        self._items = items
        self.faults: list[Fault] = []
        self.read: set[str] = set()
        self._notes: dict[str, tuple[int, str]] = {}  # text → how often, first place

    def __iter__(self) -> Iterator[FoundUtterance]:
        for item in self._items:
            if isinstance(item, FoundUtterance):
                yield item if _is_unicode(item) else _made_unicode(item)
            elif isinstance(item, Fault):
                self.faults.append(Fault(_as_unicode(item.file), _as_unicode(item.reason), _as_unicode(item.detail), item.n_lost))
            elif isinstance(item, Read):
                self.read.add(item.file)
            else:
                n, first = self._notes.get(item.text, (0, item.place))
                self._notes[item.text] = (n + 1, min(first, item.place))

    def said(self) -> list[str]:
        """Every kind of note once, with how often and where first."""
        places = {
            text: f" ({n} times, first {first})" if n > 1 else f" ({first})" if first else ""
            for text, (n, first) in self._notes.items()
        }
        return [_as_unicode(text + place) for text, place in places.items()]


def _unread(root: Root, utterances: pd.DataFrame, found: _Found) -> list[str]:
    """What lies below the root and was neither read nor named by an utterance or a fault, by folder and ending."""
    read = found.read | set(utterances["audio"].dropna()) | {fault.file.partition(":")[0] for fault in found.faults}
    groups: dict[tuple[str, str], list[str]] = {}
    left = [name for name in take_inventory(root).files if name not in read]
    forms = {canonical(name) for name in read} if left else set()
    for name in left:
        if canonical(name) not in forms:
            ending = posixpath.splitext(name)[1].lower()
            groups.setdefault((name.partition("/")[0] if "/" in name else "", ending), []).append(name)
    return [
        f"not read: {len(names)} files *{ending}{f' in {folder}/' if folder else ''} (first {names[0]})"
        for (folder, ending), names in groups.items()
    ]


def _is_unicode(item: FoundUtterance) -> bool:
    """Whether all texts can be written as UTF-8; JSON and file names may hold lone surrogates."""
    texts = (
        item.utterance_id,
        item.audio,
        item.member,
        item.transcript,
        item.speaker,
        item.etiology,
        item.split,
        item.language,
        item.place_id,
    )
    try:
        for text in (*texts, *item.further, *item.further.values()):
            if isinstance(text, str):
                text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _made_unicode(item: FoundUtterance) -> FoundUtterance:
    cleaned = {name: _as_unicode(getattr(item, name)) for name in (*TEXT, "place_id")}
    further = {_as_unicode(name): _as_unicode(value) for name, value in item.further.items()}
    return dataclasses.replace(
        item, **cleaned, further=further, fault=item.fault or ("bad_metadata", "holds text that is not Unicode")
    )


def _as_unicode(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _table(found: Iterator[FoundUtterance]) -> pd.DataFrame:
    pieces = []
    while piece := list(itertools.islice(found, PIECE_ROWS)):
        pieces.append(_piece(piece))
    return _one_type_per_column(pd.concat(pieces, ignore_index=True)) if pieces else pd.DataFrame()


def _piece(found: list[FoundUtterance]) -> pd.DataFrame:
    columns = {name: pd.array([getattr(item, name) for item in found], dtype="str") for name in (*TEXT, "place_id")}
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
    for name in table.select_dtypes(object).columns:
        table[name] = pd.array([None if pd.isna(value) else str(value) for value in table[name]], dtype="str")
    return table


def _fill(table: pd.DataFrame, options: CorpusOptions) -> pd.DataFrame:
    if options.speaker_pattern is not None:
        matched = _matches(table["utterance_id"], options.speaker_pattern)
        table["speaker"] = table["speaker"].where(table["speaker"] != "", matched)
    if options.unknown_speakers == SHARDS:
        of_shards = (table["speaker"].str.strip() == "") & table["member"].notna()
        table["speaker"] = table["speaker"].where(~of_shards, SHARD_SPEAKER + table["audio"])
    for name, value in (("speaker", UNKNOWN), ("etiology", UNKNOWN), ("language", options.language)):
        table[name] = table[name].where((table[name].str.strip() != "") & table[name].notna(), value)
    return table


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Sorted by id, then by whatever else differs; by Arrow, since pandas makes an object of every string to sort it."""
    keys = pa.table({name: pa.array(table[name]) for name in TEXT})
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in TEXT])
    return table.take(order.to_numpy()).reset_index(drop=True)


def _matches(ids: pd.Series, pattern: str) -> pd.Series:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"speaker_pattern={pattern!r}: not a regular expression ({error})") from error
    return ids.str.extract(f"({pattern})" if compiled.groups == 0 else pattern, expand=True)[0].fillna("")


def _fault_table(faults: list[Fault]) -> pd.DataFrame:
    rows = sorted(((fault.file, fault.reason, fault.detail, fault.n_lost) for fault in faults), key=_by_line)
    columns = dict(zip(("file", "reason", "detail", "n_lost"), zip(*rows, strict=True) if rows else [()] * 4, strict=True))
    return pd.DataFrame(
        {name: pd.array(values, dtype="int64" if name == "n_lost" else "str") for name, values in columns.items()}
    )


def _by_line(row: tuple[str, str, str, int]) -> tuple[str, int, tuple]:
    """`manifest.csv:9` before `manifest.csv:10`."""
    file, _, line = row[0].rpartition(":")
    return (file, int(line), row) if file and line.isdecimal() else (row[0], 0, row)


def _first_fault(faults: list[Fault]) -> str:
    return f" ({len(faults)} files or rows could not be read, first {faults[0].file}: {faults[0].detail})" if faults else ""
