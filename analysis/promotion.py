"""May a system become champion? Only if it is better than its base and no worse than its fair control.

Where there is a champion of the same test set, it must be significantly better than that one too, and leave no group behind.
"""

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


@dataclass(frozen=True)
class Merit:
    """Whether a system deserves to be champion at all, and why in one sentence."""

    deserved: bool
    reason: str


def merit(
    system: SystemScores, base: SystemScores | None, control: SystemScores | None, n_resamples: int = N_RESAMPLES, seed: int = 0
) -> Merit:
    """Compare a system with its base and its fair control on their common test set.

    Args:
        base, control: their evaluations; None where there is none, which no system gets past unless it has no control.

    Raises:
        ValueError: they were not scored on one test set.
    """
    if base is None:
        return Merit(
            False, f"{system.name} was not compared with a base model: evaluate zero_shot and register with that run too"
        )
    said = []
    for other, words in ((base, "the base model"), (control, f"its fair control, {control.name}" if control else "")):
        if other is None:
            continue
        check_comparable([system, other])
        found = speaker_difference(counted(system), counted(other), n_resamples, seed)
        if other is base and not is_better(found):
            return Merit(False, f"not significantly better than {words}: {size_words(found, words)}")
        if found.value > 0:
            return Merit(False, size_words(found, words))
        said.append(size_words(found, words))
    if control is None and system.control is not None:
        return Merit(False, f"{said[0]}, but its fair control, {system.control}, was not evaluated: register with that run too")
    return Merit(True, " and ".join(said))


def size_words(found: Difference, other: str) -> str:
    """A difference as words: "0.9 points WER better than one LoRA (-2.3 to +0.6, p = 0.220)"."""
    size = f"{abs(100 * found.value):.1f} points WER {'better' if found.value < 0 else 'worse'} than {other}"
    if not found.value:
        size = f"no different from {other}"
    return f"{size} ({100 * found.low:+.1f} to {100 * found.high:+.1f}, {p_words(found.p_value)})"


def is_better(found: Difference) -> bool:
    """Whether the first of two makes significantly fewer errors."""
    return found.value < 0 and found.p_value < ALPHA


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
    better = is_better(difference)
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
    size = size_words(difference, champion)
    if not better:
        return f"not significantly better: {size}" if difference.value <= 0 else size
    if lost.empty:
        return f"{size}, and no group worse by more than {100 * allowed:g} points"
    named = ", ".join(f"{row.column} {row.group} by {100 * row.difference:.1f}" for row in lost.head(3).itertuples())
    return f"{size}, but worse by more than {100 * allowed:g} points for {named}"
