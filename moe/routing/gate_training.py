"""Trains the gate on embeddings in memory: KL to the soft labels of the clusters, best epoch restored, temperature fitted on dev.

The loop is that of all trainings; the module under it says what the loss is, and dev is judged in one pass over its matrix.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch import Tensor, nn
from transformers import TrainingArguments

from moe.options import option
from moe.routing.gate import Gate, GateConfig
from moe.routing.gate_metrics import calibration_error, cross_calibrated, fitted_temperature, gate_metrics, kl_divergence
from moe.routing.options import TopKOptions
from moe.training.best_epoch import BestEpoch
from moe.training.checkpoints import Checkpoints
from moe.training.dropout import without_dropout
from moe.training.hooks import Report
from moe.training.loop import Training
from moe.training.plan import TrainingPlan
from moe.training.processes import mean_of_batch
from moe.training.trainer import ResumableTrainer

SELECTION_METRIC = "dev/kl"
MIN_UPDATES = 16  # in an epoch: a small corpus in one large batch would leave the gate untrained


@dataclasses.dataclass(frozen=True)
class GateOptions(TopKOptions):
    """How the gate is trained."""

    gating_batch_size: int = option(512, "embeddings in a batch, a sixteenth of all of them at most", low=1)
    gating_epochs: int = option(60, "passes over the training embeddings at most", low=1)
    gating_learning_rate: float = option(3e-3, "learning rate of AdamW at the start; falls linearly", above=0)
    gating_hidden: int = option(0, "units of the gate's hidden layer; 0: softmax regression", low=0)
    gating_dropout: float = option(0.0, "dropout before the last layer", low=0, high=0.9)
    gating_weight_decay: float = option(1.0, "weight decay of AdamW; strong, because embeddings outnumber speakers", low=0)
    gating_patience: int = option(8, "epochs without a better dev KL before training stops", low=1)
    gating_label_smoothing: float = option(0.0, "share of each soft label that is spread over all experts", low=0, high=0.9)
    gate_calibration: bool = option(True, "fit a temperature on dev after training")
    seed: int = option(42, "seed of everything drawn", low=0, common=True)


@dataclasses.dataclass(frozen=True)
class GateResult:
    """A trained gate and how it came about; metrics are named `split/name`."""

    gate: Gate
    history: list[dict[str, float]]  # one for each epoch, with `epoch`
    best_epoch: int
    metrics: dict[str, float]  # of the gate as returned, restored and calibrated
    selection_metric: str = SELECTION_METRIC
    held_out: np.ndarray | None = (
        None  # (n_dev, n_experts) probabilities, each half of dev calibrated on the other; None: not tried
    )

    @property
    def is_calibrated(self) -> bool:
        """Whether the gate is kept with its temperature."""
        return self.gate.gate_config.temperature != 1


def train_gate(
    train_embeddings: np.ndarray,
    train_soft: np.ndarray,
    dev_embeddings: np.ndarray,
    dev_soft: np.ndarray,
    options: GateOptions,
    report: Report | None = None,
    checkpoints: Checkpoints | None = None,
    dev_speakers: Sequence[str] | None = None,
) -> GateResult:
    """Train a gate on embeddings (n, n_dims) and soft labels (n, n_experts).

    It is calibrated where that betters the calibration error of dev utterances that the temperature was not fitted on.

    Args:
        dev_speakers: of the dev rows, so that no speaker is in both halves of that trial; None halves the rows.
        report: called after each epoch with its number, from 1, and its metrics.

    Raises:
        ValueError: empty or ill-shaped input, soft labels that do not sum to 1, top_k above the number of experts.
    """
    train = _checked_rows("train", train_embeddings, train_soft)
    dev = _checked_rows("dev", dev_embeddings, dev_soft)
    faults = _faults(train, dev, options)
    if faults:
        raise ValueError("; ".join(faults))
    gate = Gate(_config(train, options), options.seed)
    gate.set_statistics(train.embeddings)
    training = Training(_plan(options, len(train)), report or (lambda epoch, metrics: None), checkpoints or Checkpoints())
    best = GateHooks(gate, train, dev, options, training)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
        arguments = training_arguments(training.plan, folder)
        with arguments.main_process_first(local=False):
            start = training.checkpoints.newest()
        loss = GateLoss(gate, options.gating_label_smoothing)
        given: dict[str, Any] = {"model": loss, "args": arguments, "train_dataset": train, "data_collator": dict}
        GateTrainer(best, training.checkpoints, start, **given).run()
    return _finished(best, train, dev, options, _half_of(dev_speakers or [str(row) for row in range(len(dev))]))


class EmbeddingRows(torch.utils.data.Dataset):
    """Embeddings (N, D) and their soft labels (N, E); a batch is cut from the matrices at once."""

    def __init__(self, embeddings: Tensor, soft: Tensor) -> None:
        self.embeddings, self.soft = embeddings, soft

    def __len__(self) -> int:
        return len(self.embeddings)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        return {"embeddings": self.embeddings[rows], "soft": self.soft[rows]}


class GateLoss(nn.Module):
    """A gate as the Trainer trains it: the KL divergence from smoothed soft labels to the gate is its loss."""

    accepts_loss_kwargs = False  # else a Trainer takes the loss for a sum over tokens and rescales it

    def __init__(self, gate: Gate, smoothing: float) -> None:
        super().__init__()
        self.gate, self.smoothing = gate, smoothing

    def forward(self, embeddings: Tensor, soft: Tensor) -> dict[str, Tensor]:
        """Mean loss, (), of embeddings (B, D) with soft labels (B, E)."""
        logits = self.gate(embeddings)
        loss = kl_divergence(logits, soft * (1 - self.smoothing) + self.smoothing / logits.shape[1])
        return {"loss": mean_of_batch(loss, len(logits))}


class GateTrainer(ResumableTrainer):
    """The Trainer with shuffled rows, whose order is a function of (seed, epoch)."""

    def sampler_of(self) -> SeedableRandomSampler:
        return SeedableRandomSampler(self.train_dataset, data_seed=self.args.seed)


class GateHooks(BestEpoch):
    """Judges train and dev after each epoch and keeps the weights with the lowest dev KL; epochs count from 1."""

    title = "gate"

    def __init__(self, gate: Gate, train: EmbeddingRows, dev: EmbeddingRows, options: GateOptions, training: Training) -> None:
        super().__init__(gate, training, SELECTION_METRIC, options.gating_patience)
        self.gate, self.train, self.dev, self.options = gate, train, dev, options

    def judge(self, epoch: int) -> dict[str, float]:
        return split_metrics(self.gate, self.train, self.dev, self.options.top_k)

    def row(self, epoch: int) -> dict[str, float]:
        return {"epoch": epoch + 1}

    def report_dev(self, epoch: int, metrics: dict[str, float]) -> None:
        self.training.report(epoch + 1, metrics)


def split_metrics(gate: Gate, train: EmbeddingRows, dev: EmbeddingRows, top_k: int) -> dict[str, float]:
    """Metrics of a gate on both splits, named `split/name`."""
    metrics: dict[str, float] = {}
    for split, rows in (("train", train), ("dev", dev)):
        values = gate_metrics(gate_logits(gate, rows.embeddings), rows.soft, top_k)
        metrics |= {f"{split}/{name}": value for name, value in values.items()}
    return metrics


@torch.no_grad()
def gate_logits(gate: Gate, embeddings: Tensor) -> Tensor:
    """Logits (n, n_experts) with dropout off, on the CPU."""
    with without_dropout(gate):
        return torch.cat([gate(rows.to(gate.mean.device)).cpu() for rows in embeddings.split(65_536)])


def training_arguments(plan: TrainingPlan, folder: str) -> TrainingArguments:
    """Arguments of a run that writes nothing and reports to nobody."""
    return TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=plan.batch_size,
        num_train_epochs=plan.epochs,
        learning_rate=plan.learning_rate,
        weight_decay=plan.weight_decay,
        seed=plan.seed,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )


def _plan(options: GateOptions, n_rows: int) -> TrainingPlan:
    return TrainingPlan(
        epochs=options.gating_epochs,
        batch_size=min(options.gating_batch_size, max(1, n_rows // MIN_UPDATES)),
        learning_rate=options.gating_learning_rate,
        seed=options.seed,
        weight_decay=options.gating_weight_decay,
    )


def _checked_rows(split: str, embeddings: np.ndarray, soft: np.ndarray) -> EmbeddingRows:
    embeddings, soft = np.asarray(embeddings, dtype=np.float32), np.asarray(soft, dtype=np.float32)
    if embeddings.ndim != 2 or soft.ndim != 2 or len(embeddings) != len(soft) or len(soft) == 0:
        shapes = f"{embeddings.shape} and soft labels of shape {soft.shape}"
        raise ValueError(f"{split} embeddings of shape {shapes}: must be (n, n_dims) and (n, n_experts), n at least 1")
    if not np.isfinite(embeddings).all():
        raise ValueError(f"{split} embeddings hold values that are not finite")
    if not np.allclose(soft.sum(axis=1), 1.0, atol=1e-4) or soft.min() < 0:
        raise ValueError(f"{split} soft labels: each row must be at least 0 and sum to 1")
    return EmbeddingRows(torch.tensor(embeddings), torch.tensor(soft))


def _faults(train: EmbeddingRows, dev: EmbeddingRows, options: GateOptions) -> list[str]:
    faults, n_experts = [], train.soft.shape[1]
    if train.embeddings.shape[1] != dev.embeddings.shape[1] or n_experts != dev.soft.shape[1]:
        faults.append("train and dev differ in dimensions or in number of experts")
    if options.top_k > n_experts:
        faults.append(f"top_k={options.top_k}: must be at most the {n_experts} experts")
    return faults


def _config(train: EmbeddingRows, options: GateOptions) -> GateConfig:
    return GateConfig(train.embeddings.shape[1], train.soft.shape[1], options.gating_hidden, options.gating_dropout)


def _half_of(speakers: Sequence[str]) -> Tensor:
    """Every other speaker, in the order of their names, as bool (n,)."""
    chosen = set(sorted(set(speakers))[::2])
    return torch.tensor([speaker in chosen for speaker in speakers])


def _finished(best: GateHooks, train: EmbeddingRows, dev: EmbeddingRows, options: GateOptions, half: Tensor) -> GateResult:
    best.restore_best()
    gate = best.gate.cpu().eval()
    metrics, held_out = dict[str, float](), None
    if options.gate_calibration:
        logits = gate_logits(gate, dev.embeddings)
        labels = dev.soft.argmax(dim=-1)
        crossed = cross_calibrated(logits, labels, half)
        metrics["dev/ece_uncalibrated"], metrics["dev/ece_held_out"] = (
            calibration_error(each, labels) for each in (logits, crossed)
        )
        held_out = torch.softmax(crossed, dim=-1).numpy()
        if metrics["dev/ece_held_out"] < metrics["dev/ece_uncalibrated"]:
            gate.set_temperature(fitted_temperature(logits, labels))
    metrics |= split_metrics(gate, train, dev, options.top_k) | {"temperature": gate.gate_config.temperature}
    return GateResult(gate, best.history, best.best_epoch + 1, metrics, held_out=held_out)
