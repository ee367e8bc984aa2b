"""A folder with audio and a table: `manifest.csv` (path, transcript, speaker, group, …) or `metadata.csv` (file_name, …).

Audiofolder may keep one `metadata.csv` per split folder; the folder's name is then the split of rows that name none. A table may as well
be `.tsv` or `.jsonl`. A folder without a table is read as Kaldi's or lhotse's where it holds their files, else by the texts beside the audio.
"""

import json
import posixpath
from collections.abc import Iterable, Iterator, Set
from typing import Any

from moe.corpora.formats.columns import Columns
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Note, Read
from moe.corpora.formats.inventory import Inventory, take_inventory
from moe.corpora.formats.kaldi import SCRIPT, read_kaldi
from moe.corpora.formats.lhotse import MANIFESTS, read_lhotse
from moe.corpora.formats.sidecars import read_sidecars, transcripts_beside
from moe.corpora.formats.split_names import split_of_folder
from moe.corpora.formats.text_tables import NOT_UTF8, Row, TextTable, is_undecodable
from moe.corpora.locations import Root, inside, open_file

TABLES = tuple(f"{name}.{kind}" for name in ("manifest", "metadata") for kind in ("csv", "tsv", "jsonl"))
TO_RENAME = (".csv", ".tsv", ".jsonl")
TO_CONVERT = (
    ".xlsx",
    ".xls",
    ".ods",
    ".json",
    ".csv.gz",
    ".tsv.gz",
    ".jsonl.gz",
    ".zip",
)  # may hold a table, but none that is read


