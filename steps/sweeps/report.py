"""What a sweep leaves in its run: every trial, the pictures of the study, the best options, and what the finalists came to on the test set."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from analysis.report import html_page, markdown_table, percent
from analysis.verdict import best_sentence, readable_table, readable_tests
from moe.options import to_text
from steps.chain.screen import TESTS, fitted
from steps.sweeps.study import figures, importance
from steps.sweeps.trials import AS_GIVEN, Trial, best_trials, trials_table
from steps.tracking import artifacts
from steps.tracking.lineage import run_link
from steps.tracking.step_run import StepRun

if TYPE_CHECKING:
    import optuna

REPORT, BEST, TRIALS = "report.html", "best.yaml", "tables/trials"
ON_TEST = "Finalists on the test set"
ONE_MODEL = "The best trials are the options as given: there is nothing to compare."


@dataclasses.dataclass(frozen=True)
class Swept:
    """What a sweep found.

    Attributes:
        given: the chain with the options as given.
        trials: all of them, in order.
        compare_run_id: the comparison of the finalists; None where there was nothing to compare.
    """

    metric: str
    given: Trial
    trials: tuple[Trial, ...]
    study: "optuna.Study"
    compare_run_id: str | None

    @property
    def best(self) -> Trial:
        """The trial with the lowest mean; the options as given where every trial was pruned."""
        return [*best_trials(self.trials, 1), self.given][0]

    @property
    def table(self) -> pd.DataFrame:
        """The options as given, and one row for each trial."""
        return trials_table([self.given, *self.trials], list(self.trials[0].values), self.metric)

    @property
    def sentence(self) -> str:
        """The best trial, in words; a choice by dev says nothing of test yet."""
        n_pruned = sum(trial.pruned_run_id is not None for trial in self.trials)
        n_failed = sum(bool(trial.fault) for trial in self.trials) - n_pruned
        if self.best is self.given:
            others = f" or have no result ({n_failed})" if n_failed else ""
            return (
                f"All {len(self.trials)} trials were pruned{others}: the options as given have the lowest {self.metric}, "
                f"{percent(self.given.rate)}."
            )
        failed = f"; {n_pruned} were pruned" if n_pruned else ""
        failed += f"; {n_failed} of {len(self.trials)} trials have no result" if n_failed else ""
        return (
            f"Of {len(self.trials)} trials {self.best.name} has the lowest {self.metric}, {percent(self.best.rate)} ({words(self.best)}), "
            f"where the options as given have {percent(self.given.rate)}{failed}."
        )


def words(trial: Trial) -> str:
    """The values of a trial."""
    return ", ".join(f"{name}={to_text(value)}" for name, value in trial.values.items()) or AS_GIVEN


def trial_line(trials: Sequence[Trial], metric: str) -> str:
    """What the last trial found, and which is the best so far."""
    last, best = trials[-1], best_trials(trials, 1)
    found = f"{metric} {percent(last.rate)}"
    if last.fault:
        found = last.fault if last.pruned_run_id else f"no result: {last.fault}"
    lowest = f"; lowest: {percent(best[0].rate)}, {best[0].name}" if best else ""
    return fitted(f"{last.name}: {words(last)}: {' '.join(found.split())}{lowest}")


def readable_trials(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The trials as a person reads them: rates in percent, runs by their first letters, no column that is empty."""
    rates = [name for name in table.columns if name.partition(",")[0] == metric]
    shown = table.assign(**{name: table[name].map(percent) for name in rates}, runs=table["runs"].map(_short))
    return shown[[name for name in shown.columns if (shown[name] != "").any()]]


def log_sweep(step: StepRun, swept: Swept) -> None:
    """Log tables, metrics, pictures, the page and the description, and print the result."""
    table, shares = swept.table, importance(swept.study)
    shown, on_test = readable_trials(table, swept.metric), _on_test(swept.compare_run_id)
    drawn = figures(swept.study, swept.metric) if step.plots else {}
    _log_numbers(step, swept)
    step.log_table(pd.DataFrame(list(shares.items()), columns=["option", "importance"]), "tables/importance.json")
    step.log_table(shown, f"{TRIALS}.json")
    step.log_table(table, f"{TRIALS}.csv")
    pictures: dict[str, object] = {"Options": list(drawn.values())} if drawn else {}
    answer = [swept.sentence, *([on_test.sentence] if on_test else [ONE_MODEL])]
    tables: dict[str, object] = {ON_TEST: [readable_table(on_test.table), readable_tests(on_test.tests)]} if on_test else {}
    step.log_text(html_page("Sweep", {"Answer": list[object](answer), "Trials": shown, **pictures, **tables}), REPORT)
    for name, figure in drawn.items():
        step.log_figure(figure, f"plots/{name}.png")
    link = [f"Tests between the finalists: {run_link(swept.compare_run_id, 'compare')}"] if swept.compare_run_id else []
    step.describe("\n\n".join([*answer, *link, markdown_table(shown)]))
    step.add_to_name("", f"{percent(swept.best.rate)} {swept.metric}")
    print("\n".join(["", *map(fitted, shown.to_string(index=False).splitlines()), "", *answer]), flush=True)


@dataclasses.dataclass(frozen=True)
class OnTest:
    """A comparison of the finalists."""

    table: pd.DataFrame
    tests: pd.DataFrame

    @property
    def sentence(self) -> str:
        """The lowest WER, and whether the test set is large enough to tell it from the next."""
        return f"{ON_TEST}: {best_sentence(self.table, self.tests)}"


def _on_test(compare_run_id: str | None) -> OnTest | None:
    if compare_run_id is None:
        return None
    table = pd.read_parquet(artifacts.upstream(compare_run_id, artifacts.COMPARISON))
    return OnTest(table, pd.read_csv(artifacts.upstream(compare_run_id, TESTS)))


def _log_numbers(step: StepRun, swept: Swept) -> None:
    step.log_metrics({f"{swept.metric}_best": swept.best.rate, f"{swept.metric}_as_given": swept.given.rate})
    rates = [(number, trial.rate) for number, trial in enumerate(swept.trials) if not trial.fault]
    step.log_history([(number, {swept.metric: rate}) for number, rate in rates])


def _short(run_ids: str) -> str:
    return ", ".join(run_id[:8] for run_id in run_ids.split(", "))
