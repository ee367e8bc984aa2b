"""The processes that share the work of a step: how many there are, which this one is, and what they tell each other.

torchrun starts them, or Ray on the nodes of a cluster. Embedding and decoding deal whole batches out to them (`moe.training.blocks`). In training every process holds the
whole model, or a part of its layers (`moe.training.sharding`), works on its share of each batch, and has the gradient averaged over all. What a loss is a mean over
differs from share to share, so a loss says it: then the average over the processes is the mean over the batch. With one process nothing
here does anything, and where no gradient is asked for no loss is shared.
"""

import contextlib
import dataclasses
import datetime
import os
import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from moe.options import NONE, Options, option

LONGEST_WAIT = datetime.timedelta(days=1)  # the first process may wait for a store; who has died is seen at once
LOCAL, AUTO = "local", "auto"
ADDRESS = re.compile(r"ray://[^/?#@\s]+:\d+")
Value = TypeVar("Value")
_ALONE = ContextVar("alone", default=False)


@dataclasses.dataclass(frozen=True)
class ProcessOptions(Options):
    """How many processes share the work; but for rounding no result depends on it."""

    group = "compute"

    num_processes: int = option(1, "processes that share the work, on GPUs or cores of their own", low=1)
    cluster: str = option(
        NONE,
        "where the processes run: none is this machine, by torchrun; on a Ray cluster, started here (local), found from here (auto) or at an "
        "address (ray://HOST:PORT)",
    )
    gpus_per_process: int = option(0, "GPUs that Ray keeps for each process", low=0, high=1)
    cpus_per_process: int = option(1, "CPUs that Ray keeps for each process, and threads that it computes with", low=1)

    not_in_fingerprint = frozenset({"num_processes", "cluster", "gpus_per_process", "cpus_per_process"})

    @property
    def is_placed(self) -> bool:
        """Whether Ray places the processes."""
        return self.cluster != NONE

    def idle(self) -> dict[str, str]:
        """What only Ray is asked for."""
        return {} if self.is_placed else dict.fromkeys(("gpus_per_process", "cpus_per_process"), "cluster=none does not use it")

    def faults(self) -> list[str]:
        """More of them than the machine can run at once, a cluster that is no name of one, and batches that they cannot share evenly."""
        found = []
        if self.is_placed and self.cluster not in (LOCAL, AUTO) and not ADDRESS.fullmatch(self.cluster):
            found = [f"cluster={self.cluster}: must be {NONE}, {LOCAL}, {AUTO} or ray://HOST:PORT"]
        elif not self.is_placed:
            most, what = places() if self.num_processes > 1 else (1, "")
            found = [f"num_processes={self.num_processes}: this machine has {most} {what}"] if self.num_processes > most else []
        used = set(BATCHES) & set(type(self).__dataclass_fields__) - set(self.all_idle())
        sizes = {name: getattr(self, name) for name in BATCHES if name in used}
        return found + [
            f"{name}={size}: must be a multiple of num_processes={self.num_processes}"
            for name, size in sizes.items()
            if size % self.num_processes
        ]


BATCHES = (
    "pretrain_batch_size", "expert_batch_size", "asr_batch_size", "decoder_batch_size", "steer_batch_size", "ctc_batch_size",
    "domain_batch_size",
)  # fmt: skip


def places() -> tuple[int, str]:
    """How many processes this machine can run side by side, and on what."""
    import joblib  # here: models compute without it

    return (torch.cuda.device_count(), "GPUs") if torch.cuda.is_available() else (joblib.cpu_count(), "cores")


def join() -> None:
    """Meet the other processes, where several have been started; once."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group(timeout=LONGEST_WAIT)  # gloo for what is on the CPU, nccl for what is on a GPU


def leave() -> None:
    """Part from the other processes once all of them are at the end of their work: one that goes earlier breaks what others still receive."""
    if distributed.is_initialized():
        with contextlib.suppress(RuntimeError):  # of those that leave now, one is the first
            total([0.0])
        distributed.destroy_process_group()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process works by itself, as the only one: what it does there is dealt to it, and nobody else shares it."""
    before = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(before)


def n_processes() -> int:
    """How many work together."""
    return distributed.get_world_size() if _is_shared() else 1


def number() -> int:
    """Which of them this is, from 0."""
    return distributed.get_rank() if _is_shared() else 0


def gathered(value: Value) -> list[Value]:
    """What every process gives, in their order."""
    if n_processes() == 1:
        return [value]
    found: list[Any] = [None] * n_processes()
    distributed.all_gather_object(found, value)
    return found


def most(value: int) -> int:
    """The largest value of all processes."""
    return int(_reduced(torch.tensor(value), distributed.ReduceOp.MAX))


def total(values: Sequence[float]) -> list[float]:
    """Each value summed over the processes."""
    return [float(each) for each in _reduced(torch.tensor(values, dtype=torch.float64), distributed.ReduceOp.SUM)]


def mean_of_batch(mean: Tensor, weight: float | Tensor) -> Tensor:
    """A mean over this process's share of a batch, (), scaled so that its average over the processes is the mean over the batch.

    Args:
        weight: of the share: how many utterances, tokens or frames the mean is over.
    """
    if not _learns_together():
        return mean
    return mean * (n_processes() * float(weight) / total([float(weight)])[0])


def sum_of_batch(own: Tensor) -> Tensor:
    """Sums over this process's share, (E,), (L, E) or (), made those over the batch; gradients averaged over the processes are right."""
    if not _learns_together():
        return own
    whole = _reduced(own.detach().clone(), distributed.ReduceOp.SUM)
    return whole + n_processes() * (own - own.detach())


def rows_of_batch(own: Tensor, utterance_ids: Sequence[str]) -> Tensor:
    """Rows of this process's share, (B, …), made those of the batch, (n, …), in its order; gradients as of `sum_of_batch`."""
    if not _learns_together():
        return own
    shares = gathered((list(utterance_ids), own.detach().cpu()))
    if all(names == shares[0][0] for names, _ in shares):
        return own  # too few to be shared: every process has them all
    with_gradient = own.detach() + n_processes() * (own - own.detach())
    return torch.cat([with_gradient if place == number() else rows.to(own.device) for place, (_, rows) in enumerate(shares)])


def _is_shared() -> bool:
    return distributed.is_initialized() and not _ALONE.get()


def _learns_together() -> bool:
    return n_processes() > 1 and torch.is_grad_enabled()


def _reduced(values: Tensor, how: Any) -> Tensor:
    if n_processes() > 1:
        distributed.all_reduce(values, how)
    return values
