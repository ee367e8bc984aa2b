"""The chain's own options: one name, one default, one meaning in every stage, and faults of all stages at once."""

import dataclasses
import itertools

import pytest

from moe.systems.table import SYSTEMS
from steps import evaluate, main
from steps.chain.options import STAGE_NAMES
from steps.chain.stages import (
    NAMES,
    STAGES,
    evaluation_given,
    idle_options,
    ids_of,
    planned,
    stage_options,
    stages_of,
    step_name,
    unasked,
)


def test_an_option_that_two_stages_share_has_one_default_and_one_kind() -> None:
    seen: dict[str, tuple[object, object]] = {}
    for stage in STAGES:
        for field in dataclasses.fields(stage.StepOptions):
            if field.name == "corpus" or field.name.endswith(("_run_id", "_run_ids")):
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


def test_quick_mode_allows_for_fast_speakers_on_synthetic_speech_alone() -> None:
    assert main.StepOptions.asked(mode="quick").max_quarantined == 0.2
    assert main.StepOptions.asked(mode="quick", max_quarantined=0.05).max_quarantined == 0.05
    assert main.StepOptions.asked(mode="quick", corpus="folder", dataset_root=".").max_quarantined == 0.05
    assert main.StepOptions.asked().max_quarantined == 0.05


def test_the_corpus_seed_reaches_only_the_stages_that_make_the_corpus() -> None:
    options = main.StepOptions(seed=1, corpus_seed=7)
    assert {step_name(module) for module, given in planned(options) if given.get("seed") == 7} == {"synthesize", "prepare"}


CHOICES = [",".join(part) for n in range(1, len(SYSTEMS) + 1) for part in itertools.combinations(SYSTEMS, n)]
WHOLE = ["synthesize", "prepare", "pretrain", "embed", "cluster", "gate", "experts", "whisper_moe"]


@pytest.mark.parametrize("systems", CHOICES)
def test_systems_are_trained_with_all_that_they_read_or_refused_by_name(systems: str) -> None:
    named = systems.split(",")
    if "single_lora" in named and "whisper_moe" not in named:
        with pytest.raises(ValueError, match=f"systems={systems}: single_lora .* name whisper_moe too"):
            main.StepOptions(systems=systems, register_system="any")
        return
    options = main.StepOptions(systems=systems, register_system="any")
    main.check_stages(options)
    ran: dict[str, str] = {}
    for stage in stages_of(options):
        idle = idle_options(stage.module, options, stage.given(options))
        needed = [name for name in stage.reads if not set(ids_of([name], {name: "an id"})) & set(idle)]
        assert len(ids_of(needed, ran)) == len(needed), stage.name
        ran[stage.name] = "an id"
    assert set(named) <= set(ran) and not set(SYSTEMS) & set(ran) - set(named)


@pytest.mark.parametrize(
    ("systems", "stages"),
    [
        ("zero_shot", [*WHOLE[:3], "zero_shot"]),
        ("wav2vec2_ctc", [*WHOLE[:2], "wav2vec2_ctc"]),
        ("whisper_moe", WHOLE),
        ("single_lora,whisper_moe", [*WHOLE, "single_lora"]),
    ],
)
def test_no_stage_runs_that_no_system_needs(systems: str, stages: list[str]) -> None:
    assert [stage.name for stage in stages_of(main.StepOptions(systems=systems))] == stages


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"systems": "zero_shot", "register_system": "any", "asr_epochs": 7}, "asr_epochs=7: systems=zero_shot runs no asr"),
        (
            {"systems": "whisper_moe", "until": "evaluate", "evaluate_filter": "x"},
            "evaluate_filter=x: systems=whisper_moe runs no compare",
        ),
        ({"ctc_epochs": 3}, "ctc_epochs=3: systems=whisper_moe,single_lora,zero_shot runs no ctc"),
        (
            {"systems": "wav2vec2_ctc", "register_system": "any", "asr_epochs": 7},
            "asr_epochs=7: systems=wav2vec2_ctc runs no asr",
        ),
        (
            {"systems": "wav2vec2_ctc", "register_system": "any", "ctc_train": "lora", "ctc_experts": 3},
            "ctc_experts=3: needs as many clusters; set cluster_run_id, or name whisper_moe too among the systems of main",
        ),
        (
            {"systems": "zero_shot,domain_whisper", "register_system": "any", "backoff": 0.95},
            "backoff=0.95: none of systems=zero_shot,domain_whisper takes it",
        ),
        (
            {"systems": "wav2vec2_ctc", "register_system": "any", "decoding_top_k": 1},
            "decoding_top_k=1: none of systems=wav2vec2_ctc takes it",
        ),
        (
            {"systems": "zero_shot"},
            "register_system=whisper_moe: systems=zero_shot does not train it; set register_system=any or one of them",
        ),
    ],
)
def test_what_the_chosen_systems_leave_without_effect_is_refused(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        main.check_stages(main.StepOptions(**given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_experts": 1, "min_experts": 1, "top_k": 1, "gate_scaling": "certainty"}, "gate_scaling=certainty: num_experts=1"),
        ({"num_experts": 1, "min_experts": 1, "top_k": 1, "soft_epochs": 1}, "soft_epochs=1: num_experts=1"),
        ({"num_experts": 4, "minimum_usage": 0.4}, "minimum_usage=0.4: 4 experts can have 0.25 each at most"),
        ({"num_experts": 2, "soft_epochs": 1}, "soft_epochs=1: top_k=2 routes to all 2 experts"),
    ],
)
def test_what_joint_training_refuses_of_its_experts_is_refused_before_they_are_trained(given: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        main.check_stages(main.StepOptions(**given))


def test_experts_that_the_clusters_count_are_not_refused_for_their_most() -> None:
    main.check_stages(main.StepOptions(num_experts=4, minimum_usage=0.4, clustering_algorithm="by_etiology"))


def test_an_evaluation_asks_a_system_only_for_what_it_takes() -> None:
    options = main.StepOptions(decoding_top_k=1)
    given = {system: evaluation_given(system, "p", "m") | unasked(system, options) for system in SYSTEMS}
    asked = {system: stage_options(evaluate, options, **each).decoding_top_k for system, each in given.items()}
    assert asked == dict.fromkeys(SYSTEMS) | {"whisper_moe": 1}


def test_a_language_that_the_base_does_not_have_is_refused_before_anything_runs() -> None:
    with pytest.raises(
        ValueError, match="language=ko: the base has en; name a base that has it .*: whisper_model=base/synthetic-en"
    ):
        main.check_stages(main.StepOptions(corpus="folder", dataset_root=".", language="ko"))
