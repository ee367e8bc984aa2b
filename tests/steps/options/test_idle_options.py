"""Options that nothing would use are refused, by the step and by the chain: augmentation, and what trains a base that is taken as it is."""

import dataclasses
from types import ModuleType
from typing import Any

import pytest

from moe.audio.augmentation import AugmentationOptions
from moe.options import to_text
from steps import asr, baseline, experts, main, pretrain
from steps.chain.options import SMALL_BASE
from steps.chain.stages import stage_options
from tests.toys.chain import pending_options

OTHER = {
    "n_masks": 0, "mask_mels": 5, "mask_frames": 5, "gain": 0.0, "speed_factors": "0.9,1.1", "noise_share": 0.5, "noise_colour": "white",
    "noise_snr_low": 5.0, "noise_snr_high": 20.0,
}  # fmt: skip
IDS = {"prepare_run_id": "p", "pretrain_run_id": "b"}
ADAPTER_STEPS: dict[ModuleType, dict[str, Any]] = {
    experts: IDS | {"cluster_run_id": "c"}, asr: IDS | {"skip_pretraining": True, "num_experts": 3}, baseline: IDS | {"system": "single_lora", "asr_run_id": "a"},
}  # fmt: skip


def test_every_option_of_augmentation_is_tried() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(AugmentationOptions)}


@pytest.mark.parametrize("name", OTHER)
@pytest.mark.parametrize("step", ADAPTER_STEPS)
def test_an_adapter_step_takes_it_only_with_augment(step: ModuleType, name: str) -> None:
    given = ADAPTER_STEPS[step] | {name: OTHER[name]}
    with pytest.raises(ValueError) as fault:
        step.StepOptions(**given)
    assert str(fault.value) == f"{name}={OTHER[name]}: needs augment=true"
    assert getattr(step.StepOptions(**given, augment=True), name) == OTHER[name]


@pytest.mark.parametrize("name", OTHER)
def test_the_chain_takes_it_only_for_adapters_or_for_a_base_that_is_made(name: str) -> None:
    scratch = {"init_from": "scratch", "tokenizer": "characters"}
    with pytest.raises(
        ValueError,
        match=f"{name}={OTHER[name]}: the base base/synthetic-en is complete and taken as it is, and needs augment=true",
    ):
        main.check_stages(main.StepOptions(**{name: OTHER[name]}))
    for used in ({"augment": True}, scratch):
        main.check_stages(main.StepOptions(**{name: OTHER[name]} | used))


@pytest.mark.parametrize(
    ("name", "value"), [("pretrain_updates", 9), ("tokenizer", "characters"), ("n_merges", 7), ("pretrain_etiologies", "als")]
)
def test_what_trains_a_base_is_refused_where_the_base_is_taken_as_it_is(name: str, value: object) -> None:
    for refuse in (
        lambda options: pretrain.StepOptions(**options),
        lambda options: main.check_stages(main.StepOptions(**options)),
    ):
        with pytest.raises(ValueError, match=f"{name}={value}: the base base/synthetic-en is complete"):
            refuse({name: value})


def test_a_smoke_test_says_nothing_of_a_base_that_is_not_made() -> None:
    main.check_stages(main.StepOptions.asked(mode="quick"))
    made = main.StepOptions.asked(mode="quick", init_from="scratch", tokenizer="characters")
    main.check_stages(made)
    assert made.pretrain_updates == SMALL_BASE["pretrain_updates"]


TRAINED_ONLY = {"fp16": True, "num_workers": 2, "save_every_n_epochs": 3, "lora_dropout": 0.1, "augment": True}
NO_EPOCHS: list[tuple[ModuleType, dict[str, Any], str]] = [
    (
        asr,
        {"asr_batch_size": 3, "asr_learning_rate": 0.1, "balance": "switch", "soft_epochs": 1, "eval_every_n_epochs": 2},
        "asr_epochs=0 trains nothing",
    ),
    (
        experts,
        {"expert_batch_size": 3, "expert_learning_rate": 0.1, "expert_patience": 2, "num_workers": 1},
        "expert_epochs=0 trains nothing",
    ),
]


