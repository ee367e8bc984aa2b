"""How a step meets MLflow: open its run, read what an earlier run left, and end well or badly.

A step is `with step_run("gate", options) as run:` around its work, or `in_run` where processes may share it, and
`command(run, StepOptions)` as its `main`. What earlier runs left is in `steps.tracking.artifacts`.
"""

import contextlib
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from mlflow.exceptions import MlflowException

from moe.options import Options, OptionsType
from moe.training.processes import ProcessOptions
from moe.training.threads import settle_threads
from steps.options.command_line import parse
from steps.tracking import placement, processes
from steps.tracking.artifacts import FINGERPRINT, TRACEBACK, refuse_unreadable
from steps.tracking.dead_runs import MESSAGE_TAG, STOPPED_TAG, close_own
from steps.tracking.fingerprint import fingerprint
from steps.tracking.log_file import written_to
from steps.tracking.names import FINGERPRINT_TAG, STEP_TAG
from steps.tracking.parents import parent_id
from steps.tracking.pruning import PRUNED_TAG, Pruned
from steps.tracking.resuming import close_run, open_run
from steps.tracking.retries import first_line, no_retries
from steps.tracking.run_ids import with_whole_ids
from steps.tracking.secrets import without_secrets
from steps.tracking.source_code import DIFF, DIRTY_TAG, uncommitted
from steps.tracking.step_run import StepRun
from steps.tracking.store import Store, connect, project_root
from steps.tracking.system_metrics import system_metrics

MAX_MESSAGE = 600
CONTINUE = "start the same command again: finished steps are reused, this one goes on where it was"
STATUS_OF_SIGNAL = {signal.SIGINT: 130, signal.SIGTERM: 143}  # what a shell expects: 128 + signal number


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextlib.contextmanager
def step_run(step: str, options: Options, name: str | None = None) -> Iterator[StepRun]:
    """Open the run of a step, log what it was started with, and end it FINISHED, FAILED or KILLED.

    Goes on in the run that an earlier start with the same fingerprint left unfinished (see `steps.tracking.resuming`), or joins the one that
    `mlflow run` made for this process, or opens one, nested in a run that is open already.

    Args:
        step: name of the step, as in MLproject.
        options: what it was started with; logged as parameters.
        name: run name in the UI; step and seed by default.
    """
    store = connect()
    found = fingerprint(step, options)
    tags = {STEP_TAG: step, FINGERPRINT_TAG: found.digest}
    alone, changes = parent_id() is None, uncommitted(project_root())
    tags |= {DIRTY_TAG: "true"} if changes else {}
    shown, resume = getattr(options, "run_name", None) or name or _default_name(step, options), getattr(options, "resume", True)
    opened = open_run(store, step, found.digest, shown, tags, resume)
    run = StepRun(store.client, opened, step, shown, not getattr(options, "no_plot", False))
    try:
        run.log_parameters(options.used_parameters())
        store.client.log_dict(run.run_id, found.as_dict(), FINGERPRINT)
        if changes and alone:
            store.client.log_text(run.run_id, changes, DIFF)
        refuse_unreadable(options)
        watched = getattr(options, "watches_system", False)
        with written_to(getattr(options, "log_file", None), run), system_metrics(run.run_id, watched):
            yield run
        run.opened.metrics.finish()
        close_run(run.run_id, store, "FINISHED")
    except BaseException as error:
        if isinstance(error, Pruned):
            _end_pruned(run, store, error)
        else:
            _end_badly(run, store, error)
        opened.work_folder.close(finished=isinstance(error, Pruned))
        raise
    opened.work_folder.close(finished=True)


def in_run(step: str, options: OptionsType, work: Callable[[StepRun, OptionsType], None], name: str | None = None) -> str:
    """Do a step's work in its run, here or in as many processes as the options say, and return the run's id.

    Args:
        work: called with the run and the options, in every process; what it logs counts in the first.
        step, name: as of `step_run`.
    """
    if processes.is_told():
        run = processes.join_run(step)
        mine = processes.share(options)
        with written_to(getattr(mine, "log_file", None), run):
            work(run, mine)
        run.opened.metrics.finish()
        return run.run_id
    asked = options.part(ProcessOptions) if isinstance(options, ProcessOptions) else ProcessOptions()
    with placement.connected(asked) if asked.is_placed else contextlib.nullcontext(), step_run(step, options, name) as run:
        if asked.num_processes == 1 and not asked.is_placed:
            work(run, options)
        else:
            processes.start(run, options, asked)
    return run.run_id


