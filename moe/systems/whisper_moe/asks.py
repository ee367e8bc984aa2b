"""What may be asked of a Whisper recogniser."""

import dataclasses

from moe.options import Options, option


@dataclasses.dataclass(frozen=True)
class WhisperAsk(Options):
    """What a request may ask of a Whisper."""

    language: str | None = option(None, "language code (none: the one the model was trained for)")


@dataclasses.dataclass(frozen=True)
class MixtureAsk(WhisperAsk):
    """What a request may ask of a mixture."""

    top_k: int | None = option(None, "experts mixed in decoding (none: as in training)", low=1)
    backoff: float = option(
        0.0,
        "an utterance whose tokens have a mean probability below this is decoded with the shared adapter alone too, and the likelier "
        "hypothesis counts: 0 none, 1 every utterance at twice the decoding; 0.95 made as few errors as 1 (docs/results.md)",
        low=0,
        high=1,
    )


@dataclasses.dataclass(frozen=True)
class FixedRouting(MixtureAsk):
    """An ablation: the same weights (E,) of the experts for every utterance."""

    weights: tuple[float, ...] = ()  # (E,)
