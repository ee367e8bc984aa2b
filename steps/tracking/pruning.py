"""Trainings that a sweep watches: one whose error rate of dev is above a limit is stopped when it would train on.

All limits are known before a training begins, so a sweep that starts again stops the same ones. A training at its end is never
stopped: it has its result. Its run is KILLED with the tag `moe.pruned`, and so is the chain around it; neither is continued.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

from mlflow import MlflowClient

from moe.training.hooks import Report
from steps.tracking.step_run import StepRun

PRUNED_TAG = "moe.pruned"  # on both, with the id of the training's run


class Pruned(RuntimeError):
    """A training that does not go on, and its run."""

    def __init__(self, fault: str, run_id: str) -> None:
        super().__init__(fault)
        self.run_id = run_id


@dataclasses.dataclass(frozen=True)
class Limits:
    """The highest value of a dev metric with which a training of a step goes on, by step and number of validations so far."""

    metric: str
    highest: Mapping[tuple[str, int], float] = dataclasses.field(default_factory=dict)

    def fault(self, step: str, values: Sequence[float]) -> str:
        """Why a training with these values, one for each validation, does not go on; empty where it does."""
        for n, value in enumerate(values, start=1):
            highest = self.highest.get((step, n))
            if highest is not None and not value <= highest:
                times = "validation" if n == 1 else "validations"
                return f"pruned: {self.metric} of {step} {100 * value:.1f} % after {n} {times}, above {100 * highest:.1f} %"
        return ""


NO_LIMITS = Limits("")
_LIMITS = ContextVar("limits", default=NO_LIMITS)


@contextlib.contextmanager
def within(limits: Limits) -> Iterator[None]:
    """In this block every training of a step is watched."""
    before = _LIMITS.set(limits)
    try:
        yield
    finally:
        _LIMITS.reset(before)


def validations(client: MlflowClient, run_id: str, metric: str) -> dict[int, float]:
    """The values of a dev metric of a run by epoch, or update, in order."""
    held = {each.step: each.value for each in client.get_metric_history(run_id, metric)}
    return dict(sorted(held.items()))


class Watch:
    """Watches the training of one run; does nothing where no sweep asks for it."""

    def __init__(self, step: StepRun) -> None:
        self.step, self.limits = step, _LIMITS.get()
        self.values = validations(step.client, step.run_id, self.limits.metric) if self.limits.highest else {}

    def watched(self, report: Report) -> Report:
        """A report that is listened to."""

        def listen(number: int, values: dict[str, float]) -> None:
            report(number, values)
            if self.limits.metric in values:
                self.values[number] = values[self.limits.metric]  # one that an interruption repeats is there once

        return listen

    def goes_on(self) -> None:
        """Before an update.

        Raises:
            Pruned: a validation before it was above a limit.
        """
        if fault := self.limits.fault(self.step.step, list(self.values.values())):
            raise Pruned(fault, self.step.run_id)
