"""What may be asked of SteerMoE, and the other ways in which its weights may be decoded."""

import dataclasses

from moe.options import Options
from moe.systems.steer_moe.steering import OFF, ROUTER, SHUFFLED, UNIFORM


@dataclasses.dataclass(frozen=True)
class SteerAsk(Options):
    """What a request may ask of SteerMoE: nothing."""


@dataclasses.dataclass(frozen=True)
class OtherWay(SteerAsk):
    """An ablation: another routing than the router's, or the audio of another utterance of the batch."""

    routing: str = ROUTER
    other_audio: bool = False


OTHER_WAYS = {
    UNIFORM: OtherWay(routing=UNIFORM),
    SHUFFLED: OtherWay(routing=SHUFFLED),
    OFF: OtherWay(routing=OFF),
    "other_audio": OtherWay(other_audio=True),
}
