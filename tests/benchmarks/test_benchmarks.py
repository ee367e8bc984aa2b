"""The benchmarks compare what is equal: the documents' way gives our numbers where it should, and tables say what was measured."""

import dataclasses
import time

import numpy as np
import pytest
import torch

from benchmarks import table, timing
from benchmarks.speed import __main__ as speed
from benchmarks.speed import variants
from benchmarks.speed.reference_way import ReferenceWay, embed_one_by_one, expert_name, mixed_adapters_loss
from benchmarks.speed.workbench import SHAPES, TOY, Step, Workbench, trainable
from benchmarks.table import Claim
from moe.experts.adapter_folders import slots
from moe.routing.weights import one_hot
from moe.systems.whisper.encoder import pooled_embedding
from moe.systems.whisper_moe.model import WhisperMoE

GREEDY = {"max_new_tokens": 6, "min_new_tokens": 6}
BEAMS = GREEDY | {"num_beams": 3}


@pytest.fixture(scope="module")
def bench():
    return Workbench(SHAPES["toy"], TOY)


@pytest.fixture(scope="module")
def reference(bench):
    """The reference way with experts that say different things."""
    way = ReferenceWay(bench.base(), bench.base(), TOY.n_experts)
    random = torch.Generator().manual_seed(0)
    for name, parameter in way.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=random)
    return way


def ours(bench: Workbench, reference: ReferenceWay, **options) -> WhisperMoE:
    """Our mixture with the experts of the reference way."""
    model = bench.mixture(**options)
    parameters = dict(reference.model.named_parameters())
    for expert in range(TOY.n_experts):
        for name, lora_a, lora_b in slots(model.base, expert_name(expert)):
            lora_a.data.copy_(parameters[f"base_model.model.{name}.lora_A.{expert_name(expert)}.weight"])
            lora_b.data.copy_(parameters[f"base_model.model.{name}.lora_B.{expert_name(expert)}.weight"])
    return model


def gradients(model: WhisperMoE, expert: int) -> dict[str, torch.Tensor]:
    layers = dict(model.base.named_modules())
    return {name: layers[name].lora_B.grad[expert] for name, _, _ in slots(model.base, expert_name(expert))}


def test_the_expert_loop_over_two_experts_equals_our_mixture_of_losses(bench, reference):
    """And each expert gets the same gradient, as it does not in the documents (pitfall: only the last one switched on learns)."""
    model, weights = ours(bench, reference, mixing="loss"), bench.routing_weights(2)
    mel, n_frames = bench.window_mel, bench.n_frames(400)
    reference.zero_grad()
    expected = reference.train().loss(mel, bench.labels, weights, 2)
    loss = model(mel, n_frames, bench.labels, routing_weights=weights)["loss"]
    expected.backward()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    parameters, n_compared = dict(reference.model.named_parameters()), 0
    for expert in (weights > 0).any(0).nonzero()[:, 0].tolist():
        for name, gradient in gradients(model, expert).items():
            wanted = parameters[f"base_model.model.{name}.lora_B.{expert_name(expert)}.weight"].grad
            assert wanted.abs().max() > 0
            torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-4)
            n_compared += 1
    assert n_compared >= 3 * 2 * TOY.n_experts // 2


def test_two_experts_mixed_as_weights_are_another_model_than_mixed_as_losses(bench, reference):
    weights = bench.routing_weights(2)
    by_losses, by_weights = (
        ours(bench, reference, mixing=mixing)(bench.window_mel, bench.n_frames(400), bench.labels, routing_weights=weights)[
            "loss"
        ]
        for mixing in ("loss", "delta")
    )
    assert abs(by_losses.item() - by_weights.item()) > 1e-4


