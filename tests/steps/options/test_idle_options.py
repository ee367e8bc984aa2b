"""Options that nothing would use are refused, by the step and by the chain: augmentation, and what trains a base that is taken as it is."""

import dataclasses
from types import ModuleType
from typing import Any

import pytest

from moe.audio.augmentation import AugmentationOptions
from steps import asr, baseline, experts, main, pretrain
from steps.chain.checks import augmentation_faults

OTHER = {
    "n_masks": 0, "mask_mels": 5, "mask_frames": 5, "gain": 0.0, "speed_factors": "0.9,1.1", "noise_share": 0.5, "noise_colour": "white",
    "noise_snr_low": 5.0, "noise_snr_high": 20.0,
}  # fmt: skip
IDS = {"prepare_run_id": "p", "pretrain_run_id": "b"}
ADAPTER_STEPS: dict[ModuleType, dict[str, Any]] = {
    experts: IDS | {"cluster_run_id": "c"}, asr: IDS | {"skip_pretraining": True, "num_experts": 3}, baseline: IDS,
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
    with pytest.raises(ValueError, match=f"{name}={OTHER[name]}: needs augment=true"):
        main.check_stages(main.StepOptions(**{name: OTHER[name]}))
    for used in ({"augment": True}, scratch):
        main.check_stages(main.StepOptions(**{name: OTHER[name]} | used))


def test_the_chain_names_both_ways_to_use_it() -> None:
    assert augmentation_faults(main.StepOptions(gain=0.5)) == ["gain=0.5: needs augment=true, or a base that is made (init_from)"]
    assert augmentation_faults(main.StepOptions(augment=True)) == augmentation_faults(main.StepOptions()) == []


@pytest.mark.parametrize(("name", "value"), [("pretrain_updates", 9), ("tokenizer", "characters"), ("n_merges", 7), ("pretrain_etiologies", "als")])
def test_what_trains_a_base_is_refused_where_the_base_is_taken_as_it_is(name: str, value: object) -> None:
    for refuse in (lambda options: pretrain.StepOptions(**options), lambda options: main.check_stages(main.StepOptions(**options))):
        with pytest.raises(ValueError, match=f"{name}={value}: the base base/synthetic-en is complete"):
            refuse({name: value})


def test_a_smoke_test_says_nothing_of_a_base_that_is_not_made() -> None:
    main.check_stages(main.StepOptions.asked(mode="quick"))
    made = main.StepOptions.asked(mode="quick", init_from="scratch", tokenizer="characters")
    main.check_stages(made)
    assert made.pretrain_updates == main.SMALL_BASE["pretrain_updates"]
