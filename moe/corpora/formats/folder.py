"""A folder with audio and a table: `manifest.csv` (path, transcript, speaker, group, …) or `metadata.csv` (file_name, …).

Audiofolder may keep one `metadata.csv` per split folder; the folder's name is then the split of rows that name none.
"""

import csv
import posixpath
from collections.abc import Iterator

from moe.corpora.formats.columns import Columns
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance
from moe.corpora.formats.split_names import split_of_folder
from moe.corpora.locations import find_files, open_file

TABLES = ("manifest.csv", "metadata.csv")


def read_folder(root: str, options: CorpusOptions) -> Iterator[FoundUtterance | Fault]:
    """Read every table of a folder corpus.

    Raises:
        ValueError: there is no table, or the first has no audio or transcript column.
    """
    tables = [name for name in find_files(root, TABLES) if posixpath.basename(name) in TABLES]
    if "manifest.csv" in tables:
        tables = ["manifest.csv"]
    if not tables:
        raise ValueError(f"dataset_root={root!r}: holds neither manifest.csv nor metadata.csv")
    for table in tables:
        yield from _read_table(root, table, options)


def _read_table(root: str, table: str, options: CorpusOptions) -> Iterator[FoundUtterance | Fault]:
    folder = posixpath.dirname(table)
    with open_file(root, table) as file:
        lines = (line.decode("utf-8", errors="surrogateescape") for line in file)
        reader = csv.DictReader(_without_mark(lines))
        columns = Columns.of(_header(reader, table), options, table)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                yield Fault(f"{table}:{reader.line_num}", "bad_row", str(error))
                continue
            if row is None:
                return
            yield _read_row(row, columns, folder, f"{table}:{reader.line_num}")


def _header(reader: csv.DictReader, table: str) -> list[str]:
    try:
        return list(reader.fieldnames or [])
    except csv.Error as error:
        raise ValueError(f"{table}: the first line is no header ({error})") from error


def _read_row(row: dict[str | None, str | None], columns: Columns, folder: str, place: str) -> FoundUtterance | Fault:
    if None in row:
        return Fault(place, "bad_row", "more fields than the header names")
    path = row[columns.roles["audio"]]
    if not path:
        return Fault(place, "bad_row", "no audio path")
    if any(_undecodable(value) for value in row.values() if value):
        return Fault(place, "bad_row", "is not UTF-8")
    audio = posixpath.join(folder, path) if folder else path
    return columns.found(row, audio, None, audio, split_of_folder(folder))


def _undecodable(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _without_mark(lines: Iterator[str]) -> Iterator[str]:
    for index, line in enumerate(lines):
        yield line.removeprefix("\ufeff") if index == 0 else line