@pytest.mark.parametrize("way", ("loop", "adapter_names"))
def test_one_expert_per_utterance_equals_our_mixture_of_weights(bench, reference, way):
    experts = torch.tensor([2, 0, 2])
    weights = one_hot(experts, TOY.n_experts).weights
    loss = ours(bench, reference)(bench.window_mel, bench.n_frames(400), bench.labels, routing_weights=weights)["loss"]
    if way == "loop":
        expected = reference.train().loss(bench.window_mel, bench.labels, weights, 1)
    else:
        expected = mixed_adapters_loss(reference, bench.window_mel, bench.labels, experts.tolist())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("options", (GREEDY, BEAMS), ids=("greedy", "beams"))
def test_decoding_expert_by_expert_gives_our_tokens(bench, reference, options):
    weights = one_hot(torch.tensor([3, 1, 0]), TOY.n_experts).weights
    model = ours(bench, reference, top_k=1).eval()
    reference.eval()
    expected = reference.generate(bench.window_mel, weights, **options)
    tokens = model.generate(model.route(bench.window_mel, bench.n_frames(400), routing_weights=weights), **options)
    other = model.generate(model.route(bench.window_mel, bench.n_frames(400), routing_weights=weights.roll(1, 0)), **options)
    assert tokens.tolist() == expected
    assert other.tolist() != expected


def test_the_second_encoder_sees_what_our_gate_pools_from_a_full_window(bench, reference):
    pooled = pooled_embedding(bench.base().eval().model.encoder, bench.window_mel, bench.n_frames(400), None, "mean")
    torch.testing.assert_close(
        reference.embed(bench.window_mel), pooled, atol=1e-5, rtol=1e-3
    )  # ours is rounded to half precision


def test_one_by_one_embedding_keeps_every_frame_of_the_window(bench, tmp_path):
    embed_one_by_one(bench.base().eval(), bench.extractor, [bench.wave(0), bench.wave(1)], tmp_path)
    frames = [np.load(tmp_path / f"{number}.npy") for number in (0, 1)]
    assert [array.shape for array in frames] == [(200, 32)] * 2
    assert not np.allclose(*frames)


def test_models_of_a_bench_share_their_frozen_weights(bench):
    first, second = bench.base(), bench.mixture().base
    assert first.model.encoder.conv1.weight.data_ptr() == second.model.encoder.conv1.weight.data_ptr()
    assert first.proj_out.weight.data_ptr() == first.model.decoder.embed_tokens.weight.data_ptr()
    assert not any(parameter.is_meta for parameter in first.parameters())


def test_a_step_updates_the_adapters_and_nothing_else(bench):
    model = bench.mixture(gate_layer=bench.shape.middle, shared=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Step(bench, lambda: model(bench.window_mel, bench.n_frames(400), bench.labels)["loss"], trainable(model))()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[-1] for name in changed} >= {"lora_B", "shared_B"}
    assert not any("base_layer" in name or "embed" in name for name in changed)


@pytest.mark.parametrize("name", ("training", "whole_step", "decoding"))
def test_every_claim_is_about_variants_that_are_measured(bench, name):
    build = {
        "training": variants.training_variants,
        "whole_step": variants.whole_step_variants,
        "decoding": variants.decoding_variants,
    }
    built = build[name](bench)
    claimed = {part for claim in speed.COMPARISONS[name].claims for part in (claim.variant, claim.against)}
    assert claimed <= set(built)
    for variant in built.values():
        variant()


def test_embedding_is_timed_in_every_way_that_is_claimed(bench):
    measured = speed.embedding_times(bench, 1)
    assert {part for claim in speed.COMPARISONS["embedding"].claims for part in (claim.variant, claim.against)} == set(measured)


def test_other_runtimes_find_the_same_tokens_as_we_and_every_claim_is_measured():
    pytest.importorskip("ctranslate2")
    from benchmarks.speed import runtimes

    shape = dataclasses.replace(SHAPES["toy"], n_tokens=1000)  # room for the tokenizer's
    built = runtimes.variants(Workbench(shape, TOY))
    assert {part for claim in speed.COMPARISONS["runtimes"].claims for part in (claim.variant, claim.against)} <= set(built)
    assert built[variants.OURS]() == built[variants.PACKED]()
    assert all(len(tokens) == TOY.n_labels for tokens in built[variants.OURS]())
    for variant in built.values():
        variant()


