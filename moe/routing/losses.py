"""Losses of the mixture: transcription per utterance, and the terms that keep the gate from collapsing."""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from moe.options import Options, option
from moe.routing.doubt import doubt, entropies, finite_log
from moe.training.processes import mean_of_batch


@dataclasses.dataclass(frozen=True)
class BalanceOptions(Options):
    """How the gate is kept from sending everyone to the same expert."""

    balance: str = option(
        "kl", "balance loss: KL of the mean routing to uniform, or Switch's f·P", choices=("kl", "switch", "none")
    )
    balance_coefficient: float = option(0.01, "weight of the balance loss", low=0)
    balance_window: int = option(256, "utterances over which routing is balanced", low=1)
    minimum_usage: float = option(0.0, "share of the window's routing below which an expert is pulled up; 0: none", low=0, high=1)
    minimum_usage_coefficient: float = option(
        0.1, "weight of minimum_usage: what an expert that is not used at all costs", above=0
    )
    entropy_coefficient: float = option(0.0, "weight of the mean routing entropy (above 0: sharper routing)", low=0)
    alignment_coefficient: float = option(0.0, "weight of the gate's KL to the cluster labels in joint training", low=0)

    def faults(self) -> list[str]:
        """What balance=none and minimum_usage=0 leave without effect."""
        unused = () if self.balance != "none" else ("balance_coefficient", *(() if self.minimum_usage else ("balance_window",)))
        found = [f"{name}={getattr(self, name)}: balance=none has no balance loss" for name in unused if self.is_changed(name)]
        if not self.minimum_usage and self.is_changed("minimum_usage_coefficient"):
            found.append(f"minimum_usage_coefficient={self.minimum_usage_coefficient:g}: minimum_usage=0 asks for none")
        return found

    @property
    def balances(self) -> bool:
        """Is any balance asked of the gate?"""
        return self.balance != "none" and self.balance_coefficient > 0

    @property
    def teaches_gate(self) -> bool:
        """Does any of these terms give the gate a gradient?"""
        return self.balances or bool(self.minimum_usage or self.entropy_coefficient or self.alignment_coefficient)


def routing_loss(
    options: BalanceOptions, probabilities: Tensor, recent: Tensor, top_k: int, gate_logits: Tensor, targets: Tensor | None
) -> Tensor:
    """What a batch's routing costs: the terms that the options ask for, each times its coefficient.

    Args:
        options: terms and coefficients.
        probabilities: (B, E) of this process's share of the batch; gate_logits: (B, E) they come from.
        recent: (n, E) over which routing is balanced, the whole batch among them.
        top_k: experts per utterance.
        targets: (B, E) cluster weights; without them nothing is aligned.
    """
    loss = torch.zeros((), device=probabilities.device)
    if options.balances:
        loss = loss + options.balance_coefficient * _balance(options.balance, recent, top_k)
    if options.minimum_usage:
        loss = loss + options.minimum_usage_coefficient * usage_shortfall(recent.mean(0), options.minimum_usage)
    if options.entropy_coefficient:
        loss = loss + options.entropy_coefficient * mean_of_batch(routing_entropy(probabilities), len(probabilities))
    if options.alignment_coefficient and targets is not None:
        loss = loss + options.alignment_coefficient * mean_of_batch(alignment(gate_logits, targets), len(targets))
    return loss


def _balance(kind: str, recent: Tensor, top_k: int) -> Tensor:
    if kind == "kl":
        return kl_balance(recent.mean(0))
    return switch_balance(dispatched(recent, top_k), recent.mean(0))


def kl_balance(mean_probabilities: Tensor) -> Tensor:
    """KL(mean routing ‖ uniform) in nats: 0 when every expert gets the same share. (E,) → ()."""
    n_experts = mean_probabilities.shape[-1]
    return (mean_probabilities * finite_log(mean_probabilities * n_experts)).sum()


def switch_balance(load: Tensor, mean_probabilities: Tensor) -> Tensor:
    """E · Σ f_e P_e (Fedus et al. 2021, arXiv:2101.03961, eq. 4): 1 when balanced. (E,), (E,) → ()."""
    return load.shape[-1] * (load.detach() * mean_probabilities).sum()


def usage_shortfall(mean_probabilities: Tensor, minimum: float) -> Tensor:
    """Σ max(0, 1 − P_e / minimum): 0 when every expert gets its minimum, 1 for each that gets nothing. (E,) → ()."""
    return (1 - mean_probabilities / minimum).clamp_min(0).sum()


def dispatched(probabilities: Tensor, top_k: int) -> Tensor:
    """Share of the choices that fall on each expert when every row chooses its `top_k` most probable: (B, E) → (E,), sums to 1."""
    chosen = probabilities.detach().topk(min(top_k, probabilities.shape[-1]), dim=-1).indices.flatten()  # (B·k,)
    counts = F.one_hot(chosen, probabilities.shape[-1]).sum(0)
    return counts.to(probabilities.dtype) / len(chosen)


def routing_entropy(probabilities: Tensor) -> Tensor:
    """Mean entropy of the rows in nats: (B, E) → ()."""
    return entropies(probabilities).mean()


def alignment(gate_logits: Tensor, targets: Tensor) -> Tensor:
    """KL(targets ‖ gate), mean over the batch: (B, E), (B, E) → ()."""
    return F.kl_div(F.log_softmax(gate_logits.float(), -1), targets, reduction="batchmean")


class BalanceWindow(nn.Module):
    """Routing probabilities of the last utterances, so that balance is asked of a window and not of every micro-batch.

    Pushing each small batch to uniform would fight specialisation. Gradient flows through the newest batch only.
    """

    recent: Tensor  # (size, n_experts), newest first
    n_seen: Tensor  # (), rows that have joined

    def __init__(self, n_experts: int, size: int) -> None:
        super().__init__()
        self.register_buffer("recent", torch.zeros(size, n_experts))
        self.register_buffer("n_seen", torch.zeros((), dtype=torch.long))

    def join(self, probabilities: Tensor) -> Tensor:
        """The batch joins the window: (B, E) → (n, E), the batch and what the window holds beside it; gradient through the batch.

        The gradient of a mean over the rows is that of the mean over the batch: else a coefficient would mean less in a longer window.
        """
        size, n_new = self.recent.shape[0], probabilities.shape[0]
        n_kept = min(int(self.n_seen), max(0, size - n_new))
        change = probabilities - probabilities.detach()  # nothing, but for the gradient
        rows = torch.cat([probabilities.detach() + change * (n_new + n_kept) / n_new, self.recent[:n_kept]])
        with torch.no_grad():
            self.recent[: min(size, len(rows))] = rows.detach()[:size]
            self.n_seen += n_new
        return rows

    @property
    def rows(self) -> Tensor:
        """What the window holds, (n, E); n is 0 before the first batch."""
        return self.recent[: min(int(self.n_seen), len(self.recent))]


def normalised_entropy(probabilities: Tensor) -> float:
    """Mean entropy of the gate's whole distribution (n, E) by its maximum: 0 sure, 1 undecided; also where the top 1 alone is used."""
    return float(doubt(probabilities).mean())
