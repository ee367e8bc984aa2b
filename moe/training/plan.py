"""The plan of a training: how long, how fast and how much at once; and the arguments of transformers' Trainer that say so."""

import dataclasses

import torch
from transformers import TrainingArguments

from moe.corpora.shard_cache import ShardOrderOptions
from moe.options import option
from moe.training.averaging import AveragingOptions
from moe.training.example_memory import CACHE_GB, GB, ExampleMemory
from moe.training.precision import PrecisionOptions
from moe.training.schedule import DECAY_SHARE, STABLE

LOG_EVERY = 20  # updates between two loss metrics


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How long, how fast and how much at once.

    Attributes:
        warmup_updates: in which the learning rate rises; None: `warmup_share` of all.
        batch_size: utterances of a batch, over all processes; it is served in `n_parts`, for memory.
        log_every: updates between two loss metrics; None: `LOG_EVERY`.
        strategy: what each of several processes holds, as `moe.training.sharding` says.
        shards_together: shards whose utterances are shuffled together; None: all.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int = 0
    accumulation: int = 1
    n_parts: int = 1
    warmup_share: float = 0.1
    warmup_updates: int | None = None
    schedule: str = STABLE
    decay_share: float = DECAY_SHARE
    max_grad_norm: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    num_workers: int = 0
    precision: str = "fp32"
    max_updates: int | None = None
    averaging: AveragingOptions = AveragingOptions()
    log_every: int | None = None
    gradient_checkpointing: bool = False
    persistent_workers: bool = False
    strategy: str = "ddp"
    shards_together: int | None = None


@dataclasses.dataclass(frozen=True)
class ComputeOptions(PrecisionOptions, ShardOrderOptions):
    """How a training step uses the machine; results do not depend on the number of workers."""

    num_workers: int = option(0, "loader processes", low=0)
    persistent_workers: bool = option(False, "keep the loader processes from epoch to epoch")
    gradient_accumulation_steps: int = option(1, "batches per update", low=1)
    gradient_checkpointing: bool = option(False, "compute activations again in the backward pass: less memory, more time")
    eval_every_n_epochs: int = option(1, "epochs between validations", low=1)
    logging_steps: int = option(LOG_EVERY, "updates between two loss metrics", low=1)
    feature_cache_gb: float = option(
        CACHE_GB, "memory for features and recordings kept from epoch to epoch, of all processes of a machine together, GB", low=0
    )

    not_in_fingerprint = frozenset({"feature_cache_gb"})

    @property
    def example_memory(self) -> ExampleMemory:
        """Room for what the data sets of a training keep."""
        return ExampleMemory(self.feature_cache_gb * GB, self.num_workers)

    def idle(self) -> dict[str, str]:
        """Processes to keep where there are none."""
        return {} if self.num_workers else {"persistent_workers": "num_workers=0 has no loader processes"}


def training_arguments(plan: TrainingPlan, n_utterances: int, output_dir: str, n_parts: int = 1) -> TrainingArguments:
    """The Trainer's arguments for a plan; nothing is reported but through the hooks.

    Args:
        n_parts: into which each batch is cut, for memory; the parts are accumulated.

    Raises:
        ValueError: the plan has fewer updates than the learning rate rises in.
    """
    n_updates = plan.max_updates or max(1, plan.epochs * updates_per_epoch(plan, n_utterances))
    n_warmup = int(plan.warmup_share * n_updates) if plan.warmup_updates is None else plan.warmup_updates
    if n_warmup > n_updates:
        raise ValueError(
            f"warmup_steps={n_warmup}: the training has {n_updates} updates; set fewer, or a share with warmup_ratio"
        )
    n_decay = min(int(plan.decay_share * n_updates), n_updates - n_warmup)
    stable = {"num_decay_steps": n_decay, "decay_type": "linear", "min_lr_ratio": 0.01}
    return TrainingArguments(
        output_dir=output_dir,
        num_train_epochs=plan.epochs,
        max_steps=plan.max_updates or -1,
        per_device_train_batch_size=plan.batch_size // n_parts,
        gradient_accumulation_steps=plan.accumulation * n_parts,
        learning_rate=plan.learning_rate,
        lr_scheduler_type=plan.schedule,
        lr_scheduler_kwargs=stable if plan.schedule == STABLE else {},
        warmup_steps=n_warmup,
        max_grad_norm=plan.max_grad_norm,
        bf16=plan.precision == "bf16",
        fp16=plan.precision == "fp16",
        seed=plan.seed,
        data_seed=plan.seed,
        dataloader_num_workers=plan.num_workers,
        dataloader_persistent_workers=plan.persistent_workers,
        accelerator_config={"split_batches": False, "dispatch_batches": False},
        remove_unused_columns=False,
        label_names=["labels"],
        logging_steps=min(plan.log_every or LOG_EVERY, n_updates),  # a short run shows its loss at least once
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,  # `moe.training.update_bar` shows the progress
        ddp_find_unused_parameters=False,
        use_cpu=not torch.cuda.is_available(),
    )


def updates_per_epoch(plan: TrainingPlan, n_utterances: int) -> int:
    """Optimizer updates in one pass over the data."""
    n_batches = -(-n_utterances // plan.batch_size)
    return -(-n_batches // plan.accumulation)
