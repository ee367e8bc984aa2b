"""The classifier behind `domain=auto`: which domain an utterance sounds like, from pooled states of a low layer of the encoder."""

import tempfile
from pathlib import Path

import numpy as np

from moe.routing.embeddings import embed
from moe.routing.gate_training import GateOptions, GateResult, train_gate
from moe.systems.domain_whisper.domains import NO_DOMAIN
from moe.systems.domain_whisper.model import DomainWhisper
from moe.systems.whisper.encoder import embedder
from moe.training.checkpoints import Checkpoints
from moe.training.dataset import SpeechDataset
from moe.training.hooks import Report

LAYER, POOLING = 0, "mean_std"  # the convolutions' output, which tells speech styles apart best and which no block changes
EMBEDDING_BATCH = 32


def train_classifier(
    model: DomainWhisper,
    train: tuple[SpeechDataset, np.ndarray],
    dev: tuple[SpeechDataset, np.ndarray],
    seed: int,
    report: Report,
    checkpoints: Checkpoints,
) -> GateResult:
    """Train it on utterances whose domain is known.

    Args:
        train, dev: utterances as they are and the numbers (N,) of their domains.
    """
    n_domains = len(model.prompts.names)
    (vectors, labels), (dev_vectors, dev_labels) = (_known(model, *part, n_domains) for part in (train, dev))
    options = GateOptions(seed=seed, top_k=1)
    return train_gate(vectors, labels, dev_vectors, dev_labels, options, report, checkpoints)


def _known(model: DomainWhisper, dataset: SpeechDataset, domain: np.ndarray, n_domains: int) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (n, D) and one-hot labels (n, n_domains) of the utterances that have a domain."""
    with tempfile.TemporaryDirectory() as folder:
        embedded = embed(embedder(model.base, LAYER, POOLING, model.precision), dataset, Path(folder), EMBEDDING_BATCH)
    known = domain != NO_DOMAIN
    return embedded.vectors[known], np.eye(n_domains, dtype=np.float32)[domain[known]]
