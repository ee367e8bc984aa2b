"""Routings beside the gate's own: every one a distribution, and those that are only looked up what decoding them would give."""

import numpy as np
import pandas as pd
import pytest

from moe.recognition.decoding import decode, decode_ways
from moe.routing.ablations import choices, looked_up
from moe.system import DecodingOptions
from tests.toys.models import ALL_LINEARS, N_EXPERTS, adapter_options, dataset, system_of, toy_mixture, write_corpus

ROWS = pd.DataFrame({"utterance_id": ["a", "b", "c"], "etiology": ["als", "als", "stroke"]})


def test_what_is_decoded_is_every_expert_alone_all_alike_and_none(tmp_path) -> None:
    system, data = system_of(toy_mixture(3)), dataset(write_corpus(tmp_path), tmp_path)
    found = decode_ways(system, data, DecodingOptions(), system.ablations())
    assert set(found) == {"expert_0", "expert_1", "expert_2", "uniform", "shared"}
    assert [each.routing_weights.tolist() for each in found["expert_1"]] == [[0, 1, 0]] * 6
    assert all(each.routing_weights.tolist() == pytest.approx([1 / 3] * 3) for each in found["uniform"])


def test_choices_by_hand_and_random_is_seeded() -> None:
    given = (ROWS, 3, {"als": 2, "stroke": 0}, np.array([1, 1, 0]))
    found = choices(*given, 5)
    assert found["oracle"].tolist() == [2, 2, 0] and found["cluster"].tolist() == [1, 1, 0]
    assert found["random"].tolist() == choices(*given, 5)["random"].tolist()
    assert len({tuple(choices(*given, seed)["random"]) for seed in range(8)}) > 1


def test_an_etiology_that_training_never_saw_has_no_oracle_and_no_clusters_no_cluster_routing() -> None:
    assert set(choices(ROWS.assign(etiology="dyslexia"), 3, {"als": 0}, None, 5)) == {"random"}


@pytest.mark.parametrize("beams", [1, 2])
def test_looking_up_equals_decoding(tmp_path, beams: int) -> None:
    system, manifest = system_of(toy_mixture(adapters=adapter_options(ALL_LINEARS))), write_corpus(tmp_path)
    options = DecodingOptions(beam_size=beams)
    experts = np.array([3, 1, 0, 2, 1, 3])
    decoded = decode_ways(system, dataset(manifest, tmp_path), options, system.ablations())
    weights = np.eye(N_EXPERTS, dtype=np.float32)[experts]
    direct = decode(system, dataset(manifest, tmp_path, extras={"routing_weights": weights}), options)
    found = looked_up(decoded, experts)
    assert [each.text for each in found] == [each.text for each in direct] and len({each.text for each in found}) > 1
    assert [each.mean_logprob for each in found] == pytest.approx([each.mean_logprob for each in direct], abs=1e-5)
