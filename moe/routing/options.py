"""What clusters and gate read of an utterance, and how the gate's answer is used."""

import dataclasses

from moe.options import Options, option
from moe.routing.pooling import POOLINGS, UNPOOLED
from moe.routing.weights import CERTAINTY, PROBABILITY, RENORMALISED

LAST = "last"


@dataclasses.dataclass(frozen=True)
class TopKOptions(Options):
    """How many experts an utterance gets."""

    group = "routing"

    top_k: int = option(2, "experts mixed per utterance; the gate's top-k accuracy counts as many", low=1, common=True)


@dataclasses.dataclass(frozen=True)
class ViewOptions(Options):
    """What clusters and gate read of an utterance.

    Layer 0 leaves every encoder layer to the experts: on the demo, layers 1 to 3 cost 3 to 6 points of WER, and the middle one saves
    0.3 of a training step; the last one has experts in every layer too, takes a second pass and wins nothing (benchmarks/MEASURED.md).
    """

    group = "routing"

    gate_layer: str = option("0", "encoder layer the gate reads: 0 (conv stem), 1, 2 … or last; experts sit above it")
    pooling: str = option("mean_std", "what clusters and gate read of the valid frames", choices=POOLINGS)

    def faults(self) -> list[str]:
        """What is no layer, or no vector."""
        found = [UNPOOLED] if self.pooling == "none" else []
        if self.gate_layer != LAST and not self.gate_layer.isdigit():
            found.append(f"gate_layer={self.gate_layer!r}: must be a layer number or {LAST}")
        return found

    @property
    def layer(self) -> int | None:
        """The layer as a number; None is the last one, after its layer norm."""
        return None if self.gate_layer == LAST else int(self.gate_layer)


@dataclasses.dataclass(frozen=True)
class RoutingOptions(TopKOptions, ViewOptions):
    """What the gate reads and how its answer is used.

    On the demo a second expert wins 0.4 points over one and further ones nothing; `mixing=loss` wins nothing at twice the price
    (benchmarks/MEASURED.md).
    """

    mixing: str = option(
        "delta", "mix the experts' weights (delta) or their losses and token probabilities (loss)", choices=("delta", "loss")
    )
    gate_unit: str = option(
        "utterance",
        "what the gate reads: the utterance's own embedding, or its speaker's profile: the mean over all the speaker's utterances at hand",
        choices=("utterance", "speaker"),
    )
    gate_scaling: str = option(
        RENORMALISED,
        "weight of a chosen expert: its probability over that of all chosen; the same times the gate's certainty, so that an undecided "
        "gate leaves more to the shared adapter; or (Switch) the probability itself. The last two teach the gate at top_k=1 too",
        choices=(RENORMALISED, CERTAINTY, PROBABILITY),
    )
    expert_dropout: float = option(
        0.0,
        "share of the utterances that train the shared adapter alone, drawn anew in every epoch, so that decoding can back off to it",
        low=0,
        high=0.9,
    )

    def faults(self) -> list[str]:
        """What would teach the gate the wrong thing."""
        found = []
        if self.gate_scaling != RENORMALISED and self.mixing == "loss":
            found.append(
                f"gate_scaling={self.gate_scaling} with mixing=loss: the gate would lower the loss by choosing improbable experts"
            )
        if self.expert_dropout and self.mixing == "loss":
            found.append(
                f"expert_dropout={self.expert_dropout:g} with mixing=loss: losses are mixed only where there are experts"
            )
        return found
