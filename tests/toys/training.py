"""What tests that train need beside `toy_models`: a Whisper of a few thousand parameters, plans, and stages that write down."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import tests.toys.models as toy_models
from moe.experts.routed_lora import AdapterOptions, routed_layers
from moe.routing.gate import Gate, GateConfig
from moe.routing.losses import BalanceOptions
from moe.routing.options import RoutingOptions
from moe.systems.whisper.base_model import BaseModel, new_base
from moe.systems.whisper.base_source import SmallShape
from moe.systems.whisper_moe.model import WhisperMoE
from moe.training.checkpoints import Checkpoints
from moe.training.hooks import TrainingHooks
from moe.training.loop import Training, seed_everything
from moe.training.plan import TrainingPlan
from tests.toys.models import CONTEXT, dataset, tokenizer

__all__ = ["CONTEXT", "dataset", "tokenizer"]

SHAPE = SmallShape(
    d_model=16, encoder_layers=2, decoder_layers=1, heads=2, dropout=0.0, window_s=2, n_mels=16, max_target_positions=24
)
N_EXPERTS = 3


def write_corpus(root: Path, n: int = 8) -> pd.DataFrame:
    """`n` short chords of nearly one length, so that batches are mixed and little is padded."""
    return toy_models.write_corpus(root, tuple(0.4 + 0.02 * (number * 7 % 5) for number in range(n)))


def toy_base(seed: int = 0, **shape) -> BaseModel:
    """An untrained base model without dropout, on the same features and tokens as `toy_models`' own."""
    processor = toy_models.shared_base().processor  # first, since making it draws
    seed_everything(seed)
    base = new_base(tokenizer(), SmallShape(**{**vars(SHAPE), **shape}), "en")
    return BaseModel(base.model, processor, base.missing)


def toy_mixture(
    base: BaseModel,
    n_experts: int = N_EXPERTS,
    routing: RoutingOptions = RoutingOptions(),
    balance: BalanceOptions = BalanceOptions(),
    adapters: AdapterOptions = AdapterOptions(lora_r=2, shared_r=None, lora_alpha=4.0),
    awake: bool = True,
) -> WhisperMoE:
    """A mixture on a base; `awake` adapters have a B that is not zero, as after expert training."""
    width = base.model.config.d_model * (2 if routing.pooling == "mean_std" else 1)
    gate = Gate(GateConfig(width, n_experts), seed=1) if n_experts else None
    model = WhisperMoE(base.model, n_experts, adapters, routing, gate, balance)
    generator = torch.Generator().manual_seed(2)
    for _, layer in routed_layers(model.base):
        for matrix in (layer.lora_B, layer.shared_B) if awake else ():
            torch.nn.init.normal_(matrix.data, std=0.2, generator=generator)
    return model


def plan(**changes) -> TrainingPlan:
    """Two epochs of four utterances an update."""
    return TrainingPlan(
        **{"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "seed": 3, "warmup_share": 0.0, "decay_share": 0.0} | changes
    )


def training(plan: TrainingPlan, report: Any = None, checkpoints: Checkpoints | None = None, eval_every: int = 1) -> Training:
    """A training that reports to nobody unless told to."""
    return Training(plan, report or Notes(), checkpoints or Checkpoints(), eval_every)


def weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(before: dict[str, Tensor], model: torch.nn.Module) -> set[str]:
    """Names of the parameters that are not what they were."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)}


class Spoilt(torch.nn.Module):
    """A model in which one utterance's loss, or the whole gradient, is not a number."""

    accepts_loss_kwargs = False

    def __init__(self, model: torch.nn.Module, utterance_id: str, where: str) -> None:
        super().__init__()
        self.model, self.utterance_id, self.where = model, utterance_id, where

    def forward(self, utterance_ids, mel, labels, **batch):
        if self.utterance_id in utterance_ids:
            row = utterance_ids.index(self.utterance_id)
            if self.where == "audio":
                mel = mel.index_fill(0, torch.tensor([row]), float("nan"))
            outputs = self.model(utterance_ids=utterance_ids, mel=mel, labels=labels, **batch)
            if self.where == "label":
                outputs["utterance_loss"] = outputs["utterance_loss"].index_fill(0, torch.tensor([row]), float("nan"))
                outputs["loss"] = outputs["loss"] * float("nan")
            if self.where == "gradient":
                outputs["loss"].register_hook(lambda gradient: gradient * float("inf"))
            return outputs
        return self.model(utterance_ids=utterance_ids, mel=mel, labels=labels, **batch)


class Diary(TrainingHooks):
    """Writes down what the loop tells a stage."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.stop_after = stop_after

    def epoch_begins(self, epoch: int) -> None:
        self.begun.append(epoch)

    def epoch_ends(self, epoch: int, is_last: bool) -> bool:
        self.ended.append(epoch)
        return epoch == self.stop_after

    def metrics(self, values: dict[str, float], update: int) -> None:
        self.logged.append((update, values))

    def values(self, name: str) -> list[float]:
        """One metric, in the order it was told."""
        return [values[name] for _, values in self.logged if name in values]


class Notes:
    """A `Report` that keeps what it is told."""

    def __init__(self) -> None:
        self.reported: list[tuple[int, dict[str, float]]] = []

    def __call__(self, number: int, values: dict[str, float]) -> None:
        self.reported.append((number, values))

    def of(self, name: str) -> list[tuple[int, float]]:
        """(update or epoch, value) of one metric."""
        return [(number, values[name]) for number, values in self.reported if name in values]


def one_hot_rows(n: int, n_experts: int = N_EXPERTS) -> np.ndarray:
    """Routing weights (n, E): the experts in turn."""
    return np.eye(n_experts, dtype=np.float32)[np.arange(n) % n_experts]
