"""`estimate` says what a chain would cost from its own options: more work costs more, and what memory does not bear is said."""

import dataclasses
from types import SimpleNamespace

import psutil
import pytest
import torch

from moe.systems.whisper_moe.calibration import Calibration
from moe.training import processes
from steps import estimate, main
from steps.chain.corpus_size import size_of
from steps.chain.costs import ChainCost, opening_line
from steps.tracking.processes import threads_of_each
from steps.tracking.store import connect

DEVICE = Calibration((0.01, 1e-11), None, (1e-3, 1e-3))  # a made-up device


def cost_of(**given) -> ChainCost:
    options = estimate.StepOptions.asked(**given)
    return ChainCost(options, size_of(options, options.hours, options.utterance_s, options.tokens_per_s))


def seconds(**given) -> dict[str, float]:
    return {stage.stage: stage.seconds for stage in cost_of(**given).stages(DEVICE, DEVICE)}


def test_the_synthetic_corpus_is_counted_from_its_options():
    size = cost_of(n_train_speakers=2, n_utterances=5, styles="typical,als").size
    assert (size.n_train, size.utterance_s) == (20, 2.0)


def test_an_epoch_more_is_as_much_more_and_the_start_is_scored_once():
    none, once, twice = (seconds(asr_epochs=n) for n in (0, 1, 2))
    assert twice["asr"] - once["asr"] == pytest.approx(once["asr"] - none["asr"]) and 0 < none["asr"] < once["asr"]
    assert twice["experts"] == once["experts"]
    assert twice["single_lora"] - once["single_lora"] == pytest.approx(once["single_lora"] - none["single_lora"])


def test_one_lora_is_counted_by_its_own_size_and_what_it_takes_itself():
    """Six experts of rank 4 and a shared adapter of 32: a rank of 56."""
    cost, fast = cost_of(), Calibration((0.001, 1e-12), None, (1e-3, 1e-3))
    assert cost.one_lora.adapted.total_rank == cost.mixture.adapted.total_rank == 56 and cost.one_lora.n_experts == 0
    usual, faster = ({stage.stage: stage.seconds for stage in cost.stages(DEVICE, each)} for each in (DEVICE, fast))
    assert {name for name in usual if usual[name] != faster[name]} == {"single_lora"}
    assert faster["single_lora"] < usual["single_lora"] / 2


def test_one_lora_is_measured_where_it_is_trained():
    asked = []
    cost_of().measured(lambda mixture: asked.append(mixture.n_experts) or DEVICE)
    cost_of(systems="whisper_moe", register_system="any").measured(lambda mixture: asked.append(mixture.n_experts) or DEVICE)
    assert asked == [6, 0, 6]


def test_a_batch_has_the_mean_context_of_its_lengths():
    """Lengths from 1.5 to 2.5 s with a second of silence: half of them in a bucket of 3 s, half in one of 4 s."""
    cost = cost_of()
    per_s = cost.extractor.sampling_rate / cost.extractor.hop_length
    assert cost.batch(1).n_frames == pytest.approx(3.5 * per_s, abs=2)
    assert cost_of(audio_context="full").batch(1).n_frames == cost.extractor.n_samples // cost.extractor.hop_length
    assert cost_of(utterance_s=30.0).batch(1).n_frames <= cost.extractor.n_samples // cost.extractor.hop_length


def test_the_other_ways_of_decoding_are_counted():
    """With each of six experts, with all alike and with none, 200 utterances each."""
    said = {stage.stage: stage.what for stage in cost_of().stages(DEVICE, DEVICE)}
    assert "3400 decoded in all" in said["evaluate"]  # 3 · 600 + 8 · 200
    assert seconds(ablations=False)["evaluate"] < seconds()["evaluate"] < seconds(ablation_utterances=0)["evaluate"]


def test_tests_of_experts_are_counted_where_they_are_asked_for():
    """Six experts: their own losses over 180 dev utterances, and at most those of five that are merged in turn."""
    merging = {"merge_experts": "permutation", "n_dev_speakers": 3, "n_dev_utterances": 10}
    found = {stage.stage: stage for stage in cost_of(**merging).stages(DEVICE, DEVICE)}
    assert "11 passes over 180 dev utterances" in found["merging"].what
    assert seconds(**merging)["single_lora"] == seconds(**merging | {"merge_experts": "none"})["single_lora"]
    assert seconds(num_experts=8, **merging)["merging"] > found["merging"].seconds > 0
    assert "merging" not in seconds(skip_pretraining=True, num_experts=4) and "merging" not in seconds()


def test_two_processes_share_the_batches(monkeypatch):
    monkeypatch.setattr(processes, "places", lambda: (2, "cores"))
    one, two = cost_of(asr_batch_size=16), cost_of(asr_batch_size=16, num_processes=2)
    assert two.training_batch.size == 8 and two.bytes_per_process(DEVICE, 8) == two.training_bytes(DEVICE) < one.training_bytes(
        DEVICE
    )
    shared, whole = ({stage.stage: stage.seconds for stage in cost.stages(DEVICE, DEVICE)} for cost in (two, one))
    for stage in ("experts", "asr", "single_lora"):  # what an update takes beside its operations is not shared
        assert whole[stage] / 2 < shared[stage] < 0.6 * whole[stage]
    with two.threads():
        assert torch.get_num_threads() == threads_of_each(2)
    monkeypatch.setattr(two, "free_bytes", lambda: 2.0**30)
    monkeypatch.setattr(one, "free_bytes", lambda: 2.0**30)
    assert two.largest_batch(DEVICE) == 2 * one.largest_batch(DEVICE)
    assert "for each of 2 processes" in "".join(estimate.estimate_lines(two, DEVICE, two.stages(DEVICE, DEVICE)))


