"""What is asked of a gate while it is trained: KL, argmax and top-k accuracy, calibration error and the temperature that mends it."""

import math

import torch
from torch import Tensor

N_BINS = 10  # as in the reliability diagram, so that the numbers are the same
TEMPERATURE_RANGE = (0.25, 10.0)


def kl_divergence(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of KL(targets ‖ softmax(logits)) in nats; both (n, n_experts)."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return (torch.xlogy(targets, targets) - targets * log_probabilities).sum(dim=-1).mean()


def gate_metrics(logits: Tensor, targets: Tensor, top_k: int) -> dict[str, float]:
    """`kl`, `accuracy` (argmax against argmax), `top_k_accuracy` and `ece` of logits against soft labels, both (n, n_experts)."""
    labels = targets.argmax(dim=-1)
    chosen = logits.topk(top_k, dim=-1).indices  # (n, top_k)
    return {
        "kl": float(kl_divergence(logits.double(), targets.double())),
        "accuracy": float((logits.argmax(dim=-1) == labels).double().mean()),
        "top_k_accuracy": float((chosen == labels[:, None]).any(dim=-1).double().mean()),
        "ece": calibration_error(logits, labels),
    }


def calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Expected calibration error in 10 bins of equal width (Naeini, Cooper & Hauskrecht 2015; Guo et al. 2017).

    Args:
        logits: (n, n_experts).
        labels: right experts (n,).
    """
    confidence, chosen = torch.softmax(logits.double(), dim=-1).max(dim=-1)  # (n,), (n,)
    bins = (confidence * N_BINS).ceil().long().clamp(1, N_BINS) - 1
    gap = (chosen == labels).double() - confidence
    return float(torch.zeros(N_BINS, dtype=torch.float64).index_add(0, bins, gap).abs().sum() / len(labels))


def cross_calibrated(logits: Tensor, labels: Tensor, half: Tensor) -> Tensor:
    """Logits (n, n_experts), each half by the temperature fitted on the other: how calibration does on what it was not fitted on.

    Args:
        labels: right experts (n,).
        half: bool (n,), of which half a row is.
    """
    found = logits.double().clone()
    for side in (half, ~half):
        if side.any() and (~side).any():
            found[side] /= fitted_temperature(logits[~side], labels[~side])
    return found


def fitted_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises the cross-entropy of labels (n,) under logits (n, n_experts) (Guo et al. 2017).

    Kept between 0.25 and 10: a gate that is right on all of a small dev split would otherwise be made infinitely sure.
    """
    from scipy.optimize import minimize_scalar  # here: models compute without it

    low, high = (math.log(bound) for bound in TEMPERATURE_RANGE)
    logits = logits.double()
    found = minimize_scalar(
        lambda log_t: float(torch.nn.functional.cross_entropy(logits / math.exp(log_t), labels)),
        bounds=(low, high),
        method="bounded",
    )
    return math.exp(found.x)
