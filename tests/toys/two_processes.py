"""What several processes do together: losses of every system, and trainings that write down their weights.

`python -m tests.toys.two_processes FOLDER N=TASK,TASK… N=TASK…` loads the project once; for each word it forks N processes, which meet as
those of torchrun do. tests/steps/test_processes.py has torchrun itself.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from benchmarks.forked import fork
from moe.corpora.rows import Rows
from moe.experts.expert_training import ExpertOptions, train_experts
from moe.files import write_json
from moe.recognition.decoding import decode
from moe.routing.losses import BalanceOptions
from moe.system import Batch, DecodingOptions
from moe.training import plan as training_plan
from moe.training import processes
from moe.training.averaging import AveragingOptions
from moe.training.batches import Widens, collate
from moe.training.checkpoints import CheckpointOptions, Checkpoints
from moe.training.loop import fit
from moe.training.sharding import DDP
from moe.training.trainer import ResumableTrainer
from tests.toys import models as toy_models
from tests.toys.checkpoints import Recorded
from tests.toys.models import system_of
from tests.toys.steer import trained_steer
from tests.toys.systems import INSTANCES
from tests.toys.training import Diary, dataset, one_hot_rows, plan, toy_base, toy_mixture, training, weights, write_corpus

DROPS = ("dropout", "attention_dropout", "activation_dropout", "layerdrop")


class Stopped(BaseException):
    """As if the process had gone."""


def train(folder: Path, name: str, dropout: float, stop_at: int, strategy: str = DDP) -> None:
    """Train from the newest checkpoint of `name`, to `stop_at` updates or, with 0, to the end; 13 utterances leave the last batch one."""
    rank = int(os.environ.get("RANK", "0"))
    corpus = folder / f"corpus_{rank}"
    corpus.mkdir(exist_ok=True)
    model = toy_mixture(toy_base(dropout=dropout), balance=BalanceOptions(balance_window=6, entropy_coefficient=0.1))
    touched: set[str] = set()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda _, parameter_name=parameter_name: touched.add(parameter_name))
    ends, diary, shares = ResumableTrainer.update_ends, Diary(), dict[str, float]()

    def update_ends(trainer: ResumableTrainer) -> None:
        ends(trainer)
        shares.update(held_of(trainer.model))
        if trainer.state.global_step == stop_at:
            raise Stopped

    ResumableTrainer.update_ends = update_ends
    checkpoints = Checkpoints(folder / f"{name}_checkpoints", CheckpointOptions(save_every_n_updates=2), Recorded())
    try:
        fit(
            model,
            dataset(write_corpus(corpus, 13), corpus),
            training(plan(batch_size=4, strategy=strategy), checkpoints=checkpoints),
            diary,
        )
    except Stopped:
        return
    finally:
        ResumableTrainer.update_ends = ends
    data = dataset(write_corpus(corpus, 13), corpus)
    losses = [
        each.utterance_loss for each in decode(system_of(model), data, DecodingOptions(max_tokens_per_s=3.0), with_loss=True)
    ]
    save_file(weights(model), folder / f"{name}_{rank}.safetensors")
    untouched = sorted(set(model.trainable_parameters()) - touched)
    write_json(
        folder / f"{name}_{rank}.json", {"untouched": untouched, "logged": diary.logged, "losses": losses, "shares": shares}
    )


def held_of(model: nn.Module) -> dict[str, float]:
    """Which share of each parameter this process holds."""
    parameters = {name: each for name, each in model.named_parameters() if each.numel()}
    return {
        name: (each.to_local().numel() if isinstance(each, DTensor) else each.numel()) / each.numel()
        for name, each in parameters.items()
    }


def experts(folder: Path, name: str, strategy: str = DDP) -> None:
    """Train experts with all that judges or changes a model between updates: dev scores, an average, experts copied from the shared adapter."""
    rank = int(os.environ.get("RANK", "0"))
    corpus = folder / f"{name}_corpus_{rank}"
    corpus.mkdir()
    manifest, model = write_corpus(corpus, 12), toy_mixture(toy_base())
    model.gate.requires_grad_(False)  # it is no part of their training
    given = dataset(manifest, corpus, extras={"routing_weights": one_hot_rows(12)})
    asked = plan(
        batch_size=4,
        epochs=4,
        accumulation=2,
        strategy=strategy,
        gradient_checkpointing=True,
        averaging=AveragingOptions(averaging="last"),
    )
    options = ExpertOptions(shared_epochs=2, experts_init="shared", expert_epochs=4)
    clusters = np.arange(12) % model.n_experts
    done = train_experts(system_of(model), given, dataset(manifest, corpus), clusters, options, training(asked))
    plain = {type(each).__name__ for each in model.modules() if type(each).__name__.startswith("FSDP")}
    save_file({key: each.contiguous() for key, each in weights(model).items()}, folder / f"{name}_{rank}.safetensors")
    write_json(folder / f"{name}_{rank}.json", {"history": list(done.history), "kept": done.kept, "plain": not plain})


def without_dropout(module: nn.Module) -> nn.Module:
    """In training mode, but nothing is dropped."""
    for each in module.train().modules():
        for name in DROPS:
            if isinstance(getattr(each, name, None), float):
                setattr(each, name, 0.0)
        if isinstance(each, nn.Dropout):
            each.p = 0.0
    return module


def loss_and_gradient(module: nn.Module, batch: Batch) -> list[Tensor]:
    """The loss, and the gradient of all that trains."""
    loss = module(**batch)["loss"]
    trained = [each for each in module.parameters() if each.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True) if trained else []
    return [loss.detach(), *(each for each in gradients if each is not None)]


def compare_losses(folder: Path, shares: Sequence[np.ndarray]) -> dict[str, float]:
    """The largest difference, by system, between the mean over the processes and one process with the whole batch."""
    rank, found = int(os.environ["RANK"]), {}
    root = folder / f"losses_{rank}"
    root.mkdir()
    data, whole = dataset(toy_models.write_corpus(root), root), {}  # of unlike lengths
    data.rows = Rows(
        pd.DataFrame([row | {"reference": " ".join([row["reference"]] * (1 + place % 3))} for place, row in enumerate(data.rows)])
    )
    for name, make in INSTANCES.items():
        (root / name).mkdir()
        pair = [without_dropout(each.module) for each in (make(root / name), make(root / name))]
        data.inputs = make(root / name).inputs
        data.forget()
        batches = [collate(data, [data[index] for index in part]) for part in (np.concatenate(shares), shares[rank])]
        if isinstance(data.inputs, Widens):
            batches[1] = data.inputs.widened(batches[1], data.inputs.width(batches[0]))
        whole[name] = (loss_and_gradient(pair[0], batches[0]), pair[1], batches[1])
    processes.join()
    for name, (expected, module, batch) in whole.items():
        for wanted, got in zip(expected, loss_and_gradient(module, batch), strict=True):
            distributed.all_reduce(got)
            found[name] = max(
                found.get(name, 0.0), float((got / len(shares) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6))
            )
    return found


def steer(folder: Path) -> None:
    """Train a SteerMoE, and write down what trained and how it was analysed."""
    rank = int(os.environ["RANK"])
    system, done = trained_steer(folder / f"steer_{rank}")
    save_file({name: each.detach().clone() for name, each in system.trained().items()}, folder / f"steer_{rank}.safetensors")
    write_json(folder / f"steer_{rank}.json", list(done.analyses))


def do(rank: int, folder: Path, tasks: str) -> None:
    """Tasks `name:dropout:updates`, or `name:dropout:updates:strategy`, one after the other, as one of the processes; 0 updates are all."""
    for task in tasks.split(","):
        name, dropout, stop_at, *strategy = task.split(":")
        if name == "losses":
            write_json(folder / f"losses_{rank}.json", compare_losses(folder, [np.arange(2), np.arange(2, 6)]))
        elif name.startswith("experts"):
            experts(folder, name, *strategy)
        elif name == "steer":
            steer(folder)
        else:
            train(folder, name, float(dropout), int(stop_at), *strategy)


if __name__ == "__main__":
    training_plan.LOG_EVERY = 1
    for word in sys.argv[2:]:
        n, _, asked = word.partition("=")
        fork(int(n), do, Path(sys.argv[1]), asked)
