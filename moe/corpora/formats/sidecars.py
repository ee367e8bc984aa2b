"""Recordings with their transcript beside them: `a.wav` with `a.txt`, `a.lab` or Praat's `a.TextGrid`.

The id is the path without its ending; the speaker is what `speaker_pattern` finds in it. A label file that holds times, as HTK's do, is
no transcript.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from moe.audio.containers import is_recording
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Note, Read
from moe.corpora.formats.inventory import Inventory, take_inventory
from moe.corpora.formats.split_names import split_of_folder
from moe.corpora.formats.text_tables import as_text, is_undecodable
from moe.corpora.formats.textgrid import transcript_of_textgrid
from moe.corpora.locations import Root, open_file
from moe.corpora.names import canonical

ENDINGS = (".txt", ".lab", ".textgrid")  # in this order where a recording has several
MAX_TEXT_BYTES = 1 << 20
_TIMED = re.compile(r"\d+(\.\d+)?\s+\d+(\.\d+)?\s+\S+")  # HTK: start, end, label
_ABOUT = re.compile(r"(?i)(readme|licen[cs]e|notice|changelog|about|speakers?)\b")  # texts about a corpus
_SAMPLES = re.compile(r"0 (\d{4,}) (?=\S)")  # TIMIT: first and last sample before the words


def read_sidecars(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read every recording below the root with the text beside it.

    Raises:
        ValueError: no recording has a text beside it.
    """
    inventory = take_inventory(root)
    beside = transcripts_beside(root, inventory)
    recordings = [name for name in inventory.files if is_recording(name)]
    if not any(_stem(name) in beside.texts for name in recordings):
        raise ValueError(f"dataset_root={str(root)!r}: no recording has a transcript beside it ({', '.join(ENDINGS)})")
    yield from inventory.remarks(lambda name: is_recording(name) or name.lower().endswith(ENDINGS))
    n_alike = Counter(map(_stem, recordings))
    for name in recordings:
        own_id = posixpath.splitext(name)[0] if n_alike[_stem(name)] == 1 else name
        yield beside.complete(FoundUtterance(own_id, name, split=split_of_folder(posixpath.dirname(name))))
    yield from beside.remarks({_stem(name) for name in recordings})


@dataclass
class Sidecars:
    """The texts beside recordings, by canonical path without the ending."""

    root: Root
    texts: dict[str, list[str]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)

    def complete(self, found: FoundUtterance) -> FoundUtterance:
        """An utterance with its transcript, None where there is none."""
        texts = self.texts.get(_stem(found.audio), [])
        if len(texts) > 1:
            self.notes.append(
                Note(f"of several texts beside a recording the {posixpath.splitext(texts[0])[1]} is taken", texts[0])
            )
        try:
            return replace(found, transcript=self._read(texts[0]) if texts else None)
        except (OSError, ValueError) as error:
            return replace(found, fault=found.fault or ("missing_transcript", f"{texts[0]}: {error}"))

    def remarks(self, recordings: set[str]) -> Iterator[Item]:
        """The texts read, what was decided, and texts that no recording lies beside."""
        yield from self.notes
        for stem, names in self.texts.items():
            yield from map(Read, names)
            if stem not in recordings and not _ABOUT.match(posixpath.basename(names[0])):
                yield Fault(names[0], "missing_file", "a transcript without a recording beside it")

    def _read(self, name: str) -> str:
        with open_file(self.root, name) as file:
            text = as_text(file).read(MAX_TEXT_BYTES + 1)
        if len(text) > MAX_TEXT_BYTES:
            raise ValueError("too long for a transcript")
        if is_undecodable(text):
            raise ValueError("is not UTF-8")
        if name.lower().endswith(".textgrid"):
            return transcript_of_textgrid(text)
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if samples := _SAMPLES.match(lines[0]) if len(lines) == 1 else None:
            self.notes.append(Note("two numbers of samples before the words are no part of a transcript", name))
            return lines[0][samples.end() :]
        if lines and name.lower().endswith(".lab") and all(map(_TIMED.match, lines)):
            raise ValueError("holds times and labels, not a transcript")
        return "\n".join(lines)


def transcripts_beside(root: Root, inventory: Inventory) -> Sidecars:
    """What texts there are, the first of `ENDINGS` first."""
    beside = Sidecars(root)
    for ending in ENDINGS:
        for name in inventory.ending(ending):
            beside.texts.setdefault(_stem(name), []).append(name)
    return beside


def _stem(name: str) -> str:
    return canonical(posixpath.splitext(name)[0])
