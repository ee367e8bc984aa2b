"""From a path to a text: repeats merged, blanks left out; when each word was said, and how surely. Greedy, the path is the best token of every output."""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from moe.recognition.words import Word
from moe.systems.wav2vec2_ctc.model import ctc_losses
from moe.systems.wav2vec2_ctc.vocabulary import BETWEEN_WORDS, BLANK, Vocabulary


@dataclasses.dataclass(frozen=True)
class Run:
    """A token that was written, the outputs from `start` to before `stop` that wrote it, and its best log-probability there."""

    token: int
    start: int
    stop: int
    logprob: float


def collapse(said: Tensor, path: Tensor | None = None) -> list[Run]:
    """What one utterance says: log-probabilities (T', V) → its tokens, repeats merged and blanks left out.

    Args:
        path: a token for every output, (T',); the most probable ones where none is given.
    """
    path = said.argmax(-1) if path is None else path.to(said.device)
    best = said.gather(-1, path[:, None])[:, 0].tolist()  # (T',)
    found, start = list[Run](), 0
    for token, group in itertools.groupby(path.tolist()):
        stop = start + len(list(group))
        if token != BLANK:
            found.append(Run(token, start, stop, max(best[start:stop])))
        start = stop
    return found


def words(runs: Sequence[Run], vocabulary: Vocabulary, output_s: float) -> list[Word]:
    """The words of an utterance, their times ± one output; one whose characters are all unknown is left out, as it is of the text."""
    found = []
    for run in _split(runs):
        text = vocabulary.decode([each.token for each in run])
        if text:
            confidence = math.exp(sum(each.logprob for each in run) / len(run))
            found.append(Word(text, round(run[0].start * output_s, 3), round(run[-1].stop * output_s, 3), confidence))
    return found


def scores(said: Tensor, n_outputs: Tensor, tokens: Sequence[Sequence[int]]) -> tuple[list[float], list[int]]:
    """Mean log-probability of each row's tokens, over all paths that write them, and their number; no tokens count as one.

    Args:
        said: log-probabilities, (B, T', V).
        n_outputs: outputs of each utterance, (B,).
    """
    rows = [torch.tensor(row, dtype=torch.long, device=said.device) for row in tokens]
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, N)
    totals = ctc_losses(said, n_outputs, labels, torch.tensor([len(row) for row in rows], device=said.device))
    counts = [max(1, len(row)) for row in rows]
    return [-total / count for total, count in zip(totals.tolist(), counts, strict=True)], counts


def _split(runs: Sequence[Run]) -> Iterator[list[Run]]:
    for between, part in itertools.groupby(runs, lambda run: run.token == BETWEEN_WORDS):
        if not between:
            yield list(part)
