"""Trainings in two processes: each writes down its weights and what else is asked of it. Started by `test_processes.py`."""

import os
import sys
from pathlib import Path

import torch.distributed
from safetensors.torch import save_file

from moe.files import write_json
from moe.training.checkpoints import CheckpointOptions, Checkpoints
from moe.training.loop import fit
from moe.training.trainer import ResumableTrainer
from tests.toys.checkpoints import Recorded
from tests.toys.steer import trained_steer
from tests.toys.training import Diary, dataset, plan, toy_base, toy_mixture, training, weights, write_corpus


class Stopped(BaseException):
    """As if the process had gone."""


def train(folder: Path, name: str, stop_at: int) -> None:
    """Train from the newest checkpoint of `name`, to `stop_at` updates or, with 0, to the end."""
    rank = int(os.environ["RANK"])
    corpus = folder / f"corpus_{rank}"
    corpus.mkdir(exist_ok=True)
    model = toy_mixture(toy_base(dropout=0.1))
    touched: set[str] = set()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, parameter_name=parameter_name: touched.add(parameter_name))
    ends = ResumableTrainer.update_ends

    def update_ends(trainer: ResumableTrainer) -> None:
        ends(trainer)
        if trainer.state.global_step == stop_at:
            raise Stopped

    ResumableTrainer.update_ends = update_ends
    checkpoints = Checkpoints(folder / f"{name}_checkpoints", CheckpointOptions(save_every_n_updates=2), Recorded())
    try:
        fit(model, dataset(write_corpus(corpus, 12), corpus), training(plan(batch_size=2), checkpoints=checkpoints), Diary())
    except Stopped:
        return
    finally:
        ResumableTrainer.update_ends = ends
    save_file(weights(model), folder / f"{name}_{rank}.safetensors")
    write_json(folder / f"{name}_{rank}.json", sorted(set(model.trainable_parameters()) - touched))


def steer(folder: Path) -> None:
    """Train a SteerMoE, and write down what trained and how it was analysed."""
    rank = int(os.environ["RANK"])
    system, done = trained_steer(folder / f"steer_{rank}")
    save_file({name: each.detach().clone() for name, each in system.trained().items()}, folder / f"steer_{rank}.safetensors")
    write_json(folder / f"steer_{rank}.json", list(done.analyses))


if __name__ == "__main__":
    for word in sys.argv[2:]:
        name, _, stop_at = word.partition(":")
        steer(Path(sys.argv[1])) if name == "steer" else train(Path(sys.argv[1]), name, int(stop_at))
    torch.distributed.destroy_process_group()
