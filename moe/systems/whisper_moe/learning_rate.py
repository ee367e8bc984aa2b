"""The learning rate of adapters, by the base that they stand on where none is given."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from moe.options import Options, option
from moe.systems.whisper.base_source import is_from_scratch

SMALL_RATE, LOADED_RATE = 3e-3, 1e-3  # the first one makes a real Whisper worse than it was, on dev after an epoch


@dataclasses.dataclass(frozen=True)
class AdapterRateOptions(Options):
    """How fast adapters learn."""

    group = "experts"

    expert_learning_rate: float | None = option(
        None, "learning rate of all adapters (none: 3e-3 above a base made from random weights, 1e-3 above any other)", above=0
    )

    def adapter_rate(self, base: Mapping[str, Any]) -> float:
        """The learning rate in use.

        Args:
            base: how the base model was made (`read_training_record`).
        """
        return self.expert_learning_rate or (SMALL_RATE if is_from_scratch(base) else LOADED_RATE)