def read_folder(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read every table of a folder corpus.

    Raises:
        ValueError: there is neither a table nor another source of transcripts, or the first table has no audio column.
    """
    inventory = take_inventory(root)
    tables = [name for name in inventory.files if posixpath.basename(name).lower() in TABLES]
    if not tables:
        yield from _without_table(root, options, inventory)
        return
    at_root = [name for name in tables if name.lower().startswith("manifest.") and "/" not in name]
    yield from inventory.remarks(lambda name: name.lower().endswith(TABLES), searched=not at_root)
    for table in at_root or tables:
        yield Read(table)
        read = _read_lines if table.lower().endswith(".jsonl") else _read_table
        try:
            yield from read(root, table, options, inventory)
        except (OSError, UnicodeError) as error:
            yield Fault(table, "bad_metadata", f"{type(error).__name__}: {error}")


def _without_table(root: Root, options: CorpusOptions, inventory: Inventory) -> Iterator[Item]:
    names = {posixpath.basename(name) for name in inventory.files}
    for mark, read, kind in ((SCRIPT, read_kaldi, "a Kaldi data folder"), (MANIFESTS, read_lhotse, "a lhotse manifest")):
        if any(name.endswith(mark) if isinstance(mark, str) else name.endswith(tuple(mark)) for name in names):
            yield Note(f"there is no manifest.csv or metadata.csv: read as {kind}")
            yield from read(root, options)
            return
    try:
        yield Note("there is no manifest.csv or metadata.csv: transcripts are the texts beside the recordings")
        yield from read_sidecars(root, options)
    except ValueError as error:
        hint = "".join(f"; {name} is {what}" for name, what in inventory.dead.items() if name.lower().endswith(TABLES))
        hint += _other_table(inventory.files)
        raise ValueError(f"dataset_root={str(root)!r}: holds none of {', '.join(TABLES)}{hint}; {error}") from error


def _other_table(files: Iterable[str]) -> str:
    """What to do with a table of another name or form, where there is one."""
    for endings, what in ((TO_RENAME, "name it {}"), (TO_CONVERT, "save it as {}, which is read")):
        for name in (name for name in files if name.lower().endswith(endings)):
            ending = posixpath.splitext(name)[1].lower() if endings == TO_RENAME else ".csv"
            return f"; there is {name}: {what.format('manifest' + ending)}"
    return ""


def _read_table(root: Root, table: str, options: CorpusOptions, inventory: Inventory) -> Iterator[Item]:
    with open_file(root, table) as file:
        read = TextTable(file, lambda names: Columns.of(names, options, table, required=("audio",)))
        header, reader = read.header, _Rows(root, table, read.chosen, inventory)
        yield from (Note(note, table) for note in [*read.notes, *read.chosen.notes, *reader.notes])
        for row in read.rows(read.chosen.audio):
            place = f"{table}:{row.line}"
            if row.note:
                yield Note(row.note, place)
            if row.fault:
                yield Fault(place, "bad_row", row.fault)
            elif (further := _second_header(row, header, reader.columns, options, place)) is not None:
                header, reader = row.fields, _Rows(root, table, further, inventory)
                yield Note("the header comes again, or another one: rows below go by it", place)
            else:
                short = f"{len(row.fields)} fields where the header names {len(header)}" if len(row.fields) < len(header) else ""
                yield reader.found(dict(zip(header, row.fields, strict=False)), place, short)


def _second_header(row: Row, header: list[str], columns: Columns, options: CorpusOptions, place: str) -> Columns | None:
    """The columns of a row that is a header itself."""
    place_of_audio = header.index(columns.audio)
    value = row.fields[place_of_audio] if len(row.fields) > place_of_audio else ""
    if "." in value or value != value.strip() or not value.isidentifier():
        return None  # a path, in nearly every row
    try:
        return Columns.of(row.fields, options, place)
    except ValueError:
        return None


def _read_lines(root: Root, table: str, options: CorpusOptions, inventory: Inventory) -> Iterator[Item]:
    """A table of one JSON object a line; a line may have columns of its own."""
    reader = None
    with open_file(root, table) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{table}:{number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
                if not isinstance(row, dict):
                    raise ValueError("not an object")
            except (ValueError, RecursionError) as error:
                yield Fault(place, "bad_row", f"a line is to hold one whole JSON object: {error}")
                continue
            if reader is None or set(row) - reader.known:
                reader = _Rows(root, table, Columns.of(row, options, place, required=("audio",)), inventory, set(row))
                yield from (Note(note, table) for note in [*reader.columns.notes, *reader.notes])
            yield reader.found(row, place)


class _Rows:
    """Turns the rows below one header into utterances.

    Attributes:
        notes: what is to be said of the transcripts.
    """

    def __init__(self, root: Root, table: str, columns: Columns, inventory: Inventory, known: Set[str] = frozenset()) -> None:
        self.root, self.columns, self.known = root, columns, known
        self.folder, self.split = posixpath.dirname(table), split_of_folder(posixpath.dirname(table))
        self.beside = transcripts_beside(root, inventory) if columns.roles["transcript"] is None else None
        self.notes: list[str] = []
        if self.beside is not None:
            if not self.beside.texts:
                Columns.of([], CorpusOptions(), table, required=("transcript",))
            self.notes.append("there is no column of transcripts: they are the texts beside the recordings")

    def found(self, row: dict[str, Any], place: str, short: str = "") -> FoundUtterance | Fault:
        """One row; `short` says what it lacks."""
        path = row.get(self.columns.audio)
        if not isinstance(path, str) or not path.strip():
            return Fault(place, "bad_row", short or "no audio path")
        if any(is_undecodable(value) for value in row.values() if isinstance(value, str)):
            return Fault(place, "bad_row", NOT_UTF8)
        path = path if path.startswith("/") or not self.folder else posixpath.join(self.folder, path)
        audio = inside(self.root, path)
        reason = "bad_row" if self._has_transcript(row) else "missing_transcript"
        fault = (reason, f"{place}: {short}") if short and (reason == "bad_row" or self.beside is None) else None
        found = self.columns.found(row, audio, None, audio, self.split, fault)
        return self.beside.complete(found) if self.beside is not None else found

    def _has_transcript(self, row: dict[str, Any]) -> bool:
        return self.columns.roles["transcript"] in row
