"""Cross-entropy of a frozen token head, a few rows of logits at a time.

Whisper has 51 865 tokens: logits, their softmax and their gradient are the largest tensors of a training step. The head does not train,
so all that backward needs is the gradient of its input, which is known as soon as the logits are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe.system import IGNORED

LOGITS = 1 << 24  # held at a time: 64 MB; with fewer the head is read too often


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, head: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """States (N, D), head (V, D), labels (N,) → cross-entropy of each row, 0 where the label is ignored, (N,) float32."""
        n_rows, trains = max(1, LOGITS // len(head)), ctx.needs_input_grad[0]
        parts = [_rows(*part, head, trains, smoothing) for part in zip(states.split(n_rows), labels.split(n_rows), strict=True)]
        losses, gradients = zip(*parts, strict=True)
        if trains:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor, None, None, None]:
        """Slopes (N,) of the losses."""
        (gradients,) = ctx.saved_tensors
        return gradients * slopes[:, None].to(gradients.dtype), None, None, None


def head_cross_entropy(states: Tensor, head: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean token cross-entropy of each utterance: decoder states (B, N, D), frozen head (V, D), labels (B, N) → (B,).

    Args:
        smoothing: share of the target that is spread over all tokens (label smoothing: Szegedy et al. 2016, arXiv:1512.00567).
    """
    cross_entropy: Callable[..., Tensor] = _HeadCrossEntropy.apply
    losses = cross_entropy(states.flatten(0, 1), head, labels.flatten(), smoothing).view_as(labels)  # (B, N)
    return losses.sum(1) / (labels != IGNORED).sum(1).clamp_min(1)


def _rows(states: Tensor, labels: Tensor, head: Tensor, trains: bool, smoothing: float) -> tuple[Tensor, Tensor | None]:
    """Losses of some rows (n,), and their gradient by the states (n, D)."""
    log_probabilities, scored = (
        F.linear(states, head).float().log_softmax(-1),
        labels != IGNORED,
    )  # one pass, where logsumexp makes four
    wanted = labels.clamp_min(0)[:, None]
    losses = -log_probabilities.gather(-1, wanted)[:, 0]
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_probabilities.mean(-1)
    losses = losses * scored
    if not trains:
        return losses, None
    slopes = log_probabilities.exp_()  # in their own place
    if smoothing:
        slopes.sub_(smoothing / len(head))
    slopes.scatter_add_(-1, wanted, slopes.new_full(wanted.shape, smoothing - 1.0))
    return losses, (F.linear(slopes, head.T) * scored[:, None]).to(states.dtype)


def utterance_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean token cross-entropy of each utterance: logits (B, N, V), labels (B, N) → (B,)."""
    flat = logits.float().flatten(0, 1)  # (B·N, V): over a middle dimension softmax takes more than twice as long
    losses = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none").view_as(labels)  # (B, N)
    scored = labels != IGNORED
    return (losses * scored).sum(1) / scored.sum(1).clamp_min(1)
