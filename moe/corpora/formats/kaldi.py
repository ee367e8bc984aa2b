"""Kaldi data folders: `wav.scp`, `text`, `utt2spk`, maybe `segments`; https://kaldi-asr.org/doc/data_prep.html.

Every folder below the root that has a `wav.scp` is one; its name may be a split. Each further `utt2NAME` and `spk2NAME` is a column NAME
(`utt2lang`, `spk2gender`, `spk2etiology`). Commands are not run: those that only decode a file are read as that file, others are faults.
"""

import posixpath
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field

from moe.audio.containers import is_recording
from moe.audio.parts import Part
from moe.corpora.formats.columns import Columns
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Read
from moe.corpora.formats.inventory import take_inventory
from moe.corpora.formats.split_names import split_of_folder
from moe.corpora.formats.text_tables import as_text, is_undecodable
from moe.corpora.locations import Root, inside, open_file

SCRIPT, TEXT, SEGMENTS, CHANNELS = "wav.scp", "text", "segments", "reco2file_and_channel"
LISTS = ("utt2dur", "utt2num_frames", "utt2uniq")  # what follows from the others
DECODERS = {
    "flac": ("-c", "-d", "-s", "--decode", "--stdout", "--silent"),
    "sph2pipe": ("-f", "wav", "-p"),
    "sox": ("-t", "wav", "-"),
}
SHORT_NAMES = {"spk": "speaker", "lang": "language"}


def read_kaldi(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read every data folder.

    Raises:
        ValueError: there is no `wav.scp`.
    """
    inventory = take_inventory(root)
    folders = [posixpath.dirname(name) for name in inventory.files if posixpath.basename(name) == SCRIPT]
    if not folders:
        raise ValueError(f"dataset_root={str(root)!r}: holds no {SCRIPT}")
    yield from inventory.remarks(
        lambda name: posixpath.basename(name) in (SCRIPT, TEXT, SEGMENTS) or "2" in posixpath.basename(name), False
    )
    for folder in folders:
        names = [name for name in inventory.files if posixpath.dirname(name) == folder]
        data = _DataFolder(root, folder, names, options)
        yield from data.utterances()
        yield from data.faults
        yield from map(Read, names)


@dataclass
class _DataFolder:
    """One data folder with the files that lie in it."""

    root: Root
    folder: str
    names: list[str]
    options: CorpusOptions
    faults: list[Fault] = field(default_factory=list)

    def utterances(self) -> Iterator[FoundUtterance]:
        """Those of `segments` where there is one, else the recordings; texts of others are faults."""
        recordings, text, segments, channels = map(self._table, (SCRIPT, TEXT, SEGMENTS, CHANNELS))
        is_cut = self._path(SEGMENTS) in self.names
        parts = segments if is_cut else dict.fromkeys(recordings, "")
        columns = self._columns()
        roles = Columns.of(columns, self.options, self.folder or ".", required=())
        for utterance, part in parts.items():
            recording, *times = part.split() or [utterance]
            row = {name: table.get(utterance) for name, table in columns.items()}
            audio, member, fault = self._place(recordings.get(recording), times, channels.get(recording, ""))
            if is_cut and len(times) < 2:
                fault = fault or ("bad_row", f"{SEGMENTS}: a line is to hold utterance, recording, start and end")
            found = roles.found(row, audio, member, utterance, split_of_folder(self.folder), fault)
            yield FoundUtterance(**{name: getattr(found, name) for name in found.__slots__} | {"transcript": text.get(utterance)})
        for utterance in text.keys() - parts.keys():
            where = SEGMENTS if is_cut else SCRIPT
            self.faults.append(Fault(f"{self._path(TEXT)}: {utterance}", "missing_file", f"the utterance is not in {where}"))

    def _place(self, script: str | None, times: list[str], channel: str) -> tuple[str, str | None, tuple[str, str] | None]:
        """File and part of an utterance, or why there is none."""
        if script is None:
            return "", None, ("missing_file", f"the recording is not in {SCRIPT}")
        command = script.strip()
        path = _decoded_file(command) if command.endswith("|") else command
        if path is None:
            return "", None, ("missing_file", f"{SCRIPT} has a command, which is not run: {command}")
        try:
            part = _part(times, channel)
        except ValueError as error:
            return self._file(path), None, ("bad_row", f"{SEGMENTS}: {error}")
        return self._file(path), None if part is None else str(part), None

    def _file(self, path: str) -> str:
        """Relative paths start where Kaldi was started: the corpus root, else the data folder."""
        path = inside(self.root, path)
        beside = posixpath.join(self.folder, path)
        return beside if not path.startswith("/") and beside in self.names else path

    def _columns(self) -> dict[str, dict[str, str]]:
        """NAME of each `utt2NAME` and `spk2NAME` → utterance → value."""
        bases = [posixpath.basename(name) for name in self.names]
        columns = {_name(base): self._table(base) for base in bases if base.startswith("utt2") and base not in LISTS}
        speakers = columns.get("speaker", {})
        for base in bases:
            if base.startswith("spk2") and base != "spk2utt":
                values = self._table(base)
                columns.setdefault(
                    _name(base), {name: values[speaker] for name, speaker in speakers.items() if speaker in values}
                )
        return columns

    def _table(self, base: str) -> dict[str, str]:
        """First word of every line → the rest; a line that cannot be read, or whose first word comes again, is a fault."""
        path = self._path(base)
        table: dict[str, str] = {}
        if path not in self.names:
            return table
        with open_file(self.root, path) as file:
            for number, line in enumerate(as_text(file), start=1):
                key, _, value = line.strip().partition(" ") if "\t" not in line else line.strip().partition("\t")
                if not key:
                    continue
                if is_undecodable(line) or key in table:
                    why = f"{key!r} is there twice" if key in table else "is not UTF-8"
                    self.faults.append(Fault(f"{path}:{number}", "bad_row", why))
                else:
                    table[key] = value.strip()
        return table

    def _path(self, base: str) -> str:
        return posixpath.join(self.folder, base)


def _name(base: str) -> str:
    short = base.partition("2")[2]
    return SHORT_NAMES.get(short, short)


def _part(times: list[str], channel: str) -> Part | None:
    letter = channel.split()[-1].upper() if channel.split() else ""
    number = {"A": 0, "B": 1}.get(letter)
    if not times:
        return None if number is None else Part(channel=number)
    start, stop = map(float, times[:2])
    if not 0 <= start < (stop if stop > 0 else float("inf")):
        raise ValueError(f"{start:g} to {stop:g} is no part of a recording")
    return Part(start, stop if stop > 0 else None, number)  # −1: to the end


def _decoded_file(command: str) -> str | None:
    """The file that a command decodes without changing it, `flac -c -d -s FILE |`; None where it may do more."""
    try:
        program, *arguments = shlex.split(command.removesuffix("|"))
    except ValueError:
        return None
    allowed = DECODERS.get(posixpath.basename(program), ())
    files = [argument for argument in arguments if argument not in allowed]
    return files[0] if allowed and len(files) == 1 and is_recording(files[0]) else None
