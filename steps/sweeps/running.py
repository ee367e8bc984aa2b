"""What a trial runs, for each seed a chain, and what came of it; chains that an earlier start pruned."""

import dataclasses
from typing import Any

from moe.options import Options
from steps.tracking.experiments import every_experiment
from steps.tracking.fingerprint import fingerprint
from steps.tracking.names import FINGERPRINT_TAG, STEP_TAG
from steps.tracking.pruning import NO_LIMITS, PRUNED_TAG, Limits, Pruned, validations
from steps.tracking.resuming import PARENT_TAG
from steps.tracking.store import connect


@dataclasses.dataclass(frozen=True)
class Chains:
    """What is to run: the options of each chain (`steps.main.ReusableOptions`), and what the first is held against."""

    name: str
    wanted: tuple[Any, ...]
    limits: Limits = NO_LIMITS


@dataclasses.dataclass(frozen=True)
class Ran:
    """What ran: the seed and the run of each chain, the run of the first, pruned or not, and why there is no result."""

    finished: tuple[tuple[int, str], ...] = ()
    first_run_id: str | None = None
    fault: str = ""


def refuse_pruned(step: str, wanted: Options, limits: Limits) -> None:
    """Do not run a chain again that an earlier start pruned, and this one would.

    Raises:
        Pruned: naming that training.
    """
    client = connect().client
    alike = f"tags.`{STEP_TAG}` = '{step}' and tags.`{FINGERPRINT_TAG}` = '{fingerprint(step, wanted).digest}'"
    for run in client.search_runs(every_experiment(client), alike) if limits.highest else []:
        if run_id := run.data.tags.get(PRUNED_TAG):
            values = validations(client, run_id, limits.metric)
            if fault := limits.fault(client.get_run(run_id).data.tags[STEP_TAG], list(values.values())):
                raise Pruned(fault, run_id)


def chain_around(run_id: str) -> str:
    """The run of the chain that a training belongs to."""
    return str(connect().client.get_run(run_id).data.tags[PARENT_TAG])
