"""Entry point `sweep`: the chain with other options, chosen by dev alone; the best are then compared on the test set.

An options file says what is varied: an option of `main` with a list or a range; its other lines are as in one of `main`. Every trial is
a nested `main` up to the training of one system, and reuses each stage that its options leave unchanged. Started again after whatever
stopped it, the sweep goes on with the trials that are missing. Example:
    mlflow run . --env-manager local -e sweep -P options_file=presets/sweep.yaml
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from moe.options import NONE, names_of
from steps import compare, evaluate
from steps import main as chain
from steps.chain.remote_checks import remote_faults
from steps.chain.reuse import launch
from steps.chain.stages import evaluation_given, stage_options, unasked
from steps.options.option_files import option_file_text
from steps.sweeps.chains import chain_values, decided
from steps.sweeps.halving import history_of, limits_of
from steps.sweeps.options import SweepOptions
from steps.sweeps.report import BEST, Swept, log_sweep, trial_line
from steps.sweeps.running import Chains, Ran, chain_around, refuse_pruned
from steps.sweeps.space import refused
from steps.sweeps.study import Result, missing_extra, search
from steps.sweeps.trials import AS_GIVEN, TrainedChain, Trial, best_trials, trained_chain
from steps.tracking import runs
from steps.tracking.pruning import NO_LIMITS, Limits, Pruned, within
from steps.tracking.side_by_side import side_by_side
from steps.tracking.store import connect


@dataclasses.dataclass(frozen=True)
class StepOptions(SweepOptions, chain.StepOptions):
    """Try options of the chain, and compare the best."""

    def used_parameters(self) -> dict[str, str]:
        """Those of the chain as given, and the sweep's own."""
        own = SweepOptions.__annotations__
        return chain_options(self).used_parameters() | {name: text for name, text in self.as_parameters().items() if name in own}


def run(options: StepOptions) -> str:
    """Run the trials, compare the best, log the report and return the run id.

    Raises:
        RuntimeError: no trial has a result, and not because they were pruned.
    """
    _check(options)
    with runs.step_run("sweep", options, f"sweep · {options.sweep_system} · seed {options.seed}") as step:
        given, trials = _trained(options, AS_GIVEN, {}, options.trial_seeds), list[Trial]()

        def attempt(first: int, values: Sequence[dict[str, Any]]) -> list[Result]:
            asked = [(f"trial {first + number}", each) for number, each in enumerate(values)]
            limits = _limits(options, [given, *trials])
            for trial in _tried(options, asked, limits, step.run_id):
                trials.append(trial)
                print(trial_line(trials, options.selected), flush=True)
            return [_result(trial) for trial in trials[first:]]

        n_trials, n_parallel = options.n_trials or 0, options.parallel_trials
        study = search(options.sampler, options.dimensions, n_trials, options.seed, attempt, n_parallel)
        finalists = best_trials(trials, options.finalists)
        if not finalists and not any(trial.pruned_run_id for trial in trials):
            raise RuntimeError(f"no trial has a result; the last: {trials[-1].fault}")
        compare_run_id = _compared(options, [given, *finalists]) if finalists else None
        log_sweep(step, Swept(options.selected, given, tuple(trials), study, compare_run_id))
        step.log_text(option_file_text(best_options(options, [*finalists, given][0])), BEST)
    return step.run_id


def chain_options(options: StepOptions, values: Mapping[str, Any] | None = None) -> chain.ReusableOptions:
    """The options of a trial's chain: one system up to its training, with some values of what is varied."""
    return chain.ReusableOptions(**chain_values(options.sweep_system, options, values or {}, options.chain_names))


def best_options(options: StepOptions, best: Trial) -> dict[str, Any]:
    """What an options file of `main` says for the best trial: what was given, and its values."""
    wanted, ours = chain_options(options, best.values), decided(options.sweep_system, options)
    changed = {name: getattr(wanted, name) for name in names_of(chain.StepOptions, but=ours) if wanted.is_changed(name)}
    return {name: NONE if value is None else value for name, value in changed.items()}


def _check(options: StepOptions) -> None:
    """Refuse, before any work, what no trial could run with.

    Raises:
        ValueError: all of it.
    """
    whole = dataclasses.replace(chain_options(options), until="evaluate")
    found = [fault for fault in (missing_extra(), *remote_faults(whole)) if fault]
    if not _fault(options, {}):
        found += refused(options.dimensions, lambda values: _fault(options, values))
    chain.check_stages(whole, found)


