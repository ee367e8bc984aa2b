"""Cues of subtitles: what is said at once on a screen, two lines and seven seconds at most.

The bounds are those of the BBC's and Netflix's guides for subtitles. A cue ends at a pause and at the end of a sentence where there is
one; words have their own times where the recogniser gives them, else a segment's time is shared among its words by their letters.
"""

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator

from moe.recognition.recognizer import Segment, Transcript

WIDTH, LINES, MOST_S = 42, 2, 7.0  # characters of a line, lines of a cue, seconds of a cue
SHORTEST_S = 0.1  # seconds that a cue is shown at least where words have times
PAUSE_S = 1.0  # after which a new cue begins
SENTENCE_END = (".", "!", "?", "。", "！", "？", "।")
_WORD = re.compile(rf"\S{{1,{WIDTH}}}\s*")


@dataclasses.dataclass(frozen=True)
class Cue:
    """A text of at most two lines, with its start and end in seconds."""

    start_s: float
    end_s: float
    text: str


def cues(transcript: Transcript) -> list[Cue]:
    """The cues of a transcript, in order; together they hold all of its text."""
    return [cue for segment in transcript.segments for cue in _of_segment(segment)]


def _of_segment(segment: Segment) -> list[Cue]:
    """By the times of its words; by its own time where these would let a cue flash by."""
    found = list(_grouped(_pieces(segment)))
    if any(cue.end_s - cue.start_s < SHORTEST_S for cue in found):
        return list(_grouped(_shared(segment.text, segment.start_s, segment.end_s)))
    return found


def _grouped(pieces: Iterable[Cue]) -> Iterator[Cue]:
    waiting: list[Cue] = []
    for piece in pieces:
        if waiting and not _fits(waiting, piece):
            yield _joined(waiting)
            waiting = []
        waiting.append(piece)
    if waiting:
        yield _joined(waiting)


def _pieces(segment: Segment) -> Iterable[Cue]:
    """Words with their times and the space behind them; parts of a word that is longer than a line."""
    if segment.words and " ".join(word.word for word in segment.words) == segment.text:
        return [piece for word in segment.words for piece in _shared(word.word + " ", word.start_s, word.end_s)]
    return _shared(segment.text, segment.start_s, segment.end_s)


def _shared(text: str, start_s: float, end_s: float) -> Iterator[Cue]:
    """The words of a text, each with its share of the time by its characters."""
    rate, done = (end_s - start_s) / max(1, len(text)), 0
    for part in _WORD.findall(text):
        yield Cue(start_s + rate * done, start_s + rate * (done + len(part)), part)
        done += len(part)


def _fits(waiting: list[Cue], piece: Cue) -> bool:
    text = "".join(each.text for each in [*waiting, piece])
    ended = waiting[-1].text.strip().endswith(SENTENCE_END) and len(text) > WIDTH
    paused = piece.start_s - waiting[-1].end_s > PAUSE_S
    return not (ended or paused) and len(_lines(text)) <= LINES and piece.end_s - waiting[0].start_s <= MOST_S


def _joined(pieces: list[Cue]) -> Cue:
    start_s = pieces[0].start_s
    return Cue(start_s, min(pieces[-1].end_s, start_s + MOST_S), "\n".join(_lines("".join(piece.text for piece in pieces))))


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text.strip(), WIDTH, break_on_hyphens=False)
