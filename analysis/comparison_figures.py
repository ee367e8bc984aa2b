"""The figures of a comparison, by file stem; only those that there are data for."""

import re
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from analysis.groups import column_name, several
from analysis.hypotheses import groups_of
from analysis.plots.comparison import COST_NAMES, overall_figure, tradeoff_figure
from analysis.plots.errors import expert_wer_heatmap, systems_figure
from analysis.plots.routing import load_heatmap
from analysis.plots.training import overlaid_curves
from analysis.routing import load_by
from analysis.system_tables import NOISE, differs, expert_table
from analysis.systems import PooledScores, colour_places

CURVES = ("dev/wer", "dev/loss", "train/loss")
MOST_CURVES = 8  # runs overlaid; with more, one run of each system


def comparison_figures(
    pooled: Sequence[PooledScores], table: pd.DataFrame, by_group: pd.DataFrame, note: str
) -> dict[str, Figure]:
    """Overall WER, WER by group (forest), WER against each cost, WER by expert, routing load, learning curves."""
    places = colour_places(pooled)
    figures = {"wer_by_system": overall_figure(table, note=note, places=places)}
    for column, rates in by_group.groupby("column", sort=False):
        if rates["group"].nunique() < 2:
            continue
        figures[f"wer_by_{column}"] = systems_figure(rates, f"WER by {column_name(str(column))} and system", note, places)
    for cost in COST_NAMES:
        if differs(table, cost):
            figures[f"wer_against_{cost}"] = tradeoff_figure(table, cost, note=note, places=places, noise=NOISE.get(cost, 0.0))
    return figures | _routing_figures(pooled, note) | _curves(pooled, note)


def _routing_figures(pooled: Sequence[PooledScores], note: str) -> dict[str, Figure]:
    figures, experts = {}, expert_table(pooled)
    if experts["run_id"].nunique() > 1:  # one mixture is one row, and its evaluation shows it by etiology
        names = {run.run_id: _run_name(system, number) for system in pooled for number, run in enumerate(system.runs)}
        wide = experts.assign(run=experts["run_id"].map(names)).pivot(index="run", columns="expert", values="wer")
        wide = wide.loc[list(dict.fromkeys(experts["run_id"].map(names)))].rename(columns=lambda expert: f"expert {expert}")
        figures["expert_wer"] = expert_wer_heatmap(wide, "WER of each expert alone", note, by_row=True)
    for system in pooled:
        first = system.runs[0].hypotheses  # experts of two seeds are not the same experts: loads are not averaged
        if "weight_0" in first and "etiology" in first and several(first):
            counts = first.groupby(groups_of(first, "etiology"), observed=True).size()
            title = f"Expert load by etiology, {_run_name(system, 0)}"
            figures[f"load_{_stem(system.name)}"] = load_heatmap(load_by(first), title, note, counts)
    return figures


def _curves(pooled: Sequence[PooledScores], note: str) -> dict[str, Figure]:
    every = [(system, number) for system in pooled for number, run in enumerate(system.runs) if run.history is not None]
    shown = every if len(every) <= MOST_CURVES else [(system, number) for system, number in every if number == 0]
    found = {_run_name(system, number): system.runs[number].history for system, number in shown}
    histories = {name: history for name, history in found.items() if history is not None}
    places = {_run_name(system, number): place for system, number, place in _places(shown, colour_places(pooled))}
    have = [metric for metric in CURVES if any(_is_curve(history, metric) for history in histories.values())]
    return {
        f"curves_{_stem(metric)}": overlaid_curves(_with(histories, metric), metric, x=_x_of(metric), note=note, places=places)
        for metric in have
    }


def _is_curve(history: pd.DataFrame, metric: str) -> bool:
    """Whether a metric has a line: one dot is a number."""
    return metric in history and history[metric].notna().sum() > 1


def _places(shown: Sequence[tuple[PooledScores, int]], places: dict[str, int]) -> list[tuple[PooledScores, int, int]]:
    """Place of each run among the colours: its system's, and one of its own where several seeds of a system are shown."""
    several = len({system.name for system, _ in shown}) < len(shown)
    return [(system, number, index if several else places[system.name]) for index, (system, number) in enumerate(shown)]


def _with(histories: dict[str, pd.DataFrame], metric: str) -> dict[str, pd.DataFrame]:
    """Histories whose column is empty lose it, so that the figure says it was not recorded."""
    return {
        name: history if metric in history and history[metric].notna().any() else history.drop(columns=metric, errors="ignore")
        for name, history in histories.items()
    }


def _x_of(metric: str) -> str:
    return "update" if metric.startswith("train/") else "epoch"


def _run_name(system: PooledScores, number: int) -> str:
    if len(system.runs) == 1:
        return system.name
    return f"{system.name}, seed {system.runs[number].metadata.get('seed', number)}"


def _stem(name: str) -> str:
    return re.sub(r"\W+", "_", name.lower()).strip("_")
