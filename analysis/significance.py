"""Is one system better than another on the same utterances: MAPSSWE, paired bootstrap over speakers, Holm's correction.

MAPSSWE takes segments of speech as independent, the bootstrap takes speakers; where few speakers say many utterances the second
is the honest one, and it leads in every verdict. Both are shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
import pandas as pd
from scipy import stats

from analysis.hypotheses import check_hypotheses, groups_of, name_some
from analysis.intervals import LEVEL, N_RESAMPLES, Difference, paired_difference

MIN_GOOD = 2  # correct words of both systems that end a segment, the default of NIST's sc_stats


@dataclass(frozen=True)
class WordErrors:
    """Where the errors of a system lie, as slots in the order of the reference: before word 0, word 0, before word 1 and so on.

    The last slot lies behind the last word: an utterance of n words has 2 n + 1. Utterances follow each other in the order of
    their ids.
    """

    errors: np.ndarray  # (n_slots,) insertions in a gap; 0 or 1 at a word
    utterance: np.ndarray  # (n_slots,) number of the utterance
    is_word: np.ndarray  # (n_slots,)


@dataclass(frozen=True)
class Mapsswe:
    """Matched-pairs test: mean difference of errors by segment, its z and two-sided p (NaN where all segments differ alike)."""

    n_segments: int
    mean: float
    z: float
    p_value: float


def word_errors(table: pd.DataFrame) -> WordErrors:
    """Errors of a hypotheses table by place, utterances sorted by id so that two systems' slots correspond."""
    check_hypotheses(table)
    order = table.sort_values("utterance_id")
    output = jiwer.process_words(order["reference"].tolist(), order["hypothesis"].tolist())
    return slots_of(output.alignments, [len(words) for words in output.references])


def slots_of(alignments: Sequence[Sequence[jiwer.AlignmentChunk]], n_words: Sequence[int]) -> WordErrors:
    """Alignments and reference lengths → slots."""
    n_slots = 2 * np.asarray(n_words, np.int64) + 1
    starts = np.concatenate([[0], np.cumsum(n_slots)])  # (n_utterances + 1,)
    errors = np.zeros(starts[-1], np.int64)
    for start, chunks in zip(starts[:-1], alignments, strict=True):
        for chunk in chunks:
            if chunk.type == "insert":
                errors[start + 2 * chunk.ref_start_idx] += chunk.hyp_end_idx - chunk.hyp_start_idx
            elif chunk.type != "equal":
                errors[start + 2 * chunk.ref_start_idx + 1 : start + 2 * chunk.ref_end_idx : 2] = 1
    utterance = np.repeat(np.arange(len(n_slots)), n_slots)
    return WordErrors(errors, utterance, (np.arange(starts[-1]) - starts[:-1][utterance]) % 2 == 1)


def segment_errors(system: WordErrors, base: WordErrors, min_good: int = MIN_GOOD) -> np.ndarray:
    """Errors of both systems in each segment, shape (n_segments, 2).

    A segment is a stretch of errors of either system, bounded by the ends of the utterance or by at least `min_good` consecutive
    reference words that both have right, with nothing inserted between them (Gillick & Cox 1989, as NIST's sc_stats cuts them;
    one difference: sc_stats drops insertions of its second system behind the last word, here they count for either).

    Raises:
        ValueError: the systems were aligned with different references.
    """
    if not np.array_equal(system.utterance, base.utterance):
        raise ValueError("segments need both systems aligned with the same references; their lengths differ")
    at = np.flatnonzero((system.errors > 0) | (base.errors > 0))
    if len(at) == 0:
        return np.zeros((0, 2), np.int64)
    n_words_before = np.cumsum(system.is_word)  # inclusive of the slot itself
    n_good = n_words_before[at[1:]] - system.is_word[at[1:]] - n_words_before[at[:-1]]
    new = np.concatenate([[True], (n_good >= min_good) | (system.utterance[at[1:]] != system.utterance[at[:-1]])])
    segment = np.cumsum(new) - 1
    return np.stack([np.bincount(segment, weights=side.errors[at]) for side in (system, base)], axis=1).astype(np.int64)


