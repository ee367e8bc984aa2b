"""How the learning rate rises and falls in a training; the names of the schedules are transformers'."""

import dataclasses

from moe.options import Options, option

STABLE = "warmup_stable_decay"
SCHEDULES = (STABLE, "cosine", "linear", "constant_with_warmup")
DECAY_SHARE = 0.4  # of the updates, in which the stable schedule falls


@dataclasses.dataclass(frozen=True)
class ScheduleOptions(Options):
    """How the learning rate moves."""

    group = "training"

    lr_scheduler_type: str = option(STABLE, "course of the learning rate after its rise", choices=SCHEDULES)
    warmup_ratio: float = option(0.1, "share of the updates in which the learning rate rises", low=0, high=1)
    warmup_steps: int | None = option(None, "updates in which the learning rate rises (none: warmup_ratio of all)", low=0)

    def faults(self) -> list[str]:
        """A rise that leaves no room for the fall."""
        most = 1 - DECAY_SHARE
        if self.lr_scheduler_type == STABLE and self.warmup_ratio > most:
            return [
                f"warmup_ratio={self.warmup_ratio:g}: at most {most:g} with lr_scheduler_type={STABLE}, which falls in the rest"
            ]
        return []

    def idle(self) -> dict[str, str]:
        """A share beside a number."""
        return {} if self.warmup_steps is None else {"warmup_ratio": f"warmup_steps={self.warmup_steps} says it"}
