"""May a challenger take the champion's place? Only if it is significantly better on the same test set and leaves no group behind."""

from dataclasses import dataclass

import pandas as pd

from analysis.groups import groupings
from analysis.hypotheses import groups_of
from analysis.intervals import N_RESAMPLES, Difference
from analysis.significance import speaker_difference
from analysis.systems import SystemScores, check_comparable, counted
from analysis.verdict import ALPHA, p_words


@dataclass(frozen=True)
class Decision:
    """What became of a challenger, and why in one sentence.

    Attributes:
        difference: WER of the challenger minus the champion's; None where the two cannot be compared.
        groups: columns column, group, n_utterances, n_speakers, difference; the group that lost most first.
    """

    promoted: bool
    reason: str
    difference: Difference | None
    groups: pd.DataFrame


def decide(
    challenger: SystemScores,
    champion: SystemScores,
    champion_name: str,
    max_group_regression: float,
    n_resamples: int = N_RESAMPLES,
    seed: int = 0,
) -> Decision:
    """Compare a challenger with the champion on the utterances of their common test set.

    Args:
        champion_name: as the reason calls it.
        max_group_regression: WER (0.02 is two points) that any group of `analysis.groups` may lose.
    """
    try:
        check_comparable([challenger, champion])
    except ValueError as error:
        return Decision(False, f"cannot be compared with {champion_name}: {error}", None, _no_groups())
    ours, theirs = counted(challenger), counted(champion)
    difference = speaker_difference(ours, theirs, n_resamples, seed)
    groups = regressions(ours, theirs)
    better = difference.value < 0 and difference.p_value < ALPHA
    lost = groups[groups["difference"] > max_group_regression + 1e-12]
    return Decision(
        better and lost.empty, _reason(difference, better, lost, champion_name, max_group_regression), difference, groups
    )


def regressions(ours: pd.DataFrame, theirs: pd.DataFrame) -> pd.DataFrame:
    """WER of our counted table minus theirs in every group of every grouping; the group that lost most first."""
    rows = []
    for column in groupings(ours):
        for group, part in ours.groupby(groups_of(ours, column), observed=True):
            other = theirs[theirs["utterance_id"].isin(part["utterance_id"])]
            n_words = part["n_words"].sum()
            lost = (part["word_errors"].sum() - other["word_errors"].sum()) / n_words if n_words else 0.0
            rows.append((column, str(group), len(part), part["speaker"].nunique(), float(lost)))
    return pd.DataFrame(rows, columns=list(_no_groups())).sort_values(
        "difference", ascending=False, ignore_index=True, kind="stable"
    )


def _no_groups() -> pd.DataFrame:
    return pd.DataFrame(columns=["column", "group", "n_utterances", "n_speakers", "difference"])


def _reason(difference: Difference, better: bool, lost: pd.DataFrame, champion: str, allowed: float) -> str:
    size = f"{abs(100 * difference.value):.1f} points WER {'better' if difference.value < 0 else 'worse'} than {champion}"
    if not difference.value:
        size = f"no different from {champion}"
    interval = f" ({100 * difference.low:+.1f} to {100 * difference.high:+.1f}, {p_words(difference.p_value)})"
    if not better:
        return f"not significantly better: {size}{interval}" if difference.value <= 0 else f"{size}{interval}"
    if lost.empty:
        return f"{size}{interval}, and no group worse by more than {100 * allowed:g} points"
    named = ", ".join(f"{row.column} {row.group} by {100 * row.difference:.1f}" for row in lost.head(3).itertuples())
    return f"{size}{interval}, but worse by more than {100 * allowed:g} points for {named}"
