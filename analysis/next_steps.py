"""What to do after a comparison, in sentences that follow from its tables."""

import pandas as pd

from analysis.systems import CONTROL, MIXTURE
from analysis.verdict import ALPHA, test_of

FEW_SPEAKERS = 20  # test speakers below which an interval over them is wide


def next_steps(table: pd.DataFrame, tests: pd.DataFrame, by_group: pd.DataFrame) -> list[str]:
    """Advice, most pressing first.

    Args:
        table, tests, by_group: of `analysis.comparison.Comparison`.
    """
    found = [_more_speakers(table), _mixture_or_control(table, tests), _worst_group(table, by_group), _more_seeds(table)]
    return [sentence for sentence in found if sentence]


def _more_speakers(table: pd.DataFrame) -> str:
    n_speakers = int(table["n_speakers"].min())
    if n_speakers >= FEW_SPEAKERS:
        return ""
    return f"Test with more speakers: {n_speakers} are few, and every interval here is over speakers."


def _mixture_or_control(table: pd.DataFrame, tests: pd.DataFrame) -> str:
    """Whether the mixture is worth its parts."""
    mixture, control = table[table["role"] == MIXTURE], table[table["role"] == CONTROL]
    if mixture.empty or control.empty:
        return ""
    ours, theirs = (rows.loc[rows["wer"].idxmin(), "system"] for rows in (mixture, control))
    found = test_of(tests, ours, theirs)
    if found["p_bootstrap_holm"] < ALPHA:
        better = ours if found["difference"] < 0 else theirs
        return f"Use {better}: it is significantly better than its counterpart of the same size."
    return f"Take {theirs}, which is simpler, unless more data or more seeds show {ours} to be better: the difference is not significant."


def _worst_group(table: pd.DataFrame, by_group: pd.DataFrame) -> str:
    """Where the errors of the best system are."""
    best = table.loc[table["wer"].idxmin(), "system"]
    groups = by_group[(by_group["system"] == best) & (by_group["column"] == "etiology")] if len(by_group) else by_group
    if len(groups) < 2:
        return ""
    worst = groups.loc[groups["wer"].idxmax()]
    return (
        f"Listen to {worst['group']}, where {best} has most errors ({100 * worst['wer']:.1f} % WER): `explorer.html` of its evaluate run "
        "plays the worst utterances."
    )


def _more_seeds(table: pd.DataFrame) -> str:
    if (table["n_runs"] > 1).any():
        return ""
    return "Train further seeds on the same corpus (`-P seed=1 -P corpus_seed=42`) and compare all runs: one seed says nothing of the spread."
