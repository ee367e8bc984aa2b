"""Experts left out of some utterances of a training, so that the shared adapter learns to stand alone.

Whether an utterance has its experts follows from seed, epoch and utterance: any number of processes draws the same, and so does a training
that was interrupted.
"""

import hashlib
from collections.abc import Sequence

import torch

from moe.routing.weights import RoutingWeights

N_BYTES = 8


def without_some(weights: RoutingWeights, share: float, draws: str, utterance_ids: Sequence[str]) -> RoutingWeights:
    """The same, with a share of the utterances left to the shared adapter: their weights are zero, (B, E).

    Args:
        draws: names the draws, so that the next epoch has others.
        utterance_ids: (B,).
    """
    kept = torch.tensor([[_chance(draws, each) >= share] for each in utterance_ids], device=weights.weights.device)  # (B, 1)
    return RoutingWeights(weights.weights * kept, weights.top_k)


def _chance(draws: str, utterance_id: str) -> float:
    """Uniform from 0 to 1."""
    digest = hashlib.blake2b(f"expert_dropout/{draws}/{utterance_id}".encode(), digest_size=N_BYTES).digest()
    return int.from_bytes(digest) / 256**N_BYTES