@pytest.mark.parametrize(("step", "ignored", "why"), NO_EPOCHS, ids=["asr", "experts"])
def test_without_epochs_a_step_refuses_what_only_training_reads(step: ModuleType, ignored: dict[str, Any], why: str) -> None:
    ignored = ignored | {name: value for name, value in TRAINED_ONLY.items() if name != "fp16"}
    with pytest.raises(ValueError) as fault:
        step.StepOptions(**ADAPTER_STEPS[step], **{why.split("=")[0]: 0}, **ignored)
    assert set(str(fault.value).split("; ")) == {f"{name}={to_text(value)}: {why}" for name, value in ignored.items()}
    step.StepOptions(**ADAPTER_STEPS[step], **ignored)
    step.StepOptions(**ADAPTER_STEPS[step], **{why.split("=")[0]: 0}, fp16=True, top_k=1, seed=3)


def test_the_base_as_it_is_refuses_everything_that_trains() -> None:
    ignored = TRAINED_ONLY | {"lora_r": 8, "top_k": 1, "data_percent": 5.0, "asr_batch_size": 3, "asr_run_id": "a"}
    with pytest.raises(ValueError) as fault:
        baseline.StepOptions(**IDS, system="zero_shot", **ignored)
    assert set(str(fault.value).split("; ")) == {
        f"{name}={to_text(value)}: system=zero_shot trains nothing" for name, value in ignored.items()
    }
    baseline.StepOptions(**IDS, system="zero_shot", seed=3, no_plot=True, audio_context="full", resume=False)
    baseline.StepOptions(**IDS, system="single_lora", **{name: value for name, value in ignored.items() if name != "top_k"})


@pytest.mark.parametrize(
    ("ignored", "why"),
    [({"shared_expert": False}, "system=single_lora has one adapter"), ({"shared_r": 4}, "system=single_lora has one adapter"),
     ({"top_k": 1}, "system=single_lora has one adapter"), ({"gate_scaling": "certainty"}, "system=single_lora has one adapter"),
     ({"adapter_rank": 56}, "asr_run_id says how large single_lora is")],
)  # fmt: skip
def test_one_lora_refuses_what_divides_a_rank_or_routes_and_the_chain_gives_it_to_the_mixture_alone(
    ignored: dict[str, Any], why: str
) -> None:
    ((name, value),) = ignored.items()
    with pytest.raises(ValueError, match=f"{name}={to_text(value)}: {why}"):
        baseline.StepOptions(**ADAPTER_STEPS[baseline], **ignored)
    options = main.StepOptions(**ignored)
    main.check_stages(options)
    assert getattr(pending_options(experts, options), name) == value
    assert baseline.StepOptions(**IDS, system="single_lora", adapter_rank=56, lora_epochs=1).adapter_rank == 56


@pytest.mark.parametrize(("name", "value"), [("balance", "switch"), ("asr_patience", 2), ("gate_learning_rate", 0.1)])
def test_the_chain_refuses_what_no_stage_reads_without_epochs(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}: asr_epochs=0 trains nothing"):
        main.check_stages(main.StepOptions(asr_epochs=0, **{name: value}))
    with pytest.raises(ValueError, match="expert_patience=2: expert_epochs=0 trains nothing"):
        main.check_stages(main.StepOptions(expert_epochs=0, expert_patience=2))


def test_the_chain_takes_what_another_stage_reads_and_gives_it_to_that_alone() -> None:
    options = main.StepOptions(asr_epochs=0, gradient_accumulation_steps=3, lora_r=8, expert_learning_rate=0.1)
    main.check_stages(options)
    asked = {stage: pending_options(stage, options) for stage in (pretrain, experts, asr)}
    assert [asked[stage].gradient_accumulation_steps for stage in (pretrain, experts, asr)] == [1, 3, 1]
    assert asked[asr].lora_r == 8
    zero_shot = stage_options(baseline, options, system="zero_shot", **IDS)
    assert (zero_shot.lora_r, zero_shot.expert_learning_rate) == (4, 1e-3)
