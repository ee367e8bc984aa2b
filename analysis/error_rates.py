"""Error rates from the hypotheses table: counts per utterance first, one division last.

`count_errors` aligns every utterance once (jiwer) and keeps hits, substitutions, deletions and insertions of words, of
characters, which are code points, and of graphemes: a letter with its combining marks, as a reader counts (Unicode UAX #29). Every
WER and CER after that, overall or by group, is a ratio of sums of those columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import pandas as pd
import regex

from analysis.hypotheses import check_hypotheses, groups_of
from analysis.intervals import LEVEL, N_RESAMPLES, bootstrap_intervals, speaker_sums

EDITS = ("hits", "substitutions", "deletions", "insertions")
CHUNKS = {"equal": 0, "substitute": 1, "delete": 2, "insert": 3}  # jiwer's names in the order of EDITS
UNITS = ("word", "char", "grapheme")
RATE_NAMES = {"word": "wer", "char": "cer", "grapheme": "grapheme_cer"}
GRAPHEME = regex.compile(r"\X")
COUNT_COLUMNS = [f"{unit}_{edit}" for unit in UNITS for edit in EDITS]
FIRST = 0xE000  # of the characters that stand for graphemes; from here on none is a space, which jiwer would strip
SMALL_SPEAKERS = 5  # a group with fewer speakers, or fewer words, is flagged: its interval says little
SMALL_WORDS = 200


@dataclass(frozen=True)
class EditCounts:
    """Hits, substitutions, deletions and insertions of one unit (words, characters or graphemes); fractions where seeds were averaged."""

    hits: float
    substitutions: float
    deletions: float
    insertions: float

    @property
    def errors(self) -> float:
        """Substitutions, deletions and insertions together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def length(self) -> float:
        """Units in the references."""
        return self.hits + self.substitutions + self.deletions

    @property
    def rate(self) -> float:
        """Errors by reference length; may exceed 1; NaN where the references are empty."""
        return self.errors / self.length if self.length else float("nan")


@dataclass(frozen=True)
class ErrorCounts:
    """Counts of a set of utterances; `wer` and `cer` are ratios of sums."""

    words: EditCounts
    chars: EditCounts
    graphemes: EditCounts
    n_utterances: int

    @property
    def wer(self) -> float:
        """Word error rate; may exceed 1."""
        return self.words.rate

    @property
    def cer(self) -> float:
        """Character error rate (code points, spaces included); may exceed 1."""
        return self.chars.rate

    @property
    def grapheme_cer(self) -> float:
        """Grapheme error rate, spaces included; may exceed 1."""
        return self.graphemes.rate


def count_errors(table: pd.DataFrame) -> pd.DataFrame:
    """The hypotheses table with `word_hits` … `grapheme_insertions` per utterance.

    Also adds `n_words`, `n_chars`, `n_graphemes` (reference lengths) and `word_errors`, `char_errors`, `grapheme_errors`. An empty reference has length 0 and its
    insertions count. Spaces are characters.

    Raises:
        ValueError: see `check_hypotheses`.
    """
    check_hypotheses(table)
    references, hypotheses = table["reference"].tolist(), table["hypothesis"].tolist()
    words = _edits_per_utterance(jiwer.process_words(references, hypotheses).alignments)
    chars = _edits_per_utterance(jiwer.process_characters(references, hypotheses).alignments)
    coded, others = _as_characters(references, hypotheses)
    graphemes = _edits_per_utterance(jiwer.process_characters(coded, others).alignments)
    counts = pd.DataFrame(np.concatenate([words, chars, graphemes], axis=1), columns=COUNT_COLUMNS, index=table.index)
    for unit in UNITS:
        counts[f"n_{unit}s"] = counts[[f"{unit}_{edit}" for edit in EDITS[:3]]].sum(axis=1)
        counts[f"{unit}_errors"] = counts[[f"{unit}_{edit}" for edit in EDITS[1:]]].sum(axis=1)
    return pd.concat([table.drop(columns=[c for c in counts.columns if c in table.columns]), counts], axis=1)


def total_errors(counted: pd.DataFrame) -> ErrorCounts:
    """Sums over all rows of a counted table."""
    sums = {column: counted[column].sum().item() for column in COUNT_COLUMNS}
    words, chars, graphemes = (EditCounts(*(sums[f"{unit}_{edit}"] for edit in EDITS)) for unit in UNITS)
    return ErrorCounts(words, chars, graphemes, len(counted))


def clipped_errors(counted: pd.DataFrame, unit: str = "word") -> pd.Series:
    """Errors per utterance, at most its reference length, so that one looping hypothesis cannot outweigh many others.

    An empty reference has length 0: its insertions vanish under clipping.
    """
    return np.minimum(counted[f"{unit}_errors"], counted[f"n_{unit}s"])


