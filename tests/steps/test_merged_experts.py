"""What `asr` takes over from experts that were merged: gate, labels and clusters have as many as are left."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moe.clustering.clusters import UtteranceClusters
from moe.clustering.options import ClusteringOptions
from moe.corpora.tables import write_table
from moe.experts.routed_lora import AdapterOptions
from moe.files import write_json
from moe.routing.gate import Gate, GateConfig
from steps import asr
from steps.inputs.corpus import soft_labels
from steps.inputs.expert_clusters import clusters_of_experts, read_labels
from steps.tracking import artifacts

N = 30
OPTIONS = asr.StepOptions(prepare_run_id="p", pretrain_run_id="b", cluster_run_id="c", gate_run_id="g", experts_run_id="e")


@pytest.fixture
def upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Artifacts of earlier runs: three clusters and a gate over them, and two experts that are left."""
    vectors = np.random.default_rng(0).normal(size=(N, 5)) + 9 * np.eye(3, 5)[np.arange(N) % 3]
    ids = [f"u{number:02d}" for number in range(N)]
    clusters = UtteranceClusters(ClusteringOptions(num_experts=3, cluster_unit="utterance")).fit(vectors, ids)
    clusters.save(tmp_path / artifacts.CLUSTERS)
    soft = {f"soft_{number}": clusters.soft_labels_[:, number] for number in range(3)}
    labels = pd.DataFrame({"utterance_id": ids, "split": "train", "cluster": clusters.labels_, "etiology": "als", **soft})
    write_table(tmp_path / artifacts.LABELS, labels)
    Gate(GateConfig(5, 3), seed=1).save(tmp_path / artifacts.GATE)
    (tmp_path / artifacts.EXPERTS).mkdir()
    write_json(tmp_path / artifacts.EXPERTS_RECORD, {"n_experts": 2, "expert_of_cluster": [0, 1, 1]})
    monkeypatch.setattr(artifacts, "upstream", lambda run_id, name: tmp_path / name)
    return tmp_path


def test_the_gate_has_as_many_experts_as_are_left(upstream: Path) -> None:
    gate, n_experts = asr._initial_gate(OPTIONS, np.zeros((1, 5)))
    assert (n_experts, gate.gate_config.n_experts, gate.gate_config.n_classes) == (2, 2, 3)


def test_a_gate_of_other_clusters_is_refused(upstream: Path) -> None:
    Gate(GateConfig(5, 4), seed=1).save(upstream / artifacts.GATE)
    with pytest.raises(ValueError, match="gate run g has 4 experts, experts run e 2"):
        asr._initial_gate(OPTIONS, np.zeros((1, 5)))


def test_nothing_is_dropped_to_a_shared_adapter_that_the_experts_run_has_not(upstream: Path) -> None:
    adapters = dataclasses.asdict(AdapterOptions(shared_expert=False, shared_r=None))
    write_json(upstream / artifacts.EXPERTS_RECORD, {"n_experts": 2, "adapters": adapters})
    assert asr._ranks(OPTIONS, 2).shared_rank == 0
    with pytest.raises(ValueError, match="^expert_dropout=0.5: experts run e has no shared adapter$"):
        asr._ranks(dataclasses.replace(OPTIONS, expert_dropout=0.5), 2)


def test_clusters_beside_the_model_are_those_of_its_experts(upstream: Path) -> None:
    before, labels = pd.read_parquet(upstream / artifacts.LABELS), read_labels("c", "e")
    np.testing.assert_array_equal(labels["cluster"], np.minimum(before["cluster"], 1))
    assert soft_labels(labels).shape == (N, 2)
    with clusters_of_experts("c", "e") as folders:
        joined = UtteranceClusters.load(folders[artifacts.CLUSTERS])
        assert joined.n_clusters_ == 2
        pd.testing.assert_frame_equal(pd.read_parquet(folders[artifacts.CLUSTERS] / Path(artifacts.LABELS).name), labels)


def test_where_every_cluster_has_its_expert_the_folder_is_that_of_its_run(upstream: Path) -> None:
    write_json(upstream / artifacts.EXPERTS_RECORD, {"n_experts": 3, "expert_of_cluster": [0, 1, 2]})
    with clusters_of_experts("c", "e") as folders:
        assert folders == {artifacts.CLUSTERS: upstream / artifacts.CLUSTERS}
    with clusters_of_experts(None, None) as folders:
        assert folders == {}
