"""Tests between the systems of a comparison: every pair overall, and by group the pairs that a verdict speaks of."""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from analysis.significance import group_differences, holm, matched_pairs, speaker_difference, word_errors
from analysis.systems import PooledScores, pairs_of


def pair_tests(pooled: Sequence[PooledScores], n_resamples: int, seed: int) -> pd.DataFrame:
    """Every pair once, the later system minus the earlier; Holm over all pairs, for each test by itself."""
    errors = {system.name: [word_errors(run.hypotheses) for run in system.runs] for system in pooled}
    rows = []
    for base, system in combinations(pooled, 2):
        drawn = speaker_difference(system.counted, base.counted, n_resamples, seed)
        matched = matched_pairs(errors[system.name], errors[base.name])
        rows.append({"system": system.name, "base": base.name, "difference": drawn.value, "low": drawn.low, "high": drawn.high,
                     "p_bootstrap": drawn.p_value, "n_segments": matched.n_segments, "z_mapsswe": matched.z,
                     "p_mapsswe": matched.p_value})  # fmt: skip
    table = pd.DataFrame(rows)
    return table.assign(p_bootstrap_holm=holm(table["p_bootstrap"]), p_mapsswe_holm=holm(table["p_mapsswe"]))


def group_tests(
    pooled: Sequence[PooledScores], base: PooledScores, columns: Sequence[str], n_resamples: int, seed: int
) -> pd.DataFrame:
    """Every system against the base and against its fair control, group by group."""
    named = {system.name: system for system in pooled}
    pairs = [(named[system], named[other]) for system, other in pairs_of(pooled, base.name)]
    parts = [
        group_differences(system.counted, other.counted, column, n_resamples, seed).assign(
            column=column, system=system.name, base=other.name
        )
        for column in columns
        for system, other in pairs
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["column", "system", "base", "group"])
