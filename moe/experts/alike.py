"""Experts that do not differ become one: pairs are tested on dev, and the most alike are merged first, until all that are left differ.

An expert that is merged is the mean of what its parts add, by the utterances that each was trained on, at the rank of one
(moe/experts/low_rank.py). It is tested anew against the others. A pair with too few dev speakers to tell is left as it is.
"""

import dataclasses
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import nn

from moe.experts.low_rank import low_rank_sum
from moe.experts.mixture import MixtureSystem
from moe.experts.pair_tests import Group, PairTest, pair_test
from moe.experts.reference_losses import reference_losses
from moe.experts.routed_lora import routed_layers
from moe.experts.stacking import adapter_tensors
from moe.options import NONE, Options, option
from moe.system import DecodingOptions
from moe.training.dataset import SpeechDataset

PERMUTATION = "permutation"


@dataclasses.dataclass(frozen=True)
class MergingOptions(Options):
    """Which experts become one after their training."""

    group = "experts"

    merge_experts: str = option(
        NONE,
        "merge experts that a permutation test over dev speakers finds no difference between; undone where dev WER gets worse",
        choices=(NONE, PERMUTATION),
    )
    merge_alpha: float = option(0.05, "two experts differ where the p value of that test is at most this", above=0, high=0.5)

    def idle(self) -> dict[str, str]:
        """A level of no test."""
        return {"merge_alpha": "needs merge_experts=permutation"} if self.merge_experts == NONE else {}


@dataclasses.dataclass(frozen=True)
class Merging:
    """What became of the experts.

    Attributes:
        groups: for each expert that is left those that it was made from, by their numbers in training.
        tests: of every pair that there was at some time, in the order in which they were tested.
    """

    groups: tuple[Group, ...]
    tests: tuple[PairTest, ...]

    @property
    def expert_of_cluster(self) -> tuple[int, ...]:
        """The expert that is left for each that was trained, which is its cluster's, (E,)."""
        found = {old: new for new, group in enumerate(self.groups) for old in group}
        return tuple(found[old] for old in range(len(found)))

    @property
    def last_tests(self) -> list[PairTest]:
        """Of the pairs of those that are left."""
        return [test for test in self.tests if test.first in self.groups and test.second in self.groups]

    @property
    def n_that_differ(self) -> int:
        """How many of those that are left differ from every other."""
        same = {group for test in self.last_tests if not test.differs for group in (test.first, test.second)}
        return len(self.groups) - len(same)


class AlikeExperts:
    """Merges the experts of a trained mixture in place: what is merged lies in the slot of the first of its parts.

    Args:
        clusters, speakers: of each dev utterance, (N,).
        sizes: utterances that each expert was trained on, (E,).
    """

    def __init__(
        self, system: MixtureSystem, dev_set: SpeechDataset, clusters: np.ndarray, speakers: np.ndarray, sizes: Sequence[int]
    ) -> None:
        self.system, self.dev_set, self.clusters, self.speakers, self.sizes = system, dev_set, clusters, speakers, sizes
        self.before = adapter_tensors(system.module.base)
        self.losses: dict[Group, np.ndarray] = {}
        self.n_tokens = np.zeros(len(clusters), np.int64)

    def merge(self, alpha: float, seed: int) -> Merging:
        """Merge until every pair differs, or cannot be told, or one expert is left."""
        groups: list[Group] = [(expert,) for expert in range(self.system.module.n_experts)]
        tests: dict[tuple[Group, Group], PairTest] = {}
        self._score(groups)
        while True:
            for pair in combinations(groups, 2):
                tests[pair] = tests.get(pair) or self._test(pair, alpha, seed)
            alike = [tests[pair] for pair in combinations(groups, 2) if tests[pair].is_alike]
            if not alike:
                return Merging(tuple(groups), tuple(tests.values()))
            most = min(alike, key=lambda test: (-test.p_value, test.difference, test.first, test.second))
            merged = tuple(sorted(most.first + most.second))
            groups = sorted([*(group for group in groups if group not in (most.first, most.second)), merged])
            self._join(merged)
            self._score([merged])

    @torch.no_grad()
    def restore(self) -> None:
        """Put every expert back as it was trained."""
        for name, layer in routed_layers(self.system.module.base):
            for matrix in ("lora_A", "lora_B"):
                getattr(layer, matrix).copy_(self.before[f"{name}.{matrix}"])

    @torch.no_grad()
    def _join(self, group: Group) -> None:
        shares = [self.sizes[expert] / sum(self.sizes[each] for each in group) for expert in group]
        for name, layer in routed_layers(self.system.module.base):
            a, b = ([self.before[f"{name}.lora_{kind}"][expert] for expert in group] for kind in "AB")
            layer.lora_A[group[0]], layer.lora_B[group[0]] = low_rank_sum(a, b, shares, layer.r)

    def _score(self, groups: Sequence[Group]) -> None:
        found = reference_losses(self.system, self.dev_set, [group[0] for group in groups], DecodingOptions().decoding_batch_size)
        self.losses |= dict(zip(groups, found.sums.T, strict=True))
        self.n_tokens = found.n_tokens

    def _test(self, pair: tuple[Group, Group], alpha: float, seed: int) -> PairTest:
        losses = self.losses[pair[0]], self.losses[pair[1]]
        return pair_test(pair, losses, self.n_tokens, self.clusters, self.speakers, alpha, seed)


@torch.no_grad()
def copy_adapters(base: nn.Module, reduced: nn.Module, groups: Sequence[Group]) -> None:
    """Fill a model of fewer experts, on the same layers and of the same ranks, with the merged ones of `base` and its shared adapter."""
    slots = [group[0] for group in groups]
    for (_, layer), (_, smaller) in zip(routed_layers(base), routed_layers(reduced), strict=True):
        smaller.lora_A.copy_(layer.lora_A[slots])
        smaller.lora_B.copy_(layer.lora_B[slots])
        smaller.shared_A.copy_(layer.shared_A)
        smaller.shared_B.copy_(layer.shared_B)
