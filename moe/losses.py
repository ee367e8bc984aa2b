"""Losses of the mixture: transcription per utterance, and the terms that keep the gate from collapsing."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.options import Options, option
from moe.tokens import IGNORED


@dataclasses.dataclass(frozen=True)
class BalanceOptions(Options):
    """How the gate is kept from sending everyone to the same expert."""

    balance: str = option("kl", "balance loss: KL of the mean routing to uniform, or Switch's f·P", choices=("kl", "switch", "none"))
    balance_coefficient: float = option(0.01, "weight of the balance loss", low=0)
    balance_window: int = option(256, "utterances over which routing is balanced", low=1)
    entropy_coefficient: float = option(0.0, "weight of the mean routing entropy (above 0: sharper routing)", low=0)
    alignment_coefficient: float = option(0.0, "weight of the gate's KL to the cluster labels in joint training", low=0)


def utterance_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean token cross-entropy of each utterance: logits (B, N, V), labels (B, N) → (B,)."""
    flat = logits.float().flatten(0, 1)  # (B·N, V): over a middle dimension softmax takes more than twice as long
    losses = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none").view_as(labels)  # (B, N)
    scored = labels != IGNORED
    return (losses * scored).sum(1) / scored.sum(1).clamp_min(1)


def kl_balance(mean_probabilities: Tensor) -> Tensor:
    """KL(mean routing ‖ uniform) in nats: 0 when every expert gets the same share. (E,) → ()."""
    n_experts = mean_probabilities.shape[-1]
    return (mean_probabilities * _log(mean_probabilities * n_experts)).sum()


def switch_balance(load: Tensor, mean_probabilities: Tensor) -> Tensor:
    """E · Σ f_e P_e (Fedus et al. 2021, arXiv:2101.03961, eq. 4): 1 when balanced. (E,), (E,) → ()."""
    return load.shape[-1] * (load.detach() * mean_probabilities).sum()


def routing_entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy of the rows in nats: (B, E) → ()."""
    return -(probabilities * _log(probabilities)).sum(-1).mean()


def alignment(gate_logits: Tensor, targets: Tensor) -> Tensor:
    """KL(targets ‖ gate), mean over the batch: (B, E), (B, E) → ()."""
    return F.kl_div(F.log_softmax(gate_logits.float(), -1), targets, reduction="batchmean")


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()  # at 0 the gradient of log would turn all to NaN


class BalanceWindow(nn.Module):
    """Routing probabilities of the last utterances, so that balance is asked of a window and not of every micro-batch.

    Pushing each small batch to uniform would fight specialisation. Gradient flows through the newest batch only.
    """

    def __init__(self, n_experts: int, size: int) -> None:
        super().__init__()
        self.register_buffer("recent", torch.zeros(size, n_experts))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.long))

    def mean(self, probabilities: Tensor) -> Tensor:
        """Mean routing over the window with this batch in it, (B, E) → (E,); the batch joins the window."""
        size, n_new = self.recent.shape[0], probabilities.shape[0]
        n_kept = min(int(self.n_seen), max(0, size - n_new))
        kept = self.recent[:n_kept]
        mean = (kept.sum(0) + probabilities.sum(0)) / (n_kept + n_new)
        with torch.no_grad():
            self.recent[: min(size, n_new + n_kept)] = torch.cat([probabilities.detach(), kept])[:size]
            self.n_seen += n_new
        return mean
