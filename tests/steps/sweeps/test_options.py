"""What a sweep refuses before any work, what it leaves as given, and that it selects by dev alone."""

import dataclasses
from pathlib import Path

import pytest

from moe.experts.routed_lora import AdapterOptions
from steps import main, sweep
from steps.chain.stages import running, step_name
from steps.options.command_line import parse
from steps.sweeps.chains import not_varied
from steps.tracking.store import project_root

SPACE = "{shared_share: {low: 0.2, high: 0.8}, adapter_rank: [56]}"


def options(**given: object) -> sweep.StepOptions:
    return sweep.StepOptions(**{"space": SPACE, "trials": 3} | given)


def refusal(**given: object) -> str:
    with pytest.raises(ValueError) as fault:
        options(**given)
    return str(fault.value)


def test_every_fault_of_a_file_is_said_in_one_message_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "top_q: [1, 2]\ntop_k: [1, many]\nshared_share: {low: 0.8, high: 0.2}\nseed: [1, 2]\nn_train_speakers: [3, 4]\n"
        "ctc_epochs: [1, 2]\nsweep_metric: test/wer\nsampler: annealing\nseeds: 1,x\nfinalist_seeds: 2,2\n"
    )
    with pytest.raises(SystemExit):
        parse(sweep.StepOptions, ["--options_file", str(path)])
    said = capsys.readouterr().err
    for part in (
        "top_q: no such option, did you mean top_k?",
        "top_k='many': must be a whole number",
        "shared_share: low=0.8 must be below high=0.2",
        "seed is not varied: set seeds",
        "n_train_speakers is not varied: every trial has the same dev set",
        "ctc_epochs is not varied: no training of whisper_moe reads it",
        "sweep_metric=test/wer: must be dev/wer, by which whisper_moe keeps its epoch; no trial reads the test set",
        "sampler=annealing: must be one of random, tpe, grid",
        "seeds=1,x: must be whole numbers",
        "finalist_seeds=2,2: must be whole numbers",
    ):
        assert said.count(part) == 1, part
    assert said.count("\n") == 1


def test_a_grid_over_a_range_is_refused_with_the_other_faults() -> None:
    said = refusal(sampler="grid", sweep_metric="test/cer")
    assert "shared_share is a range: sampler=grid takes lists alone" in said and "sweep_metric=test/cer" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"trials": None}, "sampler=tpe: set trials, the number of trials"),
        ({"trials": 0}, "trials=0: must be at least 1"),
        ({"sweep_system": "zero_shot"}, "sweep_system='zero_shot': must be one of"),
        (
            {"sweep_system": "wav2vec2_ctc", "space": "{gating_epochs: [1, 2]}"},
            "gating_epochs is not varied: no training of wav2vec2_ctc",
        ),
        ({"systems": "zero_shot"}, "systems=zero_shot: set sweep_system"),
        ({"until": "asr"}, "until=asr: trials end with the training"),
        ({"force": "asr"}, "force=asr: trials share their stages"),
        ({"halving": 1}, "halving=1: must be at least 2"),
        ({"halving": 3, "num_processes": 2}, "halving=3: num_processes=2 trains where no trial is stopped; set parallel_trials"),
        ({"parallel_trials": 4000}, "parallel_trials=4000: this machine has"),
        ({"parallel_trials": 1000, "num_processes": 4}, "parallel_trials=1000 with num_processes=4: this machine has"),
        ({"export_dir": "x"}, "export_dir=x: every trial would write there"),
        ({"registered_model": "mine"}, "registered_model=mine: a sweep registers nothing"),
        (
            {"sweep_system": "wav2vec2_ctc", "space": "{ctc_epochs: [1, 2]}", "sweep_metric": "dev/wer"},
            "sweep_metric=dev/wer: must be dev/cer",
        ),
    ],
)
def test_what_a_sweep_does_not_do_is_refused(given: dict[str, object], said: str) -> None:
    assert said in refusal(**given)


