"""Backing off to the shared adapter: an utterance that it alone says more surely than the experts do is taken from it.

For people who speak like nobody in training every expert is the wrong one, and the gate does not know it. Decoded both ways, the
hypothesis of the larger mean log-probability counts.
"""

import dataclasses

from moe.system import Hypothesis

BACKED_OFF = "backed_off"  # among a hypothesis's details: 1 where the shared adapter alone said it; the share of its chunks


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
