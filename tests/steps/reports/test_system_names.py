"""Evaluated models are named by the options in which they differ, read along their lineage."""

import dataclasses
from pathlib import Path

import mlflow
import pandas as pd
import pytest

from analysis.systems import SystemScores
from moe.options import Options, option
from steps.reports.system_names import choices, tell_apart
from steps.tracking import runs


@dataclasses.dataclass(frozen=True)
class Stage(Options):
    """A stage of a toy chain."""

    top_k: int = option(2, "")
    clustering_algorithm: str = option("spectral", "")
    num_workers: int = option(0, "")
    seed: int = option(0, "")
    cluster_run_id: str = option("none", "")
    asr_run_id: str = option("none", "")
    model_run_id: str = option("none", "")

    not_in_fingerprint = frozenset({"num_workers"})


@pytest.fixture(autouse=True)
def runs_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs here stand for their parameters and metrics alone: nothing is read of them."""
    monkeypatch.setattr(runs, "refuse_unreadable", lambda options: None)


def ran(step: str, **options) -> str:
    with runs.step_run(step, Stage(**options)) as run:
        pass
    mlflow.end_run()
    return run.run_id


def mixture(seed: int = 0, **options) -> SystemScores:
    """An evaluated mixture: cluster → asr → evaluate."""
    clustering = {name: options.pop(name) for name in ("clustering_algorithm", "num_workers") if name in options}
    asr_run_id = ran("asr", cluster_run_id=ran("cluster", seed=seed, **clustering), seed=seed, **options)
    return SystemScores("MoE", ran("evaluate", model_run_id=asr_run_id, seed=seed), "whisper_moe", "mixture", pd.DataFrame())


def test_seeds_and_workers_stay_one_system_and_an_option_makes_two(store: Path) -> None:
    systems = [mixture(seed=0), mixture(seed=1, num_workers=2), mixture(seed=0, top_k=1)]
    assert [system.name for system in tell_apart(systems)] == ["MoE", "MoE", "MoE · top_k=1"]


def test_the_option_of_a_run_far_up_the_lineage_counts(store: Path) -> None:
    systems = [mixture(), mixture(clustering_algorithm="hdbscan")]
    assert choices(systems[1])[("cluster", "clustering_algorithm")] == "hdbscan"
    # one of each: neither is the usual one
    assert [system.name for system in tell_apart(systems)] == [
        "MoE · clustering_algorithm=spectral",
        "MoE · clustering_algorithm=hdbscan",
    ]


def test_a_single_lora_is_not_told_apart_by_the_mixture_whose_size_it_has_nor_by_routing(store: Path) -> None:
    runs_of = [ran("baseline", top_k=k, asr_run_id=ran("asr", top_k=k)) for k in (1, 2)]
    loras = [
        SystemScores("LoRA", ran("evaluate", model_run_id=each), "single_lora", "control", pd.DataFrame()) for each in runs_of
    ]
    assert [system.name for system in tell_apart(loras)] == ["LoRA", "LoRA"]
    assert {step for step, _ in choices(loras[0])} == {"evaluate", "baseline"}


def test_systems_of_two_names_are_not_measured_by_each_other(store: Path) -> None:
    base = SystemScores("base", ran("evaluate", top_k=9), "zero_shot", "base", pd.DataFrame())
    assert [system.name for system in tell_apart([base, mixture()])] == ["base", "MoE"]
