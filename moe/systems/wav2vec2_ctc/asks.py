"""What may be asked of a CTC."""

import dataclasses

from moe.options import Options, option


@dataclasses.dataclass(frozen=True)
class CTCAsk(Options):
    """What a request may ask of a CTC; without experts nothing."""

    top_k: int | None = option(None, "experts mixed in decoding (none: as in training)", low=1)


@dataclasses.dataclass(frozen=True)
class FixedRouting(CTCAsk):
    """An ablation: the same weights (E,) of the experts for every utterance."""

    weights: tuple[float, ...] = ()  # (E,)


def ask_fault(ask: CTCAsk, n_experts: int, title: str) -> str | None:
    """Why so many experts cannot be asked for; None where they can."""
    if ask.top_k is None or ask.top_k <= n_experts:
        return None
    return f"top_k={ask.top_k}: " + (
        f"must be between 1 and {n_experts}, the number of experts" if n_experts else f"{title} has no experts"
    )
