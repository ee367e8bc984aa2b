"""The routing curriculum of joint training: first every expert learns from every utterance, then the top k.

Which phase an epoch is in follows from its number alone, so that it is logged, tested, and the same after a restart.
"""

import dataclasses

from moe.options import Options, option


@dataclasses.dataclass(frozen=True)
class Phase:
    """How an epoch routes."""

    top_k: int
    temperature: float = 1.0
    noise: float = 0.0
    name: str = "top_k"
    experts: bool = True  # False: only the shared adapter beneath them speaks and learns
    draws: str = ""  # names what the epoch draws, of `moe.routing.expert_dropout`


@dataclasses.dataclass(frozen=True)
class CurriculumOptions(Options):
    """When and how routing sharpens."""

    soft_epochs: int = option(0, "first epochs of joint training that route to all experts", low=0)
    temperature_start: float = option(
        1.0, "softmax temperature of the gate in the first epoch; falls to 1 over the soft epochs", low=1
    )
    router_noise: float = option(0.0, "standard deviation of noise on the gate logits in training", low=0)

    def faults(self) -> list[str]:
        """What would have no effect."""
        if self.temperature_start > 1 and not self.soft_epochs:
            return [f"temperature_start={self.temperature_start:g} has no effect without soft_epochs, over which it falls to 1"]
        return []


def phase(options: CurriculumOptions, epoch: int, top_k: int, n_experts: int) -> Phase:
    """The phase of an epoch (0-based)."""
    if epoch >= options.soft_epochs:
        return Phase(min(top_k, n_experts), noise=options.router_noise)
    progress = epoch / options.soft_epochs
    temperature = options.temperature_start + (1.0 - options.temperature_start) * progress
    return Phase(n_experts, temperature, options.router_noise, "soft")