def _fault(options: StepOptions, values: Mapping[str, Any]) -> str:
    """Why no trial can have these values; empty where one can."""
    wanted = chain_options(options, values)
    idle = [name for name, value in values.items() if getattr(wanted, name) != value]
    if idle:
        return f"{idle[0]} is not varied: it does nothing beside the options as given"
    try:
        chain.check_stages(wanted)
    except ValueError as error:
        return str(error)
    return ""


def run_chains(work: Chains) -> Ran:
    """Run or reuse them.

    Raises:
        Pruned: the first is not among the best.
        ValueError: its options do not go together.
        RuntimeError: a stage came to nothing.
    """
    run_ids = []
    for number, wanted in enumerate(work.wanted):
        chain.check_stages(wanted)
        limits = NO_LIMITS if number else work.limits
        refuse_pruned("main", wanted, limits)
        with within(limits):
            run_ids.append(launch(chain, wanted, title=f"{work.name}, seed {wanted.seed}", accept_changes=wanted.accept_changes))
    return Ran(tuple(zip((wanted.seed for wanted in work.wanted), run_ids, strict=True)), run_ids[0])


def run_chains_or_why(work: Chains) -> Ran:
    """The same where there may be no result: the first chain was pruned, values do not go together, or a training came to nothing."""
    try:
        return run_chains(work)
    except Pruned as error:
        return Ran(first_run_id=chain_around(error.run_id), fault=str(error))
    except (ValueError, RuntimeError) as error:
        return Ran(fault=str(error))


def _trained(options: StepOptions, name: str, values: Mapping[str, Any], seeds: Sequence[int]) -> Trial:
    """A trial, whose chains run or are reused, and are not pruned."""
    return _trial(options, name, values, run_chains(_work(options, name, values, seeds)))


def _tried(
    options: StepOptions, asked: Sequence[tuple[str, Mapping[str, Any]]], limits: Limits, sweep_run_id: str
) -> Iterator[Trial]:
    """Trials with these names and values: what came of each, or why it has no result."""
    works = [_work(options, name, values, options.trial_seeds, limits) for name, values in asked]
    side = options.parallel_trials > 1
    found = side_by_side(run_chains_or_why, works, sweep_run_id, len(works)) if side else map(run_chains_or_why, works)
    for (name, values), outcome in zip(asked, found, strict=True):
        yield _trial(options, name, values, outcome)


def _work(options: StepOptions, name: str, values: Mapping[str, Any], seeds: Sequence[int], limits: Limits = NO_LIMITS) -> Chains:
    wanted = [dataclasses.replace(chain_options(options, values), seed=seed, run_name=f"{name} · seed {seed}") for seed in seeds]
    return Chains(name, tuple(wanted), limits)


def _trial(options: StepOptions, name: str, values: Mapping[str, Any], ran: Ran) -> Trial:
    system, metric, client = options.sweep_system, options.selected, connect().client
    chains = [trained_chain(run_id, system, metric, seed) for seed, run_id in ran.finished]
    history = history_of(client, client.get_run(ran.first_run_id), system, metric) if ran.first_run_id else {}
    return Trial(name, dict(values), tuple(chains), ran.fault, history, ran.first_run_id if ran.fault else None)


def _limits(options: StepOptions, trials: Sequence[Trial]) -> Limits:
    """What the next trials are held against; nothing where none is to be pruned."""
    if options.halving is None:
        return NO_LIMITS
    return limits_of([trial.history for trial in trials], options.halving, options.selected)


def _result(trial: Trial) -> Result:
    if trial.pruned_run_id:
        return Result(trial.last, trial.n_validations)
    return Result(None if trial.fault else trial.rate)


def _compared(options: StepOptions, finalists: Sequence[Trial]) -> str | None:
    """The run that compares the finalists on the test set; None where all of them are one model."""
    trials = [_trained(options, each.name, each.values, options.last_seeds) for each in finalists]
    models = {each.model_run_id: each for trial in trials for each in trial.chains}
    if len(models) <= len(options.last_seeds):
        return None
    ids = ",".join(_evaluated(options, each) for each in models.values())
    return launch(compare, stage_options(compare, options, evaluate_run_ids=ids), accept_changes=options.accept_changes)


def _evaluated(options: StepOptions, trained: TrainedChain) -> str:
    given = evaluation_given(options.sweep_system, trained.prepare_run_id, trained.model_run_id) | unasked(
        options.sweep_system, options
    )
    asked = stage_options(evaluate, options, **given | {"seed": trained.seed})
    return launch(evaluate, asked, title=f"evaluate, seed {trained.seed}", accept_changes=options.accept_changes)


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