def test_systems_side_by_side_take_as_long_as_the_longest(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=8.0))
    one, two, three = (cost_of(systems_together=n) for n in (1, 2, 3))
    stages = one.stages(DEVICE, DEVICE)
    alone, beside, at_once = (cost.total_s(stages, DEVICE) for cost in (one, two, three))
    assert alone == pytest.approx(sum(stage.seconds for stage in stages))
    found = {stage.stage: stage.seconds for stage in stages}
    lora, base = found["single_lora"] + one._evaluation_s("single_lora", DEVICE), one._evaluation_s("zero_shot", DEVICE)
    mixture = found["experts"] + found["asr"] + one._evaluation_s("whisper_moe", DEVICE)
    rest = alone - lora - base - mixture
    assert beside == pytest.approx(rest + max(mixture, lora, min(mixture, lora) + base))  # the base begins where one has ended
    assert at_once == pytest.approx(rest + max(mixture, lora, base)) and at_once <= beside < alone
    assert (one.free_bytes(), two.free_bytes()) == (8, 4)
    with two.threads():
        assert torch.get_num_threads() == threads_of_each(2)


def test_only_what_runs_is_counted_and_the_rest_is_named():
    assert set(seconds()) == {"corpus", "experts", "asr", "single_lora", "evaluate"}
    assert set(seconds(until="experts")) == {"corpus", "experts"}
    assert set(seconds(skip_pretraining=True, num_experts=4)) == {"corpus", "asr", "single_lora", "evaluate"}
    assert set(seconds(systems="wav2vec2_ctc", register_system="any")) == {"corpus"}
    left_out = cost_of(systems="wav2vec2_ctc,zero_shot", register_system="any").not_counted()
    assert left_out == ["pretrain", "ctc", "evaluate wav2vec2_ctc"] and cost_of().not_counted() == ["pretrain"]
    folder = cost_of(corpus="folder", dataset_root="x", hours=1.0)
    assert folder.not_counted() == ["prepare", "pretrain", "embed", "cluster", "gate"]
    assert "corpus" not in {stage.stage for stage in folder.stages(DEVICE, DEVICE)}


def test_more_experts_in_use_and_more_hours_cost_more():
    assert seconds(top_k=4)["asr"] > seconds(top_k=1, minimum_usage=0.05)["asr"]
    folder = {"corpus": "folder", "dataset_root": "x"}
    assert seconds(hours=20.0, **folder)["asr"] > 15 * seconds(hours=1.0, stage_floor=1, **folder)["asr"]


def test_a_corpus_of_unknown_size_is_refused_in_one_line():
    with pytest.raises(ValueError, match="corpus=folder: say how much there is to train on with hours="):
        cost_of(corpus="folder", dataset_root="x")


def test_the_largest_batch_is_the_last_that_fits(monkeypatch):
    cost = cost_of()
    monkeypatch.setattr(cost, "free_bytes", lambda: 0.9 * 2**30)
    largest = cost.largest_batch(DEVICE)
    assert cost.bytes_per_process(DEVICE, largest) <= 0.9 * cost.free_bytes() < cost.bytes_per_process(DEVICE, largest + 1)


def test_what_memory_does_not_bear_is_said_with_what_to_set(monkeypatch):
    cost = cost_of()
    monkeypatch.setattr(cost, "free_bytes", lambda: 1.001 * cost.bytes_per_process(DEVICE, 4) / 0.9)
    lines = estimate.estimate_lines(cost, DEVICE, cost.stages(DEVICE, DEVICE))
    assert lines[-1] == "asr_batch_size=16: memory will not do; set asr_batch_size=4"
    monkeypatch.setattr(cost, "free_bytes", lambda: 0.0)
    assert "gradient_checkpointing=true" in estimate.estimate_lines(cost, DEVICE, cost.stages(DEVICE, DEVICE))[-1]


def test_the_estimate_is_a_run_with_its_figures(store, capsys):
    run_id = estimate.run(estimate.StepOptions.asked(mode="quick", calibration_s=0.2))
    run = connect().client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.metrics["seconds/asr"] > 0 and run.data.metrics["bytes_per_process"] > 2**28
    assert "together:" in capsys.readouterr().out


def test_the_chain_opens_with_a_line_of_its_cost():
    line = opening_line(main.StepOptions.asked(mode="quick"))
    assert line.startswith("all of it: about ") and len(line) <= 160
    assert opening_line(main.StepOptions.asked(systems="wav2vec2_ctc", register_system="any")) is None
    other = main.StepOptions.asked(corpus="folder", dataset_root="x")
    assert (
        opening_line(other) is None and opening_line(dataclasses.replace(other, corpus="synthetic", init_from="scratch")) is None
    )


@pytest.mark.parametrize(("number", "said"), [(5, "5 s"), (600, "10 min"), (10_800, "3 h"), (400_000, "4.63 days")])
def test_durations_are_said_as_people_do(number, said):
    assert estimate.duration(number) == said
