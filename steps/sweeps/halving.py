"""Successive halving: after 1, N, N², … validations one of N trials trains on (Jamieson and Talwalkar 2016; asynchronous as in Li et al. 2020).

A trial is held against those before it: with their values at the same validation its own must be among the best N-th, in the same step.
While there are fewer than N values nobody is stopped. So the limits of a trial are known before it begins.
"""

from collections.abc import Iterable, Mapping

from mlflow import MlflowClient
from mlflow.entities import Run

from steps.chain.options import MIXTURE
from steps.sweeps.chains import step_of
from steps.tracking.pruning import PRUNED_TAG, Limits, validations

History = Mapping[tuple[str, str], tuple[float, ...]]  # by step and run: the values of the metric, one for each validation


def watched_steps(system: str) -> tuple[str, ...]:
    """The steps whose trainings are judged: those that train the system on its way."""
    return ("experts", step_of(system)) if system == MIXTURE else (step_of(system),)


def history_of(client: MlflowClient, chain: Run, system: str, metric: str) -> History:
    """What the trainings of a chain found, the one that was pruned too."""
    tags = chain.data.tags
    run_ids = {step: tags.get(f"moe.reused.{step}") or tags.get(f"moe.ran.{step}") for step in watched_steps(system)}
    if PRUNED_TAG in tags:
        pruned = client.get_run(tags[PRUNED_TAG])
        run_ids[pruned.data.tags["moe.step"]] = pruned.info.run_id
    found = {(step, run_id): validations(client, run_id, metric) for step, run_id in run_ids.items() if run_id}
    return {place: tuple(values.values()) for place, values in found.items()}


def limits_of(histories: Iterable[History], n: int, metric: str) -> Limits:
    """What a further trial is held against.

    Args:
        histories: of the trials so far; a training that several of them share counts once.
        n: one of so many goes on.
    """
    trainings = {place: values for history in histories for place, values in history.items()}
    highest = {}
    for step in {step for step, _ in trainings}:
        lengths = [len(values) for (of, _), values in trainings.items() if of == step]
        for rung in _rungs(n, max(lengths)):
            held = sorted(values[rung - 1] for (of, _), values in trainings.items() if of == step and len(values) >= rung)
            if n_going_on := (len(held) + 1) // n:
                highest[step, rung] = held[n_going_on - 1]
    return Limits(metric, highest)


def _rungs(n: int, longest: int) -> list[int]:
    """1, n, n², … validations, as many as any training had."""
    found = [1]
    while found[-1] * n <= longest:
        found.append(found[-1] * n)
    return found if longest else []
