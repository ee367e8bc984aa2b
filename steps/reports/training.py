"""What every training of a system reports of its epochs and of the one that it kept."""

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis.plots.training import drawable, from_start, training_curves
from analysis.systems import colour_place
from moe.system import System
from moe.training.best_epoch import Trained
from steps.reports.colours import number_of
from steps.tracking.step_run import StepRun

GROUPS = "tables/parameter_groups.json"


def log_kept(step: StepRun, selected: str, trained: Trained, system: System, facts: Mapping[str, float]) -> None:
    """Log the dev error rate by which an epoch was kept, that epoch, the facts of the training, and the groups of parameters as a table."""
    kept = {} if trained.epoch is None else {"best_epoch": trained.epoch}
    numbers = {name: value for name, value in facts.items() if name != "seed" and "/" not in name}
    step.log_metrics({f"dev/{selected}_kept": trained.rate, **kept, **numbers})
    groups = [(group.name, group.n_parameters, group.learning_rate) for group in system.parameter_groups()]
    step.log_table(pd.DataFrame(groups, columns=["group", "n_trainable", "learning_rate"]), GROUPS)


def log_curves(
    step: StepRun, selected: str, trained: Trained, panels: Mapping[str, Sequence[str]], system: System, note: str
) -> None:
    """Draw the metrics by epoch behind what is known of the start, which is epoch 0; a metric with one point has no curve.

    Args:
        selected: the metric whose value of the start is known.
    """
    if not trained.history:
        return
    shown = from_start(pd.DataFrame(trained.history), {selected: trained.start_rate})
    kept, place = (
        0 if trained.epoch is None else trained.epoch + 1,
        colour_place(system.record.role, number_of(system.record.system)),
    )
    title = f"Training of {system.record.title}"
    figure = training_curves(shown, drawable(shown, panels), title, best=kept, note=note, place=place)
    step.log_figure(figure, "plots/training.png")
