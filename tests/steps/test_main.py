"""The chain's own options: one name, one default, one meaning in every stage, and faults of all stages at once."""

import dataclasses

import pytest

from steps import main
from steps.chain.options import STAGE_NAMES
from steps.chain.stages import NAMES, STAGES, corpus_seed


def test_an_option_that_two_stages_share_has_one_default_and_one_kind() -> None:
    seen: dict[str, tuple[object, object]] = {}
    for stage in STAGES:
        for field in dataclasses.fields(stage.StepOptions):
            if field.name in ("num_experts", "corpus") or field.name.endswith(("_run_id", "_run_ids")):
                continue  # the chain states its own, and passes the ids itself
            assert seen.setdefault(field.name, (field.default, field.type)) == (field.default, field.type), field.name


def test_the_stages_are_named_in_their_order() -> None:
    assert NAMES == STAGE_NAMES


def test_faults_of_several_stages_are_reported_together_before_anything_runs() -> None:
    options = main.StepOptions(dev_share=0.5, test_share=0.5, gate_layer="deep")
    with pytest.raises(ValueError, match="gate_layer='deep'.*") as fault:
        main.check_stages(options)
    assert "dev_share" in str(fault.value) and str(fault.value).count("gate_layer") == 1


def test_quick_mode_keeps_what_the_user_set() -> None:
    quick = main.StepOptions.asked(mode="quick", expert_epochs=3, n_train_speakers=10)
    assert quick.expert_epochs == 3 and quick.asr_epochs == main.SMALL["asr_epochs"]
    assert quick.n_train_speakers == 10  # the default, but said


def test_the_corpus_seed_reaches_only_the_stages_that_make_the_corpus() -> None:
    options = main.StepOptions(seed=1, corpus_seed=7)
    apart = {name: corpus_seed(stage, options) for name, stage in zip(NAMES, STAGES, strict=True)}
    assert {name for name, given in apart.items() if given == {"seed": 7}} == {"synthesize", "prepare"}
