"""How undecided a gate is, from the probabilities that it gives the experts."""

import math

import torch
from torch import Tensor


def doubt(probabilities: Tensor) -> Tensor:
    """Entropy of each row by that of an even one, (B, E) → (B,): 0 sure, 1 undecided; of a single expert 0."""
    n_experts = probabilities.shape[-1]
    return (entropies(probabilities) / math.log(max(2, n_experts))).clamp(0.0, 1.0)


def entropies(probabilities: Tensor) -> Tensor:
    """Entropy of each row in nats: (B, E) → (B,)."""
    return -(probabilities * finite_log(probabilities)).sum(-1)


def finite_log(probabilities: Tensor) -> Tensor:
    """Natural logarithm of each (B, E), finite at 0, where its gradient would turn all to NaN."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
