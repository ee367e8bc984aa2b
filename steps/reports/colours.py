"""The colour of a system: the same in every picture of it."""

from moe.systems.table import SYSTEMS
from steps.chain.options import BASE, LORA, MIXTURE

FURTHER = [name for name in SYSTEMS if name not in (BASE, LORA, MIXTURE)]  # whose roles give them no colour


def number_of(system: str) -> int:
    """Number of a further system among them, by which `analysis.systems.colour_place` tells them apart."""
    return FURTHER.index(system) if system in FURTHER else len(FURTHER)
