"""Tables of text, read strictly: every line is a row, a part of one that is said, or a fault with its number.

Divided by commas, tabs, semicolons or bars; UTF-8, UTF-16 or UTF-32. A quotation mark that nobody closes takes no other row with it.
"""

import codecs
import collections
import csv
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Generic, TextIO, TypeVar

from moe.audio.containers import is_recording

DELIMITERS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
HEAD_BYTES = 1024
MOST_LINES = 200  # of one quoted field
Chosen = TypeVar("Chosen")


@dataclass(slots=True)
class Row:
    """One row: its fields, or why there are none; `note` says what was decided in reading it."""

    line: int
    fields: list[str]
    fault: str = ""
    note: str = ""


class TextTable(Generic[Chosen]):
    """A table whose header has been read.

    Args:
        choose: gives what a header is good for; raises ValueError for one that is good for nothing.

    Attributes:
        header: names of the columns. chosen: what `choose` gave. notes: what was found out about the table.

    Raises:
        ValueError: there is no header, or it is good for nothing.
    """

    def __init__(self, file: BinaryIO, choose: Callable[[list[str]], Chosen]) -> None:
        text, encoding = _as_text(file)
        self._lines = _Lines(text)
        first = self._lines.next_filled()
        only = next((mark for mark in DELIMITERS if first.strip() == f"sep={mark}"), None)  # Excel's own first line
        first = self._lines.next_filled() if only else first
        self.delimiter, self.header, self.chosen = _header(first, choose, only)
        self.notes = [f"the table is in {encoding}"] * (encoding != "utf-8")
        self.notes += [f"columns are divided by {DELIMITERS[self.delimiter]}"] * (self.delimiter != ",")

    def rows(self, audio: str) -> Iterator[Row]:
        """Every row; `audio` is the column whose values tell a row from the text of a quoted field."""
        place, n_columns = self.header.index(audio), len(self.header)
        for line in self._lines:
            number, text = self._lines.number, line.rstrip("\r\n")
            if "\0" in text:
                row = Row(number, [], "holds NUL characters: the file is damaged here")
            elif '"' in text:
                row = self._quoted(number, line, place)
            elif text:
                row = Row(number, text.split(self.delimiter))
            else:
                continue
            if not row.fault and len(row.fields) > n_columns:
                row.fault = (
                    f"{len(row.fields)} fields where the header names {n_columns}: is a {self.delimiter!r} in a text not quoted?"
                )
            if row.fault or any(row.fields):
                yield row

    def _quoted(self, number: int, line: str, place: int) -> Row:
        """A row with quotation marks, over as many lines as its quoted fields run, where none of them is a row of its own."""
        taken, fields, is_row = [line], _parse(line, self.delimiter), self._looks_like_row(line, place)
        while fields is None and len(taken) < MOST_LINES and (following := self._lines.take()) is not None:
            taken.append(following)
            fields = _parse("".join(taken), self.delimiter) if '"' in following else None
            if self._looks_like_row(following, place, line) and (is_row or fields is None):
                fields = None
                break
        if fields:
            return Row(number, fields, note="a quoted field runs over line ends" if len(taken) > 1 else "")
        self._lines.give_back(taken[1:])
        return self._literally(number, line)

    def _literally(self, number: int, line: str) -> Row:
        fields = line.rstrip("\r\n").split(self.delimiter)
        if len(fields) == len(self.header):
            return Row(number, fields, note="a quotation mark that opens or closes no field is taken as text")
        return Row(
            number,
            fields,
            f"a quotation mark is not closed, and without it there are {len(fields)} fields, not {len(self.header)}",
        )

    def _looks_like_row(self, line: str, place: int, before: str = "") -> bool:
        """Whether a line has a recording where the table has it, or as many fields as the header in a table of other names."""
        fields = line.rstrip("\r\n").split(self.delimiter)
        if len(fields) <= max(place, 1):
            return False
        return _names_recording(fields[place]) or (
            bool(before) and len(fields) == len(self.header) and not self._looks_like_row(before, place)
        )


class _Lines:
    """Lines with their numbers, of which some can be given back."""

    def __init__(self, lines: TextIO) -> None:
        self._source, self._waiting, self.number = lines, collections.deque[str](), 0

    def __iter__(self) -> Iterator[str]:
        while (line := self.take()) is not None:
            yield line

    def take(self) -> str | None:
        line = self._waiting.popleft() if self._waiting else next(self._source, None)
        self.number += line is not None
        return line

    def give_back(self, lines: list[str]) -> None:
        self._waiting.extendleft(reversed(lines))
        self.number -= len(lines)

    def next_filled(self) -> str:
        return next((line for line in self if line.strip()), "")


def as_text(file: BinaryIO) -> TextIO:
    """The lines of a file whose encoding is found out; what is no UTF-8 is kept as lone surrogates, see `is_undecodable`."""
    return _as_text(file)[0]


def is_undecodable(text: str) -> bool:
    """Whether bytes that are no UTF-8 were in it."""
    return not text.isascii() and any("\udc80" <= character <= "\udcff" for character in text)


NOT_UTF8 = "is not UTF-8; convert the table, for example from Windows' encoding: iconv -f WINDOWS-1252 -t UTF-8"


def _as_text(file: BinaryIO) -> tuple[TextIO, str]:
    encoding = _encoding(file.read(HEAD_BYTES))
    file.seek(0)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(file, encoding, errors, newline=""), encoding.removesuffix("-sig")


def _encoding(head: bytes) -> str:
    marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
    first = head[:2].find(0) if len(head) > 1 else -1  # a header begins with a Latin letter: a NUL later on is damage
    return marked or {0: "utf-16-be", 1: "utf-16-le"}.get(first, "utf-8")


def _header(line: str, choose: Callable[[list[str]], Chosen], only: str | None) -> tuple[str, list[str], Chosen]:
    """The delimiter with which the header is good for something, its names and what it is good for."""
    most, fault = 0, ValueError("the first line is no header")
    for delimiter in [only] if only else DELIMITERS:
        names = [name.strip() for name in _parse(line, delimiter) or line.rstrip("\r\n").split(delimiter)]
        try:
            return delimiter, names, choose(names)
        except ValueError as error:
            if len(names) > most:
                most, fault = len(names), error
    raise fault


def _names_recording(field: str) -> bool:
    return is_recording(field.strip('" '))


def _parse(text: str, delimiter: str) -> list[str] | None:
    """The fields of one row; None where its quotation marks do not pair."""
    try:
        rows = list(csv.reader([text], delimiter=delimiter, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
