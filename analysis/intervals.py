"""Intervals by bootstrap over speakers: utterances of one speaker are not independent, speakers are.

Counts per speaker go in, the interval of their ratio comes out; each resample is a row of speaker weights, so that all resamples
are one matrix product. Several error columns share the weights, which is what makes differences between systems paired.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

N_RESAMPLES = 10_000
LEVEL = 0.95
POWER = 0.8
RESOLVED = 10  # resamples in the tail below which their count says little
BLOCK_DRAWS = 200_000  # speakers drawn at a time: the counts of a block stay in the cache, twice as fast as large blocks


@dataclass(frozen=True)
class Interval:
    """Bounds of a rate; both NaN where fewer than two speakers leave nothing to resample."""

    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """Rate of one system minus rate of another on the same utterances, with its interval, two-sided p value and standard error.

    `visible` is the size of a true difference that such a test would call significant in four of five tries.
    """

    value: float
    low: float
    high: float
    p_value: float
    error: float = float("nan")
    visible: float = float("nan")


def speaker_sums(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Sums of `columns` per speaker in the order of the speakers' names, shape (n_speakers, n_columns)."""
    return table.groupby("speaker", sort=True)[columns].sum().to_numpy(np.float64)


def bootstrap_interval(
    errors: np.ndarray,
    lengths: np.ndarray,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Interval of Σ errors / Σ lengths over resampled speakers.

    Args:
        errors, lengths: one value per speaker, shape (n_speakers,), sorted by speaker for the same answer in any row order.

    The percentile interval is widened for few speakers as in Hesterberg, "What Teachers Should Know About the Bootstrap"
    (2015), section 5.3: quantiles of the t distribution instead of the normal one, and the factor n/(n−1) of the variance.
    """
    counts = np.stack([np.asarray(errors, np.float64), np.asarray(lengths, np.float64)], axis=1)  # (S, 2)
    low, high = bootstrap_intervals(counts, n_resamples, seed, level)[0]
    return Interval(float(low), float(high))


def bootstrap_intervals(counts: np.ndarray, n_resamples: int = N_RESAMPLES, seed: int = 0, level: float = LEVEL) -> np.ndarray:
    """Intervals of several rates over one length, from the same resamples.

    Args:
        counts: (n_speakers, n_rates + 1); the last column is the length all rates are divided by.

    Returns:
        (n_rates, 2) bounds, NaN where they are not defined.
    """
    if len(counts) < 2:
        return np.full((counts.shape[1] - 1, 2), np.nan)
    return _bounds(resampled_rates(counts, n_resamples, seed), len(counts), level)


def resampled_rates(counts: np.ndarray, n_resamples: int, seed: int) -> np.ndarray:
    """Rates under resampling of speakers: (n_speakers, n_rates + 1) → (n_resamples, n_rates); NaN where the length drawn is 0."""
    sums = np.concatenate([weights @ counts for weights in _speaker_weights(len(counts), n_resamples, seed)])
    with np.errstate(invalid="ignore", divide="ignore"):
        rates = sums[:, :-1] / sums[:, -1:]
    return np.where(np.isfinite(rates), rates, np.nan)


def paired_difference(
    errors: np.ndarray,
    base_errors: np.ndarray,
    lengths: np.ndarray,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Difference:
    """Rate of a system minus rate of the base, speakers resampled together for both.

    Args:
        errors, base_errors, lengths: per speaker, shape (n_speakers,), in the same order of speakers.

    The p value is the level at which the interval of `bootstrap_interval` would just touch zero (Efron & Tibshirani 1993,
    section 15.4), so that interval and test never disagree.
    """
    delta = np.asarray(errors, np.float64) - np.asarray(base_errors, np.float64)
    counts = np.stack([delta, np.asarray(lengths, np.float64)], axis=1)
    rates = resampled_rates(counts, n_resamples, seed)  # (R, 1)
    low, high = _bounds(rates, len(counts), level)[0]
    drawn = rates[:, 0]
    value = delta.sum() / counts[:, 1].sum() if counts[:, 1].sum() else np.nan
    p_value, error = _two_sided(drawn[~np.isnan(drawn)], len(counts)), standard_error(drawn, len(counts))
    visible = smallest_visible(error, len(counts), 1 - level)
    return Difference(float(value), float(low), float(high), p_value, error, visible)


def standard_error(resampled: np.ndarray, n_speakers: int) -> float:
    """Of a value from its resamples (n_resamples,), with the factor n/(n−1) of the variance; NaN below two speakers."""
    if n_speakers < 2 or not np.isfinite(resampled).any():
        return float("nan")
    return float(np.nanstd(resampled) * np.sqrt(n_speakers / (n_speakers - 1)))


def smallest_visible(error: float, n_speakers: int, alpha: float = 1 - LEVEL, power: float = POWER) -> float:
    """The true difference that a two-sided test at `alpha` finds with probability `power`: (t₁₋α/₂ + t_power) · error.

    The usual approximation (Cohen 1988, chapter 2; Bloom 1995, "Minimum detectable effects") with n − 1 degrees of freedom. It is of
    this test by itself, before any correction for several. NaN below two speakers, and where no speaker makes a difference: what has not
    varied does not say how far it may.
    """
    if n_speakers < 2 or np.isclose(error, 0.0):
        return float("nan")
    return float((stats.t.ppf(1 - alpha / 2, n_speakers - 1) + stats.t.ppf(power, n_speakers - 1)) * error)


def widened_tail(level: float, n_speakers: int) -> float:
    """Probability cut off on each side of the resampled rates; NaN below two speakers."""
    if n_speakers < 2:
        return float("nan")
    quantile = stats.t.ppf((1 - level) / 2, n_speakers - 1)
    return float(stats.norm.cdf(quantile * np.sqrt(n_speakers / (n_speakers - 1))))


def _bounds(rates: np.ndarray, n_speakers: int, level: float) -> np.ndarray:
    """Quantiles of resampled rates (n_resamples, n_rates) → (n_rates, 2)."""
    tail = widened_tail(level, n_speakers)
    if np.isnan(tail) or not np.isfinite(rates).any():
        return np.full((rates.shape[1], 2), np.nan)
    return np.nanquantile(rates, [tail, 1 - tail], axis=0).T


def _two_sided(differences: np.ndarray, n_speakers: int) -> float:
    if n_speakers < 2 or len(differences) == 0:
        return float("nan")
    n_tail = min(np.sum(differences <= 0), np.sum(differences >= 0)) + 1  # never 0: no finite number of resamples shows that
    quantile = stats.norm.ppf(min(n_tail / (len(differences) + 1), 0.5))
    if (
        n_tail < RESOLVED and differences.std() > 0
    ):  # too far out to be counted: the normal tail, no nearer than the last countable
        quantile = min(stats.norm.ppf(RESOLVED / (len(differences) + 1)), -abs(differences.mean()) / differences.std())
    shrunk = quantile * np.sqrt((n_speakers - 1) / n_speakers)
    return float(min(1.0, 2 * stats.t.cdf(shrunk, n_speakers - 1)))


def _speaker_weights(n_speakers: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each speaker is drawn, in blocks (n_block, n_speakers); multinomial, by counting uniform draws."""
    generator = np.random.default_rng(seed)
    n_block = max(1, BLOCK_DRAWS // max(1, n_speakers))
    for start in range(0, n_resamples, n_block):
        n_rows = min(n_block, n_resamples - start)
        drawn = generator.integers(n_speakers, size=(n_rows, n_speakers))
        drawn += np.arange(n_rows)[:, None] * n_speakers
        yield np.bincount(drawn.ravel(), minlength=n_rows * n_speakers).reshape(n_rows, n_speakers).astype(np.float64)
