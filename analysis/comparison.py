"""Several evaluation runs → one table, tests between every pair, a verdict in words, figures, Markdown and HTML.

`compare` takes `SystemScores` (`steps.compare.compare` reads them from run ids, a notebook may build them by hand) and returns frames
and figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from analysis.comparison_figures import comparison_figures
from analysis.error_rates import rates_by
from analysis.groups import groupings
from analysis.intervals import N_RESAMPLES
from analysis.pairs import group_tests, pair_tests
from analysis.report import html_page, markdown_table
from analysis.system_tables import expert_table, systems_table
from analysis.systems import BASE, PooledScores, SystemScores, asked_pairs, check_comparable, pool
from analysis.verdict import readable_experts, readable_groups, readable_table, readable_tests, verdict


@dataclass(frozen=True)
class Comparison:
    """Frames and figures.

    Attributes:
        table: one row per system; `by_group` one per system and group, `tests` one per pair, `group_tests` one per pair and
            group, `experts` one per expert of a mixture.
        verdict: in plain words.
        figures: by file stem.
        note: shown with all of it.
    """

    table: pd.DataFrame
    by_group: pd.DataFrame
    tests: pd.DataFrame
    group_tests: pd.DataFrame
    experts: pd.DataFrame
    verdict: str
    figures: dict[str, Figure]
    note: str

    def sections(self) -> dict[str, pd.DataFrame]:
        """The frames as a reader wants them, by heading."""
        shown = {"Systems": readable_table(self.table), "Tests": readable_tests(self.tests)}
        if len(self.experts):
            shown["WER of each expert alone"] = readable_experts(self.experts)
        return shown | {"By group": readable_groups(self.by_group)}

    def markdown(self) -> str:
        """The comparison as Markdown; figures are separate files."""
        parts = [f"## {heading}\n\n{markdown_table(table)}" for heading, table in self.sections().items()]
        note = [f"*{self.note}*"] if self.note else []
        return "\n\n".join(["# Comparison", *note, self.verdict, *parts])

    def html(self) -> str:
        """The comparison as one self-contained page, figures inside."""
        tables = self.sections()
        groups = tables.pop("By group")
        sections = {"Verdict": self.verdict, **tables, "Figures": list(self.figures.values()), "By group": groups}
        return html_page("Comparison", sections, self.note)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return self.html()


def compare(
    systems: Sequence[SystemScores],
    base: str | None = None,
    group_columns: Sequence[str] | None = None,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
    note: str = "",
    plots: bool = True,
    against: Sequence[str] | None = None,
) -> Comparison:
    """Compare systems scored on the same utterances with the same normaliser.

    Args:
        systems: at least two names; runs of one name are pooled as seeds of one system.
        base: name of the system that changes are measured against; None takes the first with the role `base`, else the first.
        group_columns: columns to break results down by; None takes those of `analysis.groups` that tell utterances apart.
        seed: of the tests' resamples. The interval of a rate does not depend on it: it is the one that the evaluation gave.
        note: shown with every figure and at the head of the report, for example "synthetic speech".
        plots: draw figures.
        against: rows of the table of systems that all others are tested against; None takes the base and each one's fair control.
            Holm's correction is over these tests alone.

    Raises:
        ValueError: see `check_comparable`; `base` or `against` names none of them; only one name.
    """
    check_comparable(systems)
    pooled = pool(systems)
    if len(pooled) < 2:
        raise ValueError(f"nothing to compare: all runs are named {pooled[0].name!r}; at least two systems are needed")
    reference = _base_of(pooled, base)
    columns = groupings(pooled[0].counted) if group_columns is None else list(group_columns)
    table = systems_table(pooled, reference, n_resamples)
    by_group = _by_group(pooled, columns, n_resamples)
    asked = asked_pairs(pooled, reference.name, against)
    tests = pair_tests(pooled, asked, n_resamples, seed)
    in_groups = group_tests(pooled, asked, columns, n_resamples, seed)
    words = verdict(table, tests, in_groups, asked)
    figures = comparison_figures(pooled, table, by_group, note) if plots else {}
    return Comparison(table, by_group, tests, in_groups, expert_table(pooled), words, figures, note)


def _base_of(pooled: Sequence[PooledScores], name: str | None) -> PooledScores:
    if name is None:
        return next((system for system in pooled if system.role == BASE), pooled[0])
    found = [system for system in pooled if system.name == name]
    if not found:
        raise ValueError(f"base={name!r}: no such system; there are {', '.join(system.name for system in pooled)}")
    return found[0]


def _by_group(pooled: Sequence[PooledScores], columns: Sequence[str], n_resamples: int) -> pd.DataFrame:
    parts = [
        rates_by(system.counted, column, n_resamples).assign(system=system.name, column=column)
        for column in columns
        for system in pooled
    ]
    if not parts:
        return pd.DataFrame(columns=["column", "system", "group"])
    table = pd.concat(parts, ignore_index=True)
    return table[["column", "system", "group", *table.columns.drop(["column", "system", "group"])]]
