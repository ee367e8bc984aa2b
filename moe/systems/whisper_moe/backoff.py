"""Backing off to the shared adapter: an utterance that it alone says more surely than the experts do is taken from it.

For people who speak like nobody in training every expert is the wrong one, and the gate does not know it. What the experts say surely is
kept; the rest is decoded both ways, and the hypothesis of the larger mean log-probability counts.
"""

import dataclasses
import math
from collections.abc import Sequence

from torch import Tensor

from moe.system import Batch, Hypothesis

BACKED_OFF = "backed_off"  # among a hypothesis's details: 1 where the shared adapter alone said it; the share of its chunks


def is_unsure(hypothesis: Hypothesis, threshold: float) -> bool:
    """Whether the (geometric) mean probability of its tokens is below a threshold; not where it has none."""
    return math.exp(hypothesis.mean_logprob) < threshold


def rows_of(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some utterances of a batch, padded as all of them are: tensors (B, …) → (R, …), lists of B → of R."""
    return {
        name: values[list(rows)] if isinstance(values, Tensor) else [values[row] for row in rows]
        for name, values in batch.items()
    }


def likelier(routed: Hypothesis, alone: Hypothesis) -> Hypothesis:
    """The likelier of two hypotheses of an utterance, the routed one where they tie; its routing is the gate's either way."""
    backs_off = alone.mean_logprob > routed.mean_logprob
    chosen = alone if backs_off else routed
    return dataclasses.replace(
        chosen,
        routing_weights=routed.routing_weights,
        gate_probabilities=routed.gate_probabilities,
        details={**chosen.details, BACKED_OFF: float(backs_off)},
    )
