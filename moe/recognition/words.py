"""A word of a transcript with its times."""

import dataclasses
from collections.abc import Iterator, Sequence


@dataclasses.dataclass(frozen=True)
class Word:
    """A word with its start and end in seconds from the start of what was decoded, and the geometric mean of its tokens' probabilities."""

    word: str
    start_s: float
    end_s: float
    confidence: float


def spread(words: Sequence[Word]) -> tuple[Word, ...]:
    """The words of a segment, each with a time of its own: those that an alignment puts at one moment share what is around it by letters.

    Args:
        words: in order, their times too.

    Returns:
        none where all are at one moment, of which nothing is known.
    """
    runs, waiting = list[list[Word]](), list[Word]()
    for word in words:
        waiting.append(word)
        if word.end_s > waiting[0].start_s:
            runs.append(waiting)
            waiting = []
    if waiting and runs:
        runs[-1] += waiting
    return tuple(word for run in runs for word in _shared(run))


def _shared(run: Sequence[Word]) -> Iterator[Word]:
    """The words of a run, which share its time by their letters."""
    start_s, total_s, n_letters, done = run[0].start_s, run[-1].end_s - run[0].start_s, sum(len(word.word) for word in run), 0
    for word in run:
        until = done + len(word.word)
        yield dataclasses.replace(
            word,
            start_s=round(start_s + total_s * done / n_letters, 3),
            end_s=round(start_s + total_s * until / n_letters, 3),
        )
        done = until
