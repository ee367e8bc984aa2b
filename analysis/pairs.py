"""Tests between the systems of a comparison: every pair overall, and by group the pairs that a verdict speaks of."""

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from analysis.significance import group_differences, holm, matched_pairs, speaker_difference, word_errors
from analysis.systems import PooledScores

Pairs = Sequence[tuple[str, str]]  # names: a system, and what it is compared with


def pair_tests(pooled: Sequence[PooledScores], asked: Pairs, n_resamples: int, seed: int) -> pd.DataFrame:
    """Every pair once, the later system minus the earlier; Holm over the pairs that were asked for, NaN for the others."""
    errors = {system.name: [word_errors(run.hypotheses) for run in system.runs] for system in pooled}
    rows = []
    for base, system in combinations(pooled, 2):
        drawn = speaker_difference(system.counted, base.counted, n_resamples, seed)
        matched = matched_pairs(errors[system.name], errors[base.name])
        rows.append({"system": system.name, "base": base.name, "difference": drawn.value, "low": drawn.low, "high": drawn.high,
                     "error": drawn.error, "visible": drawn.visible, "p_bootstrap": drawn.p_value, "n_segments": matched.n_segments, "z_mapsswe": matched.z,
                     "p_mapsswe": matched.p_value})  # fmt: skip
    table = pd.DataFrame(rows)
    family = {frozenset(pair) for pair in asked}
    is_asked = [frozenset(pair) in family for pair in zip(table["system"], table["base"], strict=True)]
    corrected = {f"{name}_holm": holm(table[name].where(is_asked)) for name in ("p_bootstrap", "p_mapsswe")}
    return table.assign(**corrected, asked=is_asked)


def group_tests(
    pooled: Sequence[PooledScores], asked: Pairs, columns: Sequence[str], n_resamples: int, seed: int
) -> pd.DataFrame:
    """The pairs that were asked for, group by group."""
    named = {system.name: system for system in pooled}
    pairs = [(named[system], named[other]) for system, other in asked]
    parts = [
        group_differences(system.counted, other.counted, column, n_resamples, seed).assign(
            column=column, system=system.name, base=other.name
        )
        for column in columns
        for system, other in pairs
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["column", "system", "base", "group"])
