"""A study of Optuna: which values the next trial has, and what the trials so far say of each option.

The study is kept nowhere. The sampler draws from a seed and from what earlier trials found, so a sweep that starts again asks for the
same trials, and finds those that finished in the store. Optuna is an extra, in requirements-sweep.txt.
"""

import contextlib
import dataclasses
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot
from matplotlib.figure import Figure

from steps.sweeps.space import Dimension, Range, Values, size_of_grid

if TYPE_CHECKING:
    import optuna

REQUIREMENTS = "requirements-sweep.txt"
TPE, GRID = "tpe", "grid"
SAMPLERS = ("random", TPE, GRID)
N_DIGITS = 3  # of a number drawn from a range: more would only be hard to read
PARALLEL, IMPORTANCE = "parallel_coordinates", "importance"


@dataclasses.dataclass(frozen=True)
class Result:
    """What a trial found: what is to be low; of one that was pruned what it was then, after how many validations. None: nothing."""

    value: float | None
    pruned_after: int | None = None


Try = Callable[[int, Sequence[dict[str, Any]]], Sequence[Result]]  # number of the first of some trials, and the values of each


def missing_extra() -> str | None:
    """What to install for sweeps; None where it is there."""
    return None if importlib.util.find_spec("optuna") else f"sweeps need optuna: pip install -r {REQUIREMENTS}"


def search(
    sampler: str, dimensions: Sequence[Dimension], n_trials: int, seed: int, attempt: Try, n_parallel: int = 1
) -> "optuna.Study":
    """Try values, some at a time; these are drawn from what those before them found.

    Args:
        sampler: `random`, `tpe` (tree-structured Parzen estimator; random for its first ten trials) or `grid`.
        n_trials: at most; a grid ends where it is complete.
        seed: of the sampler.
        n_parallel: trials at a time.
    """
    import optuna

    n_all = min(n_trials, size_of_grid(list(dimensions))) if sampler == GRID else n_trials
    with _quiet():
        study = optuna.create_study(sampler=_sampler(sampler, dimensions, seed, n_parallel), direction="minimize")
        for first in range(0, n_all, n_parallel):
            asked = [study.ask() for _ in range(min(n_parallel, n_all - first))]
            values = [{dimension.name: _drawn(trial, dimension) for dimension in dimensions} for trial in asked]
            for trial, result in zip(asked, attempt(first, values), strict=True):
                _tell(study, trial, result)
    return study


def _tell(study: "optuna.Study", trial: "optuna.Trial", result: Result) -> None:
    from optuna.trial import TrialState

    if result.value is None:
        study.tell(trial, state=TrialState.FAIL)
    elif result.pruned_after is None:
        study.tell(trial, result.value)
    else:
        trial.report(result.value, result.pruned_after)
        study.tell(trial, state=TrialState.PRUNED)


def importance(study: "optuna.Study") -> dict[str, float]:
    """The share of each option in what makes trials good, the largest first (PED-ANOVA, Watanabe et al., IJCAI 2023); empty for want of trials."""
    import optuna

    names = _varied(study)
    with _quiet(), contextlib.suppress(ValueError, RuntimeError):
        return optuna.importance.get_param_importances(study, params=names) if names else {}
    return {}


def figures(study: "optuna.Study", metric: str) -> dict[str, Figure]:
    """Optuna's pictures of a study by name, those that there are trials for."""
    from optuna.visualization import matplotlib as plots

    names = _varied(study)
    if not names:
        return {}
    drawn = {PARALLEL: plots.plot_parallel_coordinate} | ({IMPORTANCE: plots.plot_param_importances} if importance(study) else {})
    found = {}
    for name, plot in drawn.items():
        with _quiet(), matplotlib.pyplot.style.context("default"):  # Optuna's styles would stay for every later picture
            plot(study, params=names, target_name=metric)
            found[name] = matplotlib.pyplot.gcf()
            found[name].set_size_inches(10, 5)
            found[name].tight_layout()
    return found


def _sampler(name: str, dimensions: Sequence[Dimension], seed: int, n_parallel: int) -> "optuna.samplers.BaseSampler":
    import optuna

    class Grid(optuna.samplers.GridSampler):
        def after_trial(self, *_: Any) -> None:
            """Stop no loop of Optuna's: there is none."""

    if name == GRID:
        grid = {dimension.name: dimension.values for dimension in dimensions if isinstance(dimension, Values)}
        return Grid(grid, seed)
    if name == TPE:
        return optuna.samplers.TPESampler(seed=seed, constant_liar=n_parallel > 1)  # else trials of a time are drawn alike
    return optuna.samplers.RandomSampler(seed=seed)


def _drawn(trial: "optuna.Trial", dimension: Dimension) -> Any:
    """The value of an option in a trial."""
    if isinstance(dimension, Values):
        return trial.suggest_categorical(dimension.name, dimension.values)
    if isinstance(dimension.low, int) and isinstance(dimension.high, int):
        return trial.suggest_int(dimension.name, dimension.low, dimension.high, log=dimension.log)
    return _rounded(trial.suggest_float(dimension.name, dimension.low, dimension.high, log=dimension.log), dimension)


def _rounded(value: float, dimension: Range) -> float:
    return min(max(float(f"{value:.{N_DIGITS}g}"), dimension.low), dimension.high)


def _varied(study: "optuna.Study") -> list[str]:
    """The options that had several values in trials with a result; none where all of these came out alike."""
    done = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    if len({trial.value for trial in done}) < 2:
        return []
    return [name for name in done[0].params if len({trial.params[name] for trial in done}) > 1]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Optuna says of every trial and of its experimental parts."""
    import optuna

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)
