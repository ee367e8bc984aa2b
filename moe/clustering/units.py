"""What is clustered: utterances, or speaker profiles (the mean over a speaker's utterances).

Units are in the order of their ids whatever the order of the rows, so everything computed from them is too.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Units:
    """Units sorted by id, and the unit of each row."""

    ids: np.ndarray  # (n_units,) str
    vectors: np.ndarray  # (n_units, n_dims)
    etiologies: np.ndarray  # (n_units,) str; of a speaker: the commonest
    unit_of_row: np.ndarray  # (n_rows,) int

    def __len__(self) -> int:
        return len(self.ids)


def make_units(
    embeddings: np.ndarray,
    utterance_ids: Sequence[str],
    speakers: Sequence[str] | None,
    etiologies: Sequence[str] | None,
    cluster_unit: str,
) -> Units:
    """Utterances or speaker profiles of embeddings (n_rows, n_dims), sorted by id.

    Raises:
        ValueError: no rows, rows and names of different numbers, ids that repeat, values that are not finite.
    """
    embeddings, ids = checked_embeddings(embeddings), _texts("utterance_ids", utterance_ids, len(embeddings))
    groups = _texts("etiologies", [UNKNOWN] * len(ids) if etiologies is None else etiologies, len(ids))
    if not ids.is_unique:
        raise ValueError(f"utterance_id {ids[ids.duplicated()].iloc[0]!r} occurs more than once")
    order = np.argsort(ids.to_numpy(), kind="stable")
    if cluster_unit == "utterance":
        return Units(ids.to_numpy()[order], embeddings[order], groups.to_numpy()[order], np.argsort(order))
    if speakers is None:
        raise ValueError("cluster_unit=speaker needs the speaker of each utterance")
    names = _texts("speakers", speakers, len(ids))
    profile_ids, profiles, unit_of_row = speaker_profiles(embeddings, names.to_numpy(), order)
    return Units(profile_ids, profiles, _commonest(groups, unit_of_row), unit_of_row)


def speaker_profiles(
    embeddings: np.ndarray, speakers: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean embedding of each speaker, summed in the given order of rows.

    Returns:
        speakers sorted (n_speakers,), profiles (n_speakers, n_dims) float64, index of each row's speaker (n_rows,).
    """
    names, unit_of_row = np.unique(speakers.astype(str), return_inverse=True)
    by_speaker = order[np.argsort(unit_of_row[order], kind="stable")]
    counts = np.bincount(unit_of_row, minlength=len(names))
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    sums = np.add.reduceat(embeddings[by_speaker].astype(np.float64), starts, axis=0)  # (n_speakers, n_dims)
    return names, sums / counts[:, None], unit_of_row


def stratified_sample(etiologies: np.ndarray, n_wanted: int, seed: int) -> np.ndarray:
    """Indices (n_wanted,), ascending, of units of etiologies (n_units,), with each etiology in its proportion (largest remainders, one at least each).

    Returns:
        all indices when there are no more units than wanted.
    """
    if len(etiologies) <= n_wanted:
        return np.arange(len(etiologies))
    rng = np.random.default_rng(seed)
    names, strata, counts = np.unique(etiologies.astype(str), return_inverse=True, return_counts=True)
    shares = _shares(counts, n_wanted)
    picked = [rng.choice(np.flatnonzero(strata == i), shares[i], replace=False) for i in range(len(names))]
    return np.sort(np.concatenate(picked))


def checked_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """The matrix, after a check that it is one of finite numbers, (n_rows, n_dims).

    Raises:
        ValueError: it is not.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(f"embeddings of shape {embeddings.shape}: must be (n_utterances, n_dims), neither of them 0")
    bad_rows = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad_rows):
        raise ValueError(f"{len(bad_rows)} embeddings hold values that are not finite, the first in row {bad_rows[0]}")
    return embeddings


def _texts(name: str, values: Sequence[str], n_rows: int) -> pd.Series:
    if len(values) != n_rows:
        raise ValueError(f"{len(values)} {name} for {n_rows} embeddings: must be as many")
    return pd.Series(np.asarray(values, dtype=str), dtype=object)


def _commonest(etiologies: pd.Series, unit_of_row: np.ndarray) -> np.ndarray:
    counts = pd.crosstab(unit_of_row, etiologies.to_numpy())  # columns in alphabetical order: ties go to the first
    return counts.columns.to_numpy()[counts.to_numpy().argmax(axis=1)].astype(object)


def _shares(counts: np.ndarray, n_wanted: int) -> np.ndarray:
    exact = counts * (n_wanted / counts.sum())
    shares = np.minimum(np.maximum(np.floor(exact).astype(int), 1), counts)
    by_remainder = np.argsort(shares - exact, kind="stable")  # one raised to the least a stratum gets comes last
    for i in by_remainder[: max(0, n_wanted - shares.sum())]:
        shares[i] += shares[i] < counts[i]
    return shares
