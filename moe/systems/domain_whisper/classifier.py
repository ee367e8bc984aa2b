"""The classifier behind `domain=auto`: which domain an utterance sounds like, from pooled states of a low layer of the encoder."""

import dataclasses
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


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
    """A classifier, and the dev utterances that it is judged by: their vectors (n, D) and the numbers (n,) of their domains."""

    result: GateResult
    vectors: np.ndarray
    domains: np.ndarray


def train_classifier(
    model: DomainWhisper,
    train: tuple[SpeechDataset, np.ndarray],
    dev: tuple[SpeechDataset, np.ndarray],
    seed: int,
    report: Report,
    checkpoints: Checkpoints,
) -> TrainedClassifier:
    """Train it on utterances whose domain is known, and calibrate it where that helps speakers whom no temperature was fitted on.

    Args:
        train, dev: utterances as they are and the numbers (N,) of their domains.
    """
    (vectors, domains), (dev_vectors, dev_domains) = (_known(model, *part) for part in (train, dev))
    labels = np.eye(len(model.prompts.names), dtype=np.float32)  # (n_domains, n_domains)
    options = GateOptions(seed=seed, top_k=1)
    speakers = [speaker for speaker, number in zip(dev[0].rows.column("speaker"), dev[1], strict=True) if number != NO_DOMAIN]
    given = (vectors, labels[domains], dev_vectors, labels[dev_domains])
    return TrainedClassifier(train_gate(*given, options, report, checkpoints, speakers), dev_vectors, dev_domains)


def _known(model: DomainWhisper, dataset: SpeechDataset, domain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (n, D) of the utterances that have a domain, and its number (n,)."""
    with tempfile.TemporaryDirectory() as folder:
        embedded = embed(embedder(model.base, LAYER, POOLING, model.precision), dataset, Path(folder), EMBEDDING_BATCH)
    known = domain != NO_DOMAIN
    return embedded.vectors[known], domain[known]
