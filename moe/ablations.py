"""The routings that a gate is measured against: who would have chosen better, and whether choosing matters at all."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from moe.decoding import RoutingPolicy
from moe.routing import one_hot


def policies(
    rows: pd.DataFrame, n_experts: int, expert_of_etiology: Mapping[str, int], clusters: np.ndarray | None, seed: int
) -> dict[str, RoutingPolicy]:
    """Routing policies by name for the utterances of a manifest.

    Args:
        rows: utterance_id and etiology of the utterances.
        expert_of_etiology: for `oracle`, which is left out where an etiology has no expert.
        clusters: (N,) for `cluster`, which is left out where there are none.
        seed: of `random`, one expert per utterance.

    Returns:
        `random`, `uniform` (every expert alike), `expert_0` … (one expert for all), and where possible `oracle` and `cluster`.
    """
    ids = rows["utterance_id"].tolist()
    chosen = {"random": np.random.default_rng(seed).integers(n_experts, size=len(ids))}
    if set(rows["etiology"]) <= set(expert_of_etiology):
        chosen["oracle"] = rows["etiology"].map(dict(expert_of_etiology)).to_numpy()
    if clusters is not None:
        chosen["cluster"] = clusters
    chosen |= {f"expert_{expert}": np.full(len(ids), expert) for expert in range(n_experts)}
    fixed = {name: fixed_policy(dict(zip(ids, experts.tolist(), strict=True)), n_experts) for name, experts in chosen.items()}
    return fixed | {"uniform": lambda utterance_ids: torch.full((len(utterance_ids), n_experts), 1 / n_experts)}


def fixed_policy(expert_of: Mapping[str, int], n_experts: int) -> RoutingPolicy:
    """All weight of an utterance on the expert written down for it."""

    def policy(utterance_ids: Sequence[str]) -> torch.Tensor:
        return one_hot(torch.tensor([expert_of[name] for name in utterance_ids]), n_experts).weights

    return policy
