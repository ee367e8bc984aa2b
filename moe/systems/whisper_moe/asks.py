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
    backoff: bool = option(
        False,
        "decode with the shared adapter alone too, and keep the likelier hypothesis by the mean log-probability of its tokens: for speech "
        "that training lacks, at twice the decoding; meant for a mixture trained with expert_dropout",
    )


@dataclasses.dataclass(frozen=True)
class FixedRouting(MixtureAsk):
    """An ablation: the same weights (E,) of the experts for every utterance."""

    weights: tuple[float, ...] = ()  # (E,)