def mapsswe(segments: np.ndarray) -> Mapsswe:
    """Matched-pairs sentence-segment word error test (Gillick & Cox, ICASSP 1989) on (n_segments, 2) errors.

    z is the mean difference by its standard error (divisor n − 1), compared with the normal distribution, two-sided.
    """
    difference = segments[:, 0] - segments[:, 1] if len(segments) else np.zeros(0)
    mean = float(difference.mean()) if len(difference) else 0.0
    if not difference.any():
        return Mapsswe(len(difference), mean, 0.0, 1.0)
    deviation = difference.std(ddof=1) if len(difference) > 1 else 0.0
    if deviation == 0:  # every segment differs by the same: no spread to measure the mean by, and no p is made up
        return Mapsswe(len(difference), mean, float("nan"), float("nan"))
    z = mean / (deviation / np.sqrt(len(difference)))
    return Mapsswe(len(difference), mean, float(z), float(2 * stats.norm.sf(abs(z))))


def matched_pairs(system: Sequence[WordErrors], base: Sequence[WordErrors]) -> Mapsswe:
    """MAPSSWE of two systems of one or more runs (seeds): run by run in their order, a single run against each of the other's.

    Runs decode the same utterances, so their segments are not independent: z is the mean over the pairs of runs and gains nothing
    from more seeds. NaN where the numbers of runs differ and neither is one.
    """
    n_pairs = max(len(system), len(base))
    if {len(system), len(base)} - {1, n_pairs}:
        return Mapsswe(0, float("nan"), float("nan"), float("nan"))
    found = [mapsswe(segment_errors(system[i % len(system)], base[i % len(base)])) for i in range(n_pairs)]
    n_segments, mean, z = (np.mean([getattr(test, name) for test in found]) for name in ("n_segments", "mean", "z"))
    return Mapsswe(round(n_segments), float(mean), float(z), float(2 * stats.norm.sf(abs(z))))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's step-down correction (1979), (n,): p values valid for the whole family; NaN stays NaN and does not count."""
    given = np.asarray(p_values, np.float64)
    corrected = np.full(given.shape, np.nan)
    known = np.flatnonzero(~np.isnan(given))
    order = known[np.argsort(given[known], kind="stable")]
    steps = given[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return corrected


def speaker_difference(
    system: pd.DataFrame,
    base: pd.DataFrame,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    unit: str = "word",
) -> Difference:
    """Error rate of a system minus that of the base, by paired bootstrap over speakers.

    Args:
        system, base: counted tables of the same utterances.
        unit: "word" for WER, "char" for CER.

    Raises:
        ValueError: the tables hold different utterances.
    """
    columns = ["utterance_id", "speaker", f"{unit}_errors", f"n_{unit}s"]
    joined = system[columns].merge(base[["utterance_id", f"{unit}_errors"]], on="utterance_id", suffixes=("", "_base"))
    if not len(joined) == len(system) == len(base):
        different = set(system["utterance_id"]) ^ set(base["utterance_id"])
        raise ValueError(f"paired test needs the same utterances; they differ in {name_some(different)}")
    sums = joined.groupby("speaker", sort=True)[[f"{unit}_errors", f"{unit}_errors_base", f"n_{unit}s"]].sum().to_numpy(float)
    errors, base_errors, lengths = sums.T  # (n_speakers,) each
    return paired_difference(errors, base_errors, lengths, n_resamples, seed, level)


def group_differences(
    system: pd.DataFrame,
    base: pd.DataFrame,
    column: str | None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> pd.DataFrame:
    """Difference of WER in each group, p values Holm-corrected over the groups: the table that says where a system is worse.

    Returns:
        columns group, n_utterances, n_speakers, difference, low, high, p_value, p_holm.
    """
    rows = []
    for group, part in system.groupby(groups_of(system, column), observed=True):
        other = base[base["utterance_id"].isin(part["utterance_id"])]
        found = speaker_difference(part, other, n_resamples, seed, level)
        rows.append({"group": group, "n_utterances": len(part), "n_speakers": part["speaker"].nunique(),
                     "difference": found.value, "low": found.low, "high": found.high, "p_value": found.p_value})  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p_value"]))
