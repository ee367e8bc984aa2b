"""What is learnt of one person above a finished recogniser: an expert, which is a LoRA of their own, and weights of the routed experts.

An expert is one vector: the matrices A and B of every layer that it changes, one after the other, in the order of its `Layout`. So one
person is one tensor for an optimizer, a norm and a file, and the people of a batch are one stack.
"""

import dataclasses
import hashlib
import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

NAME = re.compile(r"[a-z0-9_-]{1,64}")
AUTO_SPEAKER = "auto"  # no name: whoever the voice is of
SCALE = 2.0  # alpha / r of a person's LoRA, as that of the experts


@dataclasses.dataclass(frozen=True)
class Layer:
    """A linear layer that a person's expert changes: its name in the base model, and its widths."""

    name: str
    n_in: int
    n_out: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the matrices of a person's expert lie in its vector.

    Attributes:
        layers: in order; `r`: the rank in each.
    """

    layers: tuple[Layer, ...]
    r: int

    @property
    def sizes(self) -> list[int]:
        """Numbers of A and of B of every layer, in turn."""
        return [self.r * width for layer in self.layers for width in (layer.n_in, layer.n_out)]

    @property
    def n_numbers(self) -> int:
        """Length of the vector."""
        return sum(self.sizes)

    def matrices(self, vectors: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """A (n, r, in) and B (n, out, r) of every layer, by its name, as views of vectors (n, n_numbers)."""
        parts = vectors.split(self.sizes, dim=1)
        return {
            layer.name: (a.unflatten(1, (self.r, layer.n_in)), b.unflatten(1, (layer.n_out, self.r)))
            for layer, a, b in zip(self.layers, parts[::2], parts[1::2], strict=True)
        }

    def new(self, seed: int, name: str) -> Tensor:
        """The vector of a new expert, (n_numbers,): A as PEFT initialises it, B zero, so that it changes nothing yet.

        Drawn from seed and name alone: who else is there does not matter.
        """
        generator = torch.Generator().manual_seed(number_of(seed, name))
        vector = torch.zeros(self.n_numbers)
        for a, _ in self.matrices(vector[None]).values():
            nn.init.kaiming_uniform_(a[0], a=math.sqrt(5), generator=generator)
        return vector


@dataclasses.dataclass(frozen=True)
class Person:
    """What is learnt of one person; a part that is None is the recogniser's own.

    Attributes:
        expert: (layout.n_numbers,) with its `layout`.
        weights: (E,) of the routed experts in place of the gate's; free numbers, negative ones too.
        profile: (D,) of their voice, where they agreed to one; nothing of the recogniser.
    """

    name: str
    layout: Layout | None = None
    expert: Tensor | None = None
    weights: Tensor | None = None
    profile: Tensor | None = None

    @property
    def n_numbers(self) -> int:
        """How many numbers of the recogniser are the person's own."""
        return sum(part.numel() for part in (self.expert, self.weights) if part is not None)


def number_of(seed: int, *texts: object) -> int:
    """A seed of 63 bits from a seed and texts."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *texts))).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def name_faults(names: Sequence[str]) -> list[str]:
    """Why names cannot be those of people."""
    said = "a name is 1 to 64 of the characters a-z, 0-9, _ and -"
    return [
        f"person={name[:80]!r}: {said}, and not {AUTO_SPEAKER}"
        for name in names
        if not NAME.fullmatch(name) or name == AUTO_SPEAKER
    ]
