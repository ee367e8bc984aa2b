"""Metrics of a training in a second place, beside the store: Weights & Biases, or TensorBoard. Only where a user names one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moe.training.hooks import Report
from steps.tracking.secrets import public
from steps.tracking.step_run import StepRun

PROJECT, TENSORBOARD_DIR = "whisper-moe", "tensorboard"


def dashboard(name: str, step: StepRun, parameters: Mapping[str, str]) -> Report | None:
    """Where `report_to` says that metrics go too; None for nowhere.

    Args:
        name: none, wandb or tensorboard.
        parameters: of the step, to be shown beside its metrics; secrets are hidden.
    """
    return {"wandb": _wandb, "tensorboard": _tensorboard}[name](step, public(parameters)) if name != "none" else None


def _wandb(step: StepRun, parameters: Mapping[str, str]) -> Report:
    """A run of the same id, so that an interrupted training goes on in it. Its account is in the environment (WANDB_API_KEY)."""
    import wandb  # type: ignore[import-not-found]  # an extra

    run: Any = wandb.init(
        project=PROJECT, id=step.run_id, name=step.step, config=dict(parameters), resume="allow", reinit="create_new"
    )
    return lambda number, values: run.log({**values, "number": number})  # its own count: updates and epochs are not in one order


def _tensorboard(step: StepRun, parameters: Mapping[str, str]) -> Report:
    """A folder of the run's id below `tensorboard`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(Path(TENSORBOARD_DIR) / step.run_id)
    writer.add_text("parameters", "\n\n".join(f"{name}: {value}" for name, value in parameters.items()))

    def report(number: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            writer.add_scalar(name, value, number)
        writer.flush()

    return report
