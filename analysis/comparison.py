"""Several evaluation runs → one table, tests between every pair, a verdict in words, figures, Markdown and HTML.

`compare` takes `SystemScores` (a step fetches them from runs, a notebook may build them by hand) and returns frames and figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.error_rates import rates_by
from analysis.groups import groupings
from analysis.hypotheses import groups_of
from analysis.intervals import N_RESAMPLES
from analysis.plots.comparison import COST_NAMES, overall_figure, tradeoff_figure
from analysis.plots.errors import expert_wer_heatmap, forest_figure, systems_figure
from analysis.plots.routing import load_heatmap
from analysis.plots.training import overlaid_curves
from analysis.report import html_page, markdown_table
from analysis.routing import load_by
from analysis.significance import group_differences, holm, matched_pairs, speaker_difference, word_errors
from analysis.systems import BASE, MIXTURE, SINGLE_LORA, PooledScores, SystemScores, check_comparable, counted, pool
from analysis.verdict import readable_groups, readable_table, readable_tests, verdict


@dataclass(frozen=True)
class Comparison:
    """Frames and figures: `table` has one row per system, `tests` one per pair, `by_group` one per system and group."""

    table: pd.DataFrame
    by_group: pd.DataFrame
    tests: pd.DataFrame
    group_tests: pd.DataFrame
    verdict: str
    figures: dict[str, Figure]
    note: str

    def markdown(self) -> str:
        """The comparison as Markdown; figures are separate files."""
        tables = {
            "Systems": readable_table(self.table),
            "Tests": readable_tests(self.tests),
            "By group": readable_groups(self.by_group),
        }
        parts = [f"## {heading}\n\n{markdown_table(table)}" for heading, table in tables.items()]
        note = [f"*{self.note}*"] if self.note else []
        return "\n\n".join(["# Comparison", *note, self.verdict, *parts])

    def html(self) -> str:
        """The comparison as one self-contained page, figures inside."""
        sections = {
            "Verdict": self.verdict,
            "Systems": readable_table(self.table),
            "Tests": readable_tests(self.tests),
            "Figures": list(self.figures.values()),
            "By group": readable_groups(self.by_group),
        }
        return html_page("Comparison", sections, self.note)


def compare(
    systems: Sequence[SystemScores],
    base: str | None = None,
    group_columns: Sequence[str] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    note: str = "",
) -> Comparison:
    """Compare systems scored on the same utterances with the same normaliser.

    Args:
        systems: at least two names; runs of one name are pooled as seeds of one system.
        base: name of the system that changes are measured against; None takes the first of kind `base`, else the first.
        group_columns: columns to break results down by; None takes those of `analysis.groups` that tell utterances apart.
        note: shown with every figure and at the head of the report, for example "synthetic speech".

    Raises:
        ValueError: see `check_comparable`; `base` names none of them; only one name.
    """
    check_comparable(systems)
    pooled = pool(systems)
    if len(pooled) < 2:
        raise ValueError(f"nothing to compare: all runs are named {pooled[0].name!r}; at least two systems are needed")
    reference = _base_of(pooled, base)
    columns = groupings(pooled[0].counted) if group_columns is None else list(group_columns)
    table = _systems_table(pooled, reference, n_resamples, seed)
    by_group = _by_group(pooled, columns, n_resamples, seed)
    tests = _tests(pooled, n_resamples, seed)
    group_tests = _group_tests(pooled, reference, columns, n_resamples, seed)
    words = verdict(table, tests, group_tests, reference.name)
    figures = comparison_figures(pooled, table, by_group, note)
    return Comparison(table, by_group, tests, group_tests, words, figures, note)


def comparison_figures(
    pooled: Sequence[PooledScores], table: pd.DataFrame, by_group: pd.DataFrame, note: str
) -> dict[str, Figure]:
    """Figures by file stem: overall WER, WER by group, cost, expert WER, learning curves; only those there are data for."""
    figures = {"wer_by_system": overall_figure(table, note=note)}
    for column, rates in by_group.groupby("column", sort=False):
        figures[f"wer_by_{column}"] = systems_figure(rates, f"WER by {column.replace('_', ' ')} and system", note)
        if len(table) == 2:
            figures[f"forest_{column}"] = forest_figure(rates[rates["system"] == table["system"].iloc[1]], note=note)
    for cost in COST_NAMES:
        if cost in table and table[cost].notna().sum() >= 2:
            figures[f"wer_against_{cost}"] = tradeoff_figure(table, cost, note=note)
    experts = {system.name: system.runs[0].expert_wer for system in pooled if system.runs[0].expert_wer}
    if experts:
        wer_by_expert = pd.DataFrame(experts).T.rename(columns=lambda expert: f"expert {str(expert).removeprefix('expert_')}")
        figures["expert_wer"] = expert_wer_heatmap(wer_by_expert, "WER of each expert alone", note)
    for number, system in enumerate(pooled):
        if "weight_0" in system.counted and "etiology" in system.counted:
            loads, counts = (
                load_by(system.counted),
                system.counted.groupby(groups_of(system.counted, "etiology"), observed=True).size(),
            )
            figures[f"load_{number}"] = load_heatmap(loads, f"Expert load by etiology, {system.name}", note, counts)
    histories = {system.name: system.runs[0].history for system in pooled if system.runs[0].history is not None}
    for metric in ("dev/wer", "train/loss"):
        if sum(metric in history for history in histories.values()) >= 1:
            figures[f"curves_{metric.replace('/', '_')}"] = overlaid_curves(histories, metric, note=note)
    return figures


def _base_of(pooled: Sequence[PooledScores], name: str | None) -> PooledScores:
    if name is None:
        return next((system for system in pooled if system.kind == BASE), pooled[0])
    found = [system for system in pooled if system.name == name]
    if not found:
        raise ValueError(f"base={name!r}: no such system; there are {', '.join(system.name for system in pooled)}")
    return found[0]


def _systems_table(pooled: Sequence[PooledScores], base: PooledScores, n_resamples: int, seed: int) -> pd.DataFrame:
    rows = []
    for system in pooled:
        rates = rates_by(system.counted, None, n_resamples, seed).drop(columns="group").iloc[0].to_dict()
        rows.append(
            {
                "system": system.name,
                "kind": system.kind,
                "n_runs": len(system.runs),
                **_costs(system),
                **rates,
                **_seed_range(system),
            }
        )
    table = pd.DataFrame(rows)
    base_wer = table.loc[table["system"] == base.name, "wer"].iloc[0]
    return table.assign(relative_change=table["wer"] / base_wer - 1 if base_wer else np.nan)


def _costs(system: PooledScores) -> dict[str, object]:
    """Means over the runs of what each run recorded; NaN where none did."""
    expert_wer = [wer for run in system.runs for wer in run.expert_wer.values() if np.isfinite(wer)]
    seconds, audio = _mean(system, "seconds"), _mean(system, "audio_seconds")
    return {
        "n_trainable": _mean(system, "n_trainable"),
        "n_total": _mean(system, "n_total"),
        "gating_accuracy": _mean(system, "gating_accuracy"),
        "expert_wer_min": min(expert_wer, default=np.nan),
        "expert_wer_max": max(expert_wer, default=np.nan),
        "utterances_per_s": len(system.counted) / seconds if seconds else np.nan,
        "real_time_factor": seconds / audio if audio else np.nan,
        "training_hours": _mean(system, "training_seconds") / 3600,
        "peak_memory_mb": _mean(system, "peak_memory_mb"),
    }


def _mean(system: PooledScores, key: str) -> float:
    known = [float(run.metadata[key]) for run in system.runs if run.metadata.get(key) is not None]
    return float(np.mean(known)) if known else float("nan")


def _seed_range(system: PooledScores) -> dict[str, float]:
    """Lowest and highest WER among the runs of a system: what the seed alone does."""
    rates = [run["word_errors"].sum() / max(1, run["n_words"].sum()) for run in map(counted, system.runs)]
    return {"seed_wer_min": min(rates), "seed_wer_max": max(rates)}


def _by_group(pooled: Sequence[PooledScores], columns: Sequence[str], n_resamples: int, seed: int) -> pd.DataFrame:
    parts = [
        rates_by(system.counted, column, n_resamples, seed).assign(system=system.name, column=column)
        for column in columns
        for system in pooled
    ]
    if not parts:
        return pd.DataFrame(columns=["column", "system", "group"])
    table = pd.concat(parts, ignore_index=True)
    return table[["column", "system", "group", *table.columns.drop(["column", "system", "group"])]]


def _tests(pooled: Sequence[PooledScores], n_resamples: int, seed: int) -> pd.DataFrame:
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


def _group_tests(
    pooled: Sequence[PooledScores], base: PooledScores, columns: Sequence[str], n_resamples: int, seed: int
) -> pd.DataFrame:
    """Every system against the base, and every mixture against every single LoRA, group by group."""
    pairs = [(system, base) for system in pooled if system is not base]
    pairs += [(a, b) for a in pooled if a.kind == MIXTURE for b in pooled if b.kind == SINGLE_LORA and b is not base]
    parts = [
        group_differences(system.counted, other.counted, column, n_resamples, seed).assign(
            column=column, system=system.name, base=other.name
        )
        for column in columns
        for system, other in pairs
    ]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=["column", "system", "base", "group"])