def test_beams_of_transformers_are_ours_and_every_claim_about_them_is_measured():
    pytest.importorskip("ctranslate2")
    from benchmarks.speed import runtimes

    shape = dataclasses.replace(SHAPES["toy"], n_tokens=1000)
    built = runtimes.beam_variants(Workbench(shape, TOY))
    assert {part for claim in speed.COMPARISONS["beams"].claims for part in (claim.variant, claim.against)} == set(built)
    assert all(len(tokens) == TOY.n_labels for tokens in built[variants.OURS_BEAMS]() + built[variants.PACKED_BEAMS]())
    for variant in built.values():
        variant()


def test_the_order_of_variants_turns_every_other_round():
    calls = []
    timing.alternate({name: lambda name=name: calls.append(name) for name in "abc"}, 3)
    assert "".join(calls) == "a" + "abccbaabc"  # one call that does not count


def test_seconds_are_those_of_the_process_and_not_of_the_clock():
    assert timing.seconds_of(lambda: time.sleep(0.05)) < 0.04


def test_peak_memory_is_that_of_the_call_alone():
    mine = np.ones(300 << 17)  # 300 MiB of the parent's own
    assert 60 < timing.peak_memory(np.ones, 64 << 17) < 120
    assert mine.size


def test_a_ratio_is_taken_round_by_round():
    measured = {"a": [1.0, 4.0, 3.0], "b": [2.0, 4.0, 12.0]}  # ratios 0.5, 1, 0.25; the ratio of medians would be 0.75
    found = table.figure(Claim("a : b", "a", "b", at_most=0.5), measured, "s")
    assert (found.median, found.median_against, found.ratio, found.lowest, found.highest) == (3.0, 4.0, 0.5, 0.25, 1.0)
    assert found.met and not table.figure(Claim("a : b", "a", "b", at_most=0.49), measured, "s").met


def test_a_claim_without_a_goal_is_neither_met_nor_missed():
    assert table.figure(Claim("a", "a"), {"a": [5.0]}, "KiB").met is None


def test_the_table_shows_goals_missed_and_survives_a_round_trip(tmp_path):
    measured = {"a": [1.0, 3.0], "b": [2.0, 2.0]}
    figures = [table.figure(claim, measured, "s") for claim in (Claim("fast", "a", "b", 0.9), Claim("small", "a", None, 2.0))]
    comparisons = {"one": table.record(figures, measured, "s", machine={"cpu": "none"})}
    text = table.write(tmp_path / "out", "Title", comparisons)
    assert "| fast | 2 s | 2 s | 1 (0.5–1.5) | ≤ 0.9 | **no** |" in text.splitlines()
    assert "| small | 2 s (1–3) | | | ≤ 2 | yes |" in text.splitlines()
    assert table.read(tmp_path / "out.json") == comparisons
    assert (tmp_path / "out.md").read_text(encoding="utf-8") == text


def test_one_comparison_measured_again_leaves_the_others_as_they_were(tmp_path):
    table.write(tmp_path / "out", "Title", {"training": table.record([], {}, "s", machine={"cpu": "another"})})
    found = speed.run(speed.SpeedOptions(shape="toy", repeats=1, only="store"), TOY, tmp_path / "out")
    assert list(found) == ["training", "store"] == list(table.read(tmp_path / "out.json"))
    assert found["training"]["machine"]["cpu"] == "another" and found["store"]["machine"]["cpu"] != "another"
    assert found["store"]["measured"][variants.ONE_BY_ONE][0] == pytest.approx(200 * 32 * 4 / 1024, rel=0.01)
