"""What a CTC with experts starts from: the clusters of a `cluster` run, and a gate trained to tell them apart by the CTC's own embeddings."""

import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

from moe.routing.ablations import majority
from moe.routing.embeddings import embed
from moe.routing.gate_training import GateOptions, train_gate
from moe.system import Inputs
from moe.systems.wav2vec2_ctc.mixture_system import CTCMixtureSystem
from moe.training.dataset import SpeechDataset
from steps.inputs.corpus import Prepared, soft_labels
from steps.inputs.test_set import EMBEDDING_BATCH, embedder_of
from steps.inputs.training import TrainingInputs
from steps.tracking import artifacts


@dataclasses.dataclass(frozen=True)
class RoutingStart:
    """What a training of experts reads beside the utterances.

    Attributes:
        train, dev: embeddings of the rows trained on and of those scored, (N, D).
        targets: soft cluster labels of the rows trained on, (N, E).
    """

    train: np.ndarray
    dev: np.ndarray
    targets: np.ndarray

    def extras(self, aligns: bool) -> dict[str, np.ndarray]:
        """What the train set serves beside its examples, (N, …) each."""
        return {"embedding": self.train} | ({"cluster_weights": self.targets} if aligns else {})


def read_clusters(cluster_run_id: str, n_experts: int) -> pd.DataFrame:
    """The labels of a cluster run, by utterance.

    Raises:
        ValueError: there are not as many clusters as experts.
    """
    labels = pd.read_parquet(artifacts.upstream(cluster_run_id, artifacts.LABELS)).set_index("utterance_id")
    n_clusters = soft_labels(labels).shape[1]
    if n_clusters != n_experts:
        raise ValueError(f"ctc_experts={n_experts}: cluster run {cluster_run_id} has {n_clusters} clusters; give as many")
    return labels


def start_routing(system: CTCMixtureSystem, given: TrainingInputs, labels: pd.DataFrame, seed: int) -> RoutingStart:
    """Give the system a gate that tells the clusters apart; what it reads of the rows.

    Raises:
        ValueError: utterances that the cluster run does not know.
    """
    parts = [given.train, given.dev]
    missing = [name for rows in parts for name in rows["utterance_id"] if name not in labels.index]
    if missing:
        raise ValueError(f"{len(missing)} utterances have no cluster, e.g. {missing[:3]}; embed and cluster them first")
    train, dev = (_embedded(system, given.prepared, rows, system.inputs) for rows in parts)
    soft = [soft_labels(labels.loc[rows["utterance_id"]]).copy() for rows in parts]  # pandas gives views that torch may not write
    options = GateOptions(top_k=system.top_k, seed=seed)
    system.module.gate = train_gate(train, soft[0], dev, soft[1], options).gate
    known = labels[labels["split"] == "train"]
    system.expert_of_etiology = majority(known["cluster"].to_numpy(), known["etiology"])
    return RoutingStart(train, dev, soft[0])


def _embedded(system: CTCMixtureSystem, prepared: Prepared, rows: pd.DataFrame, inputs: Inputs) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        found = embed(embedder_of(system), SpeechDataset(rows, prepared.root, inputs), Path(folder), EMBEDDING_BATCH)
    return found.select(rows["utterance_id"])
