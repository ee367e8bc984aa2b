"""Parts of a manifest for stages that need no more: seeded, stratified, and each within the next larger.

Every utterance has a fixed place in its stratum (split and etiology), given by a hash of seed and id; a percentage takes the
first places. So subset(p) lies within subset(q) for p < q, whatever the order of the rows, and no stratum is ever empty.
"""

import hashlib

import numpy as np
import pandas as pd


def subset(manifest: pd.DataFrame, percent: float, seed: int) -> list[str]:
    """The ids of `percent` of the utterances, rounded up in every stratum, sorted.

    Args:
        manifest: columns utterance_id, etiology and, if there, split.
        percent: above 0, at most 100.

    Raises:
        ValueError: percent is out of range or the manifest is empty.
    """
    if not 0 < percent <= 100:
        raise ValueError(f"percent={percent}: must be above 0 and at most 100")
    if not len(manifest):
        raise ValueError("subset of a manifest without utterances")
    place, size = _places(manifest, seed)
    return sorted(manifest.loc[(place * 100 < percent * size).to_numpy(), "utterance_id"])


def at_most(manifest: pd.DataFrame, max_samples: int, seed: int) -> list[str]:
    """The ids of at most `max_samples` utterances, drawn evenly from all strata, sorted.

    Raises:
        ValueError: fewer samples than strata, so that one would vanish.
    """
    if max_samples >= len(manifest):
        return sorted(manifest["utterance_id"])
    place, size = _places(manifest, seed)
    n_strata = int((place == 0).sum())
    if max_samples < n_strata:
        raise ValueError(f"max_samples={max_samples}: must be at least {n_strata}, one for every split and etiology")
    order = np.lexsort((manifest["utterance_id"].rank(method="first").to_numpy(), (place / size).to_numpy()))
    return sorted(manifest["utterance_id"].iloc[order[:max_samples]])


def _places(manifest: pd.DataFrame, seed: int) -> tuple[pd.Series, pd.Series]:
    """For every utterance its place in its stratum, from 0, and the size of that stratum."""
    hashes = pd.Series([_hash(seed, name) for name in manifest["utterance_id"]], index=manifest.index, dtype="int64")
    strata = manifest.groupby([name for name in ("split", "etiology") if name in manifest.columns], dropna=False)["utterance_id"]
    place = hashes.groupby(strata.ngroup()).rank(method="first").astype("int64") - 1
    return place, strata.transform("size").astype("int64")


def _hash(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 11  # 53 bits: a rank goes through float64 without ties


def stage_percent(percent: float, data_percent: float, floor: int, n_utterances: int) -> float:
    """Percentage of the train split that a stage gets: its own, but never fewer than `floor` utterances, all scaled by data_percent."""
    return min(100.0, max(percent, 100.0 * floor / n_utterances)) * data_percent / 100.0
