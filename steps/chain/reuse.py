"""Run a step, or take over the finished run of an earlier one that would come out the same, and say which and why.

Two runs come out the same where their fingerprints are equal (see `steps.tracking.fingerprint`), or where somebody accepted that code or
libraries changed: then the run carries a tag for the new fingerprint. A run is taken over only if it FINISHED and everything it logged is
still there. `main` starts every step through `launch`.
"""

import dataclasses
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from moe.files import read_json
from moe.options import Options
from moe.progress import announce
from steps.chain.screen import stage_line
from steps.tracking.artifacts import FINGERPRINT, upstream
from steps.tracking.experiments import every_experiment
from steps.tracking.fingerprint import Fingerprint, fingerprint
from steps.tracking.names import FINGERPRINT_TAG, STEP_TAG
from steps.tracking.parents import parent_id
from steps.tracking.pruning import PRUNED_TAG
from steps.tracking.resuming import PARENT_TAG
from steps.tracking.step_run import ARTIFACTS_TAG
from steps.tracking.store import connect

N_EARLIER = 30  # earlier runs looked at to find the nearest one on a miss
N_DIFFERENCES = 3  # shown on a miss, the rest counted
SAME = "same parameters, code and inputs"
ACCEPTED_TAG, N_DIGITS = "moe.accepted.", 16  # and the first digits of the fingerprint that is accepted
MAX_TAG = 4900


@dataclasses.dataclass(frozen=True)
class Reuse:
    """Whether a run can be taken over: its id, or None, and the reason."""

    run_id: str | None
    reason: str


def find_reusable(step: str, options: Options, accept_changes: bool = False) -> Reuse:
    """The newest finished run that `step` with these options would repeat; on a miss the reason names what differs.

    Args:
        accept_changes: a run counts although code or libraries changed since; it is tagged, and counts from then on.
    """
    client, wanted = connect().client, fingerprint(step, options)
    earlier, accepted = _earlier_runs(client, step), ACCEPTED_TAG + wanted.digest[:N_DIGITS]
    twins = [run for run in earlier if run.data.tags.get(FINGERPRINT_TAG) == wanted.digest or accepted in run.data.tags]
    for run in twins:
        if _is_whole(client, run):
            return Reuse(run.info.run_id, f"accepted before: {run.data.tags[accepted]}" if accepted in run.data.tags else SAME)
    for run in earlier[:N_EARLIER] if accept_changes else []:
        changes = _acceptable(client, wanted, run)
        if changes:
            client.set_tag(run.info.run_id, accepted, "; ".join(changes)[:MAX_TAG])
            return Reuse(run.info.run_id, f"accepted: {_few(changes)}")
    return Reuse(None, _why_not(client, wanted, earlier, twins))


def _acceptable(client: MlflowClient, wanted: Fingerprint, run: Run) -> list[str]:
    """What changed since a run that differs in nothing but code and libraries; empty where more does, or the run is not whole."""
    held = _held(run) if _is_whole(client, run) else None
    if held is None or any(held.get(part) != wanted.as_dict()[part] for part in ("parameters", "data")):
        return []
    return wanted.differences(held)


def _is_whole(client: MlflowClient, run: Run) -> bool:
    return run.info.status == "FINISHED" and not _missing(client, run)


def launch(module: ModuleType, options: Options, force: bool = False, title: str = "", accept_changes: bool = False) -> str:
    """Run a step module, or reuse an earlier run of it, and print one line that says so.

    Args:
        module: a module of `steps` with `run(options) -> run_id`.
        options: its options.
        force: run, whatever there is; but what this chain has run before it was interrupted is not run again.
        title: what the line calls it; the step's name by default.
        accept_changes: of `find_reusable`.

    Returns:
        The run's id. The run that is open, if any, gets the tag `moe.ran.STEP` or `moe.reused.STEP` with it.
    """
    step, started = module.__name__.rpartition(".")[2], time.monotonic()
    found = find_reusable(step, options, accept_changes)
    if force and not _ran_in_this_chain(found.run_id):
        found = Reuse(None, "forced")
    if found.run_id is None:
        announce(title or step)
    run_id = found.run_id or module.run(options)
    word = "reused" if found.run_id else "ran"
    print(stage_line(title or step, word, run_id, time.monotonic() - started, found.reason), flush=True)
    if parent := parent_id():
        connect().client.set_tag(parent, f"moe.{word}.{step}", run_id)
        _nest(run_id, parent)
    return run_id


def _nest(run_id: str, parent_id: str) -> None:
    """Show a reused run below the chain that goes on where an earlier one was stopped; a run has one parent."""
    client = connect().client
    held = client.get_run(run_id).data.tags.get(PARENT_TAG)
    if held != parent_id and held is not None and _was_stopped(client.get_run(held)):
        client.set_tag(run_id, PARENT_TAG, parent_id)


def _was_stopped(run: Run) -> bool:
    """Whether a chain ended and another start goes on with it: one that was pruned keeps its stages, and so does one that still runs."""
    return run.info.status in ("FAILED", "KILLED") and PRUNED_TAG not in run.data.tags


def _ran_in_this_chain(run_id: str | None) -> bool:
    parent = parent_id()
    if run_id is None or parent is None:
        return False
    return connect().client.get_run(run_id).data.tags.get(PARENT_TAG) == parent


def _earlier_runs(client: MlflowClient, step: str) -> list[Run]:
    """Newest first, of every experiment."""
    wanted, order = f"tags.`{STEP_TAG}` = '{step}'", ["attributes.start_time DESC"]
    return list(client.search_runs(every_experiment(client), wanted, order_by=order))


def _why_not(client: MlflowClient, wanted: Fingerprint, earlier: list[Run], twins: list[Run]) -> str:
    if twins:
        run = next((run for run in twins if run.info.status == "FINISHED"), twins[0])
        lost = f"lost {', '.join(_missing(client, run))}" if run.info.status == "FINISHED" else f"is {run.info.status}"
        return f"the same run {run.info.run_id[:8]} {lost}"
    finished = [run for run in earlier if run.info.status == "FINISHED"][:N_EARLIER]
    known = [held for run in finished if (held := _held(run)) is not None]
    if not known:
        return "no finished run"
    return _few(min((wanted.differences(held) for held in known), key=len))


def _few(differences: list[str]) -> str:
    """The first differences, the rest counted."""
    rest = len(differences) - N_DIFFERENCES
    return ", ".join(differences[:N_DIFFERENCES]) + (f" and {rest} more" if rest > 0 else "")


def _held(run: Run) -> dict[str, Any] | None:
    """The fingerprint that an earlier run kept; None where it is lost or not readable."""
    try:
        return read_json(upstream(run.info.run_id, FINGERPRINT))
    except (MlflowException, RuntimeError, OSError, ValueError):
        return None


def _missing(client: MlflowClient, run: Run) -> list[str]:
    """Top-level artifacts that the run logged and that are not there any more."""
    held = {Path(file.path).name for file in client.list_artifacts(run.info.run_id)}
    return [name for name in run.data.tags.get(ARTIFACTS_TAG, "").split(",") if name and name not in held]
