"""Routing options of the steps: each does something, or is refused up front with the reason."""

import numpy as np
import pytest

from moe.routing.embeddings import speaker_means
from steps import asr, experts

DATA = {"prepare_run_id": "pending", "pretrain_run_id": "pending"}
IDS = {name: "pending" for name in ("cluster_run_id", "gate_run_id", "experts_run_id")}
RANDOM = {"skip_pretraining": True, "num_experts": 4}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"freeze_gate": True, "entropy_coefficient": 0.1}, "entropy_coefficient=0.1: freeze_gate=true trains no gate"),
        ({"freeze_gate": True, "minimum_usage": 0.1}, "minimum_usage=0.1: freeze_gate=true"),
        ({"freeze_gate": True, "balance": "switch"}, "balance=switch: freeze_gate=true"),
        ({"freeze_gate": True, "gate_learning_rate": 0.1}, "gate_learning_rate=0.1: freeze_gate=true"),
        ({"top_k": 1, "balance": "none"}, "top_k=1 gives the gate no gradient"),
        ({"temperature_start": 2.0}, "temperature_start=2 has no effect"),
        ({"gate_scaling": "probability", "mixing": "loss"}, "gate_scaling=probability with mixing=loss"),
        ({"balance": "none", "balance_coefficient": 0.5}, "balance=none has no balance loss"),
        ({"minimum_usage_coefficient": 0.5}, "minimum_usage=0 asks for none"),
        ({"gate_scaling": "certainty", "mixing": "loss"}, "gate_scaling=certainty with mixing=loss"),
        (RANDOM | {"gate_scaling": "certainty"}, "gate_scaling=certainty: skip_pretraining=true starts with a gate"),
        (RANDOM | {"minimum_usage": 0.3}, "4 experts can have 0.25 each"),
        (RANDOM | {"alignment_coefficient": 0.3}, "skip_pretraining=true has no clusters to align the gate to"),
        (RANDOM | {"num_experts": 1, "top_k": 1, "router_noise": 0.3}, "router_noise=0.3: num_experts=1"),
        (
            RANDOM | {"num_experts": 1, "top_k": 1, "gate_scaling": "probability"},
            "gate_scaling=probability: num_experts=1 leaves nothing to route",
        ),
        (RANDOM | {"num_experts": 2, "soft_epochs": 1}, "soft_epochs=1: top_k=2 routes to all 2 experts"),
    ],
)
def test_what_joint_training_would_ignore_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        asr.StepOptions(**DATA, **(options if "skip_pretraining" in options else IDS | options))


@pytest.mark.parametrize(
    "options",
    [
        {"freeze_gate": True, "router_noise": 0.5, "balance": "none"},  # noise changes which experts learn from whom
        {"freeze_gate": True, "soft_epochs": 1, "temperature_start": 2.0},
        {"top_k": 1, "balance": "none", "gate_scaling": "probability"},
        {"top_k": 1, "balance": "none", "gate_scaling": "certainty"},
        {"top_k": 1, "balance": "none", "soft_epochs": 1},
        {"top_k": 1, "balance": "none", "alignment_coefficient": 0.1},
        {"top_k": 1},
        {"balance": "none", "minimum_usage": 0.1, "balance_window": 64},
        RANDOM | {"minimum_usage": 0.25, "router_noise": 1.0, "gate_unit": "speaker"},
    ],
)
def test_what_has_an_effect_is_taken(options: dict) -> None:
    asr.StepOptions(**DATA, **(options if "skip_pretraining" in options else IDS | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_epochs": 1, "shared_expert": False}, "shared_epochs=1: shared_expert=false"),
        ({"shared_epochs": 1, "experts_init": "shared", "shared_r": 8}, "shared_r=8 must be lora_r=4"),
        ({"experts_init": "shared"}, "shared_epochs=0 leaves the shared adapter zero"),
        ({"shared_epochs": 3, "expert_epochs": 3}, "leaves none of expert_epochs=3"),
    ],
)
def test_a_start_of_the_experts_that_makes_no_sense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        experts.StepOptions(**DATA, cluster_run_id="pending", **options)
    experts.StepOptions(**DATA, cluster_run_id="pending", shared_epochs=1, experts_init="shared", shared_r=4)


def test_a_speakers_profile_is_the_mean_of_its_utterances_for_each_of_them() -> None:
    vectors = np.array([[1.0, 0.0], [4.0, 4.0], [3.0, 2.0]], np.float32)
    found = speaker_means(vectors, ["b", "a", "b"])
    assert found.tolist() == [[2.0, 1.0], [4.0, 4.0], [2.0, 1.0]] and found.dtype == np.float32
