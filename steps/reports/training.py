"""What every training of a system reports of the epoch that it kept."""

from collections.abc import Mapping

from moe.system import System
from moe.training.best_epoch import Trained
from steps.tracking.step_run import StepRun


def log_kept(step: StepRun, selected: str, trained: Trained, system: System, facts: Mapping[str, float]) -> None:
    """Log the dev error rate by which an epoch was kept, that epoch, the facts of the training, and what trains by group."""
    kept = {} if trained.epoch is None else {"best_epoch": trained.epoch}
    numbers = {name: value for name, value in facts.items() if name != "seed"}
    trains = {f"n_trainable/{group.name}": group.n_parameters for group in system.parameter_groups()}
    step.log_metrics({f"dev/{selected}_kept": trained.rate, **kept, **numbers, **trains})
