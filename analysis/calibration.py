"""How right and how sure a gate is: accuracy, top-k accuracy, calibration and confusion of its routing weights.

Probabilities (n_utterances, n_experts) and the true cluster of each utterance in, tables out.
"""

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix

N_BINS = 10


def top_k_accuracy(probabilities: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of utterances whose cluster, of labels (N,), is among the k most probable of (N, E); ties go to the lower expert number.

    Raises:
        ValueError: the arrays do not fit, or k is not in 1 … n_experts.
    """
    probabilities, labels = _checked(probabilities, labels)
    if not 1 <= k <= probabilities.shape[1]:
        raise ValueError(f"k={k}: must be between 1 and the number of experts, {probabilities.shape[1]}")
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]  # (N, k)
    return float((best == labels[:, None]).any(axis=1).mean())


def reliability(probabilities: np.ndarray, labels: np.ndarray, n_bins: int = N_BINS) -> pd.DataFrame:
    """Confidence against accuracy in equal bins of confidence, the largest probability of (N, E); labels (N,) are the true clusters.

    Returns:
        columns low, high (bounds of the bin, low excluded), n_utterances, confidence, accuracy (both NaN in an empty bin).
    """
    probabilities, labels = _checked(probabilities, labels)
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    n_utterances = np.bincount(bins, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(bins, weights=values, minlength=n_bins) / n_utterances for values in (confidence, right)]
    return pd.DataFrame(
        {"low": edges[:-1], "high": edges[1:], "n_utterances": n_utterances, "confidence": means[0], "accuracy": means[1]}
    )


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, n_bins: int = N_BINS) -> float:
    """Mean distance of confidence and accuracy, bins weighted by their size (Naeini et al. 2015; Guo et al. 2017).

    Args:
        probabilities: (N, E). labels: (N,) true clusters.
    """
    table = reliability(probabilities, labels, n_bins)
    used = table[table["n_utterances"] > 0]
    distance = (used["confidence"] - used["accuracy"]).abs()
    return float((distance * used["n_utterances"]).sum() / used["n_utterances"].sum())


def confusion_table(labels: np.ndarray, predicted: np.ndarray, n_experts: int | None = None) -> pd.DataFrame:
    """Number of utterances by true cluster, labels (N,) in rows, and expert chosen, predicted (N,) in columns; an unused one keeps both."""
    labels, predicted = np.asarray(labels, np.int64), np.asarray(predicted, np.int64)
    n_experts = n_experts or int(max(labels.max(), predicted.max())) + 1
    numbers = sorted({*range(n_experts), *labels.tolist(), *predicted.tolist()})  # noise, −1, keeps its row
    matrix = confusion_matrix(labels, predicted, labels=numbers)
    return pd.DataFrame(matrix, index=pd.Index(numbers, name="cluster"), columns=pd.Index(numbers, name="expert"))


def _checked(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, np.float64), np.asarray(labels, np.int64)
    if probabilities.ndim != 2 or len(probabilities) != len(labels) or len(labels) == 0:
        raise ValueError(
            f"probabilities {probabilities.shape} and labels {labels.shape}: need (n_utterances, n_experts) and (n_utterances,)"
        )
    return probabilities, labels
