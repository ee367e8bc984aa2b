"""Systems side by side: which can be, what each runs, and that one LoRA gets beforehand what the mixture will have had."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from moe.options import Options
from moe.system import Record, write_record
from steps import main
from steps.chain import branches as module
from steps.chain.branches import branches, lora_given, not_as_planned, own_stages, planned_alone, planned_epochs
from steps.chain.stages import stage_options

DEFAULT = "whisper_moe,single_lora,zero_shot"


def options(**given) -> Options:
    return main.StepOptions.asked(**{"systems_together": 2, **given})


def test_a_system_has_its_own_stages_and_those_before_them_are_shared() -> None:
    systems = f"{DEFAULT},steer_moe,wav2vec2_ctc,domain_whisper"
    found = {name: [stage.name for stage in own_stages(options(systems=systems), name)] for name in systems.split(",")}
    assert found == {
        "whisper_moe": ["experts", "whisper_moe"],
        "single_lora": ["single_lora"],
        "zero_shot": ["zero_shot"],
        "steer_moe": ["decoder", "steer_moe"],
        "wav2vec2_ctc": ["wav2vec2_ctc"],
        "domain_whisper": ["domain_whisper"],
    }


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ["whisper_moe", "single_lora", "zero_shot"]),
        ({"systems": "zero_shot,whisper_moe"}, ["zero_shot", "whisper_moe"]),
        ({"systems_together": 1}, []),
        ({"systems": "whisper_moe"}, []),
        ({"until": "gate"}, []),
        ({"until": "asr"}, []),  # the mixture alone has stages up to there
        ({"num_experts": "auto"}, ["whisper_moe", "zero_shot"]),  # the clusters say how large the mixture is
        ({"clustering_algorithm": "by_etiology"}, ["whisper_moe", "zero_shot"]),
        ({"expert_epochs": 0, "asr_epochs": 0}, ["whisper_moe", "zero_shot"]),
        ({"skip_pretraining": True, "num_experts": 4}, ["whisper_moe", "single_lora", "zero_shot"]),
    ],
)
def test_what_is_known_beforehand_runs_side_by_side(given: dict[str, object], found: list[str]) -> None:
    assert branches(options(**given)) == found


def test_what_runs_side_by_side_is_checked_before_anything_runs() -> None:
    ((step, given),) = planned_alone(options())
    assert stage_options(step, options(), **given).adapter_rank == 56 and planned_alone(options(systems_together=1)) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [({"num_processes": 2}, "num_processes=2"), ({"num_processes": 2, "cluster": "local"}, "num_processes=2 and cluster=local")],
)
def test_the_machine_is_not_divided_twice(given: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe.training.processes.places", lambda: (2, "cores"))
    with pytest.raises(ValueError, match=f"systems_together=2: the work is divided already, by {said}; leave"):
        main.check_stages(options(**given))


@pytest.mark.parametrize(
    ("given", "rank", "scale", "epochs"),
    [
        ({}, 56, 2, 7),
        ({"shared_r": 8, "lora_r": 8, "lora_alpha": 16, "expert_epochs": 2, "asr_epochs": 0}, 56, 2, 2),
        ({"shared_expert": False, "lora_r": 4, "shared_r": None}, 24, 2, 7),
        ({"adapter_rank": 28}, 28, 2, 7),
        ({"trainings": 2}, 112, 2, 14),
        ({"skip_pretraining": True, "num_experts": 4, "asr_epochs": 3}, 48, 2, 3),
    ],
)
def test_one_lora_has_the_total_rank_the_scale_and_the_epochs(
    given: dict[str, object], rank: int, scale: float, epochs: float
) -> None:
    found = lora_given(options(**given))
    assert (found["adapter_rank"], found["lora_alpha"] / found["lora_r"], found["lora_epochs"]) == (rank, scale, epochs)


def test_epochs_are_counted_in_utterances_where_experts_see_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six epochs over 30 utterances and one over 200 are 380 utterances: 1.9 passes over 200."""
    parts = SimpleNamespace(train=lambda percent, *_: range(round(2 * percent)))
    monkeypatch.setattr(module, "read_prepared", lambda run_id: parts)
    assert planned_epochs(options(experts_percent=15.0, expert_epochs=6, asr_epochs=1), "p") == pytest.approx(1.9)
    assert planned_epochs(options(skip_pretraining=True, num_experts=4, asr_epochs=3), "p") == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, ""),
        ({"n_utterances_seen": 90}, "seen 90 utterances, not 100"),
        ({"n_trainable": 530}, "a total rank of 5, not 6"),
        ({"n_trainable": 530, "n_utterances_seen": 90}, "a total rank of 5, not 6 and seen 90 utterances, not 100"),
    ],
)
def test_a_mixture_that_turned_out_otherwise_is_seen(
    changed: dict[str, int], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gate of 20 parameters is less than a rank of 100; an expert less, or an epoch less, is not."""
    facts = {
        "lora": {"n_trainable": 600, "n_utterances_seen": 100},
        "mixture": {"n_trainable": 620, "n_utterances_seen": 100} | changed,
    }
    for name, held in facts.items():
        (tmp_path / name).mkdir()
        write_record(tmp_path / name, Record("single_lora", "one LoRA", "control", "en", "english", facts=held))
    monkeypatch.setattr("steps.tracking.artifacts.upstream", lambda run_id, _: tmp_path / run_id)
    assert not_as_planned("mixture", "lora", 6) == said