def rates_by(
    counted: pd.DataFrame,
    column: str | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Error rates of each group of a counted table, groups sorted by name.

    Args:
        counted: result of `count_errors`.
        column: what to group by; None for one row named `all`. Rows without a value form the group `unknown`.

    Returns:
        columns group, n_utterances, n_speakers, n_words, hits, substitutions, deletions, insertions (words); wer, low, high
        (interval over speakers); cer, grapheme_cer and the three clipped (wer_clipped …), each with its own …_low and …_high; small.
    """
    clipped = {f"{unit}_clipped": clipped_errors(counted, unit) for unit in UNITS}
    groups = counted.assign(**clipped).groupby(groups_of(counted, column), observed=True)
    return pd.DataFrame([_group_row(group, rows, n_resamples, seed, level) for group, rows in groups])


def _group_row(group: str, rows: pd.DataFrame, n_resamples: int, seed: int, level: float) -> dict:
    total, n_speakers = total_errors(rows), rows["speaker"].nunique()
    counts = {"group": group, "n_utterances": len(rows), "n_speakers": n_speakers, "n_words": int(rows["n_words"].sum())}
    edits = {edit: getattr(total.words, edit) for edit in EDITS}
    sums = np.split(speaker_sums(rows, [name for unit in UNITS for name in _sides(unit)]), len(UNITS), axis=1)
    words, *others = (_rates(rows, unit, own, n_resamples, seed, level) for unit, own in zip(UNITS, sums, strict=True))
    wer = {"wer": words.pop("wer"), "low": words.pop("wer_low"), "high": words.pop("wer_high")}
    further = {name: value for rates in (*others, words) for name, value in rates.items()}
    return counts | edits | wer | further | {"small": n_speakers < SMALL_SPEAKERS or total.words.length < SMALL_WORDS}


def _sides(unit: str) -> list[str]:
    """Columns of a unit: errors, unclipped and clipped, and the length they are divided by."""
    return [f"{unit}_errors", f"{unit}_clipped", f"n_{unit}s"]


def _rates(rows: pd.DataFrame, unit: str, by_speaker: np.ndarray, n_resamples: int, seed: int, level: float) -> dict[str, float]:
    """Rate of a unit with its interval, unclipped and clipped; both from the same resamples of the sums by speaker (S, 3)."""
    *sides, length = rows[_sides(unit)].sum()
    rate, found = RATE_NAMES[unit], dict[str, float]()
    bounds = bootstrap_intervals(by_speaker, n_resamples, seed, level)
    for name, errors, (low, high) in zip((rate, f"{rate}_clipped"), sides, bounds, strict=True):
        found |= {name: _ratio(errors, length), f"{name}_low": low, f"{name}_high": high}
    return found


def _ratio(errors: float, length: float) -> float:
    return float(errors / length) if length else float("nan")


def _as_characters(*texts: Sequence[str]) -> tuple[list[str], ...]:
    """Lists of texts, with one character in place of each grapheme, the same for the same grapheme."""
    codes: dict[str, str] = {}
    graphemes = [[GRAPHEME.findall(text.strip()) for text in part] for part in texts]
    return tuple(["".join(codes.setdefault(each, chr(FIRST + len(codes))) for each in row) for row in part] for part in graphemes)


def _edits_per_utterance(alignments: list[list[jiwer.AlignmentChunk]]) -> np.ndarray:
    """Alignment chunks → counts, shape (n_utterances, 4) in the order of EDITS."""
    counts = np.zeros((len(alignments), len(EDITS)), np.int64)
    for row, chunks in enumerate(alignments):
        for chunk in chunks:
            length = max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
            counts[row, CHUNKS[chunk.type]] += length
    return counts


def cer_without_spaces(counted: pd.DataFrame, column: str | None = None) -> dict[str, float]:
    """Character error rate of each group with all spaces left out, for languages whose spacing is loose; NaN where nothing is said.

    Args:
        column: what to group by; None for one group named `all`.
    """
    references, hypotheses = ([text.replace(" ", "") for text in counted[name]] for name in ("reference", "hypothesis"))
    edits = _edits_per_utterance(jiwer.process_characters(references, hypotheses).alignments)  # (n, 4)
    sums = pd.DataFrame({"length": edits[:, :3].sum(1), "errors": edits[:, 1:].sum(1)}, index=counted.index)
    grouped = sums.groupby(groups_of(counted, column), observed=True).sum()
    return {str(name): _ratio(row["errors"], row["length"]) for name, row in grouped.iterrows()}
