"""The routings that a gate is measured against: who would have chosen better, and whether choosing matters at all.

Every expert alone and all mixed alike are decoded; a routing that gives each utterance to one expert is then only looked up, since what
an expert makes of an utterance depends on neither the other utterances nor the reason it was chosen.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from moe.system import Hypothesis


def choices(
    rows: pd.DataFrame, n_experts: int, expert_of_etiology: Mapping[str, int], clusters: np.ndarray | None, seed: int
) -> dict[str, np.ndarray]:
    """Routings that give each utterance of a manifest to one expert, (N,) each.

    Args:
        rows: etiology of the utterances.
        expert_of_etiology: for `oracle`, which is left out where an etiology has no expert.
        clusters: (N,) for `cluster`, which is left out where there are none.
        seed: of `random`.
    """
    chosen = {"random": np.random.default_rng(seed).integers(n_experts, size=len(rows))}
    if set(rows["etiology"]) <= set(expert_of_etiology):
        chosen["oracle"] = rows["etiology"].map(dict(expert_of_etiology)).to_numpy()
    if clusters is not None:
        chosen["cluster"] = np.asarray(clusters)
    return chosen


def looked_up(decoded: Mapping[str, Sequence[Hypothesis]], experts: np.ndarray) -> list[Hypothesis]:
    """Hypotheses of a routing to one expert each, (N,), from those of every expert alone."""
    return [decoded[f"expert_{expert}"][index] for index, expert in enumerate(experts.tolist())]


def majority(labels: np.ndarray, groups: Sequence[str]) -> dict[str, int]:
    """The most frequent of labels (N,) in each group; ties go to the smaller label."""
    table = pd.crosstab(pd.Series(list(groups), name="group"), pd.Series(labels, name="label"))
    return {group: int(row.idxmax()) for group, row in table.iterrows()}