@pytest.mark.parametrize(
    ("given", "metric"),
    [
        ({}, "dev/wer"),
        ({"sweep_system": "single_lora", "space": "{expert_learning_rate: [1e-3, 3e-3]}"}, "dev/wer"),
        ({"sweep_system": "wav2vec2_ctc", "space": "{ctc_learning_rate: [1e-3, 3e-3]}"}, "dev/cer"),
        ({"sweep_system": "wav2vec2_ctc", "space": "{ctc_learning_rate: [1e-3, 3e-3]}", "selection": "wer"}, "dev/wer"),
        ({"sweep_system": "steer_moe", "space": "{steer_learning_rate: [1e-3, 3e-3]}"}, "dev/cer"),
        ({"sweep_system": "domain_whisper", "space": "{domain_learning_rate: [1e-3, 3e-3]}"}, "dev/cer"),
    ],
)
def test_a_trial_trains_one_system_and_reads_nothing_of_test(given: dict[str, object], metric: str) -> None:
    asked = options(**given)
    wanted = sweep.chain_options(asked)
    main.check_stages(wanted)
    steps = [step_name(module) for module, _ in running(wanted)]
    assert asked.selected == metric and not {"evaluate", "compare", "register"} & set(steps)
    assert steps[-1] == wanted.until and asked.sweep_system in wanted.system_names


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{top_k: [1, 9]}", "top_k=9: num_experts=6 has no more to mix"),
        ("{shared_share: {low: 0.2, high: 0.8}}", "shared_share is not varied: it does nothing beside the options as given"),
        ("{gate_layer: ['0', '99']}", "gate_layer=99"),
        ("{lora_targets: [q_proj, 'q_proj,fish']}", "lora_targets=q_proj,fish: a Whisper's layers have q_proj, k_proj,"),
    ],
)
def test_what_no_trial_can_have_is_refused_before_any_work(space: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        sweep.run(sweep.StepOptions.asked(space=space, trials=3))


def test_seeds_have_one_corpus() -> None:
    asked = options(seeds="1,2,3", seed=7)
    assert (asked.trial_seeds, asked.last_seeds, options(seed=7).trial_seeds) == ([1, 2, 3], [1, 2, 3], [7])
    assert options(seeds="1", finalist_seeds="4,5").last_seeds == [4, 5]
    assert sweep.chain_options(asked).corpus_seed == 7 and sweep.chain_options(options(corpus_seed=5)).corpus_seed == 5


def test_the_values_of_a_trial_are_the_only_difference() -> None:
    asked = options(n_resamples=500, beam_size=2)
    plain, other = sweep.chain_options(asked), sweep.chain_options(asked, {"shared_share": 0.3, "adapter_rank": 56})
    differing = {each.name for each in dataclasses.fields(plain) if getattr(plain, each.name) != getattr(other, each.name)}
    assert differing == {"shared_share", "adapter_rank"} and other.adapter_rank == 56
    assert plain.beam_size == 2  # asked of the evaluations; n_resamples is the comparison's alone
    assert not plain.is_changed("n_resamples")


def test_a_value_that_does_nothing_beside_the_others_is_left_as_given() -> None:
    assert not sweep.chain_options(options(), {"shared_share": 0.3}).is_changed("shared_share")  # there is no total to share


def test_a_total_that_cannot_be_shared_is_refused_as_in_main() -> None:
    with pytest.raises(ValueError, match="adapter_rank=3"):
        main.check_stages(sweep.chain_options(options(), {"shared_share": 0.3, "adapter_rank": 3}))


def test_nothing_that_says_what_is_measured_is_varied() -> None:
    fixed = not_varied("whisper_moe", options())
    for name in ("seed", "corpus", "dataset_root", "dev_share", "eval_share", "asr_percent", "until", "normaliser", "export_dir"):
        assert name in fixed, name
    for name in ("top_k", "num_experts", "whisper_model", "lora_r", "expert_epochs", "gate_layer", "skip_pretraining", "augment"):
        assert name not in fixed, name
    assert "gating_epochs" in not_varied("single_lora", options(sweep_system="single_lora", space="{lora_r: [1]}"))


def test_the_best_options_are_an_options_file_of_main() -> None:
    asked = options(mode="quick", seed=7)
    found = sweep.best_options(asked, sweep.Trial("trial 0", {"shared_share": 0.3, "adapter_rank": 56}))
    assert found == {"mode": "quick", "seed": 7, "shared_share": 0.3, "adapter_rank": 56}
    main.check_stages(main.StepOptions.asked(**found))


def test_the_preset_keeps_size_and_updates_of_the_demo() -> None:
    asked = parse(sweep.StepOptions, ["--options_file", str(project_root() / "presets" / "sweep.yaml")])
    plain = sweep.chain_options(asked)
    assert plain == main.ReusableOptions(systems="whisper_moe", until="asr", corpus_seed=42)
    other = sweep.chain_options(asked, {"adapter_rank": 56, "shared_share": 0.5})
    main.check_stages(other)
    default = plain.part(AdapterOptions)
    assert other.adapter_rank == default.shared_rank + 6 * default.lora_r
