"""Trials of a sweep: the values of each, the chains that were run with them, one for each seed, and what these found on dev."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from moe.options import to_text
from steps.sweeps.chains import step_of
from steps.sweeps.halving import History
from steps.tracking.store import connect

AS_GIVEN = "as given"  # the options without what the sweep varies


@dataclasses.dataclass(frozen=True)
class TrainedChain:
    """A chain that trained the system: its seed, its runs, and the error rate of dev that the model was kept by."""

    seed: int
    run_id: str
    prepare_run_id: str
    model_run_id: str
    rate: float


@dataclasses.dataclass(frozen=True)
class Trial:
    """Values of the options that a sweep varies, and what came of them.

    Attributes:
        fault: why there is no result; empty where there is one.
        history: of the first seed, by which trials are pruned.
        pruned_run_id: the chain that was pruned; None where none was.
    """

    name: str
    values: dict[str, Any]
    chains: tuple[TrainedChain, ...] = ()
    fault: str = ""
    history: History = dataclasses.field(default_factory=dict)
    pruned_run_id: str | None = None

    @property
    def n_validations(self) -> int:
        """How far its training came."""
        return sum(map(len, self.history.values()))

    @property
    def last(self) -> float:
        """The metric where its training was pruned."""
        return list(self.history.values())[-1][-1]

    @property
    def rate(self) -> float:
        """Mean over the seeds; NaN where there is no result."""
        return math.nan if self.fault else statistics.fmean(chain.rate for chain in self.chains)

    @property
    def model_run_ids(self) -> tuple[str, ...]:
        """The runs that trained."""
        return tuple(chain.model_run_id for chain in self.chains)


def trained_chain(run_id: str, system: str, metric: str, seed: int) -> TrainedChain:
    """What a finished run of `main` trained.

    Args:
        metric: as `dev/wer`; the value is that of the epoch that was kept.
    """
    client = connect().client
    tags = client.get_run(run_id).data.tags
    prepare, model = (_stage_run(tags, step) for step in ("prepare", step_of(system)))
    return TrainedChain(seed, run_id, prepare, model, client.get_run(model).data.metrics[f"{metric}_kept"])


def best_trials(trials: Sequence[Trial], n: int) -> list[Trial]:
    """The trials with the lowest mean, the earlier one of equals; what trained the same models counts once."""
    found: dict[tuple[str, ...], Trial] = {}
    for trial in sorted((trial for trial in trials if not trial.fault), key=lambda trial: trial.rate):
        found.setdefault(trial.model_run_ids, trial)
    return list(found.values())[:n]


def trials_table(trials: Sequence[Trial], names: Sequence[str], metric: str) -> pd.DataFrame:
    """One row for each trial, in order: its values, the mean of the metric and that of each seed, its runs, and why it has no result."""
    rows = [
        {
            "trial": trial.name,
            metric: trial.rate,
            **{name: to_text(trial.values[name]) if name in trial.values else AS_GIVEN for name in names},
            **{f"{metric}, seed {chain.seed}": chain.rate for chain in trial.chains if len(trial.chains) > 1},
            "runs": trial.pruned_run_id or ", ".join(chain.run_id for chain in trial.chains),
            "no result because": trial.fault,
        }
        for trial in trials
    ]
    return pd.DataFrame(rows)


def _stage_run(tags: Mapping[str, str], step: str) -> str:
    """The run of a step that a chain ran or, where it was started again, took over."""
    return tags.get(f"moe.reused.{step}") or tags[f"moe.ran.{step}"]