def work_dir(run: StepRun) -> Path:
    """A step's own folder for unfinished work: the same at the next start with the same fingerprint, gone when the run is FINISHED."""
    return run.opened.work_folder.work_dir


def command(run: Callable[[OptionsType], str], options_type: type[OptionsType], arguments: Sequence[str] | None = None) -> None:
    """A step's `main`: parse the flags, run, and end the process with one clear line where that goes wrong.

    Exit codes: 1 the step failed, 2 bad options, 130 and 143 stopped by Ctrl-C and SIGTERM. The traceback of a ValueError,
    RuntimeError or OSError is an artifact of the run, not on the screen; any other exception is a defect and shows itself.
    """
    options = parse(options_type, arguments)
    step = Path(run.__code__.co_filename).stem
    signal.signal(signal.SIGTERM, raise_terminated)
    if processes.is_told():
        processes.work_as_told(run, options)
        return
    print(f"{step}: {settle_threads()}", flush=True)
    try:
        run(with_whole_ids(options))
    except KeyboardInterrupt as stop:
        _close_own()
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        print(f"{step}: stopped by {number.name}, run marked KILLED; {CONTINUE}", file=sys.stderr)
        sys.exit(STATUS_OF_SIGNAL[number])
    except (ValueError, RuntimeError, OSError, MlflowException) as error:
        print(_one_line(step, error), file=sys.stderr)
        sys.exit(1)


def _close_own() -> None:
    with no_retries(), contextlib.suppress(MlflowException, RuntimeError):
        close_own(connect().client)


def raise_terminated(number: int, frame: FrameType | None) -> None:
    """A handler of SIGTERM.

    Raises:
        Terminated: always.
    """
    raise Terminated


def _ignore_signals() -> None:
    """A second signal must not interrupt the ending: `mlflow run` sends SIGTERM right after Ctrl-C. Only in a process of `command`."""
    if signal.getsignal(signal.SIGTERM) is raise_terminated:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _default_name(step: str, options: Options) -> str:
    seed = getattr(options, "seed", None)
    return step if seed is None else f"{step} · seed {seed}"


def _end_badly(run: StepRun, store: Store, error: BaseException) -> None:
    """Mark the run, within seconds; what goes wrong here must not hide the error itself."""
    if not getattr(error, "__notes__", None):
        error.add_note(run.step)  # the innermost step: the runs around it end with the same error
    killed = isinstance(error, KeyboardInterrupt)
    if killed:
        _ignore_signals()
    message = f"stopped; {CONTINUE}" if killed else _one_line(run.step, error)
    try:
        with no_retries():
            close_run(run.run_id, store, "KILLED" if killed else "FAILED")
            run.set_tags({MESSAGE_TAG: message, STOPPED_TAG: str(killed).lower()})
            run.client.log_text(run.run_id, "".join(traceback.format_exception(error)), TRACEBACK)
    except (MlflowException, OSError) as second:
        print(f"{run.step}: run {run.run_id} could not be marked: {second}", file=sys.stderr)


def _end_pruned(run: StepRun, store: Store, error: Pruned) -> None:
    """Mark a run that nobody will continue, and say in its name and description what became of it."""
    try:
        with no_retries():
            run.opened.metrics.finish()
            run.set_tags({MESSAGE_TAG: str(error), PRUNED_TAG: error.run_id})
            run.describe(f"{str(error).capitalize()}.")
            run.add_to_name("", "pruned")
            close_run(run.run_id, store, "KILLED")
    except (MlflowException, OSError, RuntimeError) as second:
        print(f"{run.step}: run {run.run_id} could not be marked: {second}", file=sys.stderr)


def _one_line(step: str, error: BaseException) -> str:
    names = dict.fromkeys([step, *getattr(error, "__notes__", [])[:1]])
    said = first_line(error) if isinstance(error, MlflowException) else str(error)  # without the query that SQLAlchemy adds
    text = " ".join(said.split()) or type(error).__name__
    return without_secrets(f"{': '.join(names)}: {text}")[:MAX_MESSAGE]
