"""Do two experts differ: a permutation test over the dev speakers whose utterances are routed to either of them.

Under the null hypothesis that a speaker's own expert is no better than the other one, the sign of what it gains is a coin's (a sign-flip
test: Good 2005, "Permutation, Parametric and Bootstrap Tests of Hypotheses", section 3.2). Speakers are flipped, not utterances: those of
one speaker are not independent.
"""

import dataclasses
import math

import numpy as np
from scipy import stats

N_RESAMPLES = 9999  # signs drawn; all of them are tried where there are no more, up to 13 speakers
AT_ONCE = 1 << 22  # values that are drawn at a time: 32 MiB

Group = tuple[int, ...]  # the experts that are one by now


@dataclasses.dataclass(frozen=True)
class PairTest:
    """Two experts, each from one or several that were merged, and whether a speaker's own is the better one.

    Attributes:
        n_speakers: dev speakers with utterances that are routed to one of them; `n_tokens` of those utterances.
        difference: loss of a token under the other expert minus that under its own, in nats: above 0 its own is better.
        p_value: one-sided, of such a difference where there is none; NaN where so few speakers cannot reach `alpha`.
    """

    first: Group
    second: Group
    n_speakers: int
    n_tokens: int
    difference: float
    p_value: float
    alpha: float

    @property
    def can_tell(self) -> bool:
        """Whether so many speakers could show a difference at all."""
        return self.n_speakers >= least_speakers(self.alpha)

    @property
    def differs(self) -> bool:
        """Whether a speaker's own expert is significantly better than the other."""
        return self.can_tell and self.p_value <= self.alpha

    @property
    def is_alike(self) -> bool:
        """Whether a difference could have been seen and was not."""
        return self.can_tell and not self.differs


def least_speakers(alpha: float) -> int:
    """Speakers below which no signs are rarer than `alpha`: 2^−n ≤ alpha."""
    return math.ceil(-math.log2(alpha) - 1e-9)


def pair_test(
    pair: tuple[Group, Group],
    losses: tuple[np.ndarray, np.ndarray],
    n_tokens: np.ndarray,
    clusters: np.ndarray,
    speakers: np.ndarray,
    alpha: float,
    seed: int,
) -> PairTest:
    """Test two experts.

    Args:
        losses: summed over the tokens of each utterance, under the first and under the second, (N,) each.
        n_tokens, clusters, speakers: of each utterance, (N,); the cluster is the number of an expert as it was trained.
    """
    of_first, of_second = (np.isin(clusters, group) for group in pair)
    gain = np.where(of_first, losses[1] - losses[0], losses[0] - losses[1])
    rows = of_first | of_second
    names, number = np.unique(speakers[rows], return_inverse=True)
    by_speaker, tokens = np.bincount(number, gain[rows], len(names)), int(n_tokens[rows].sum())
    difference = float(by_speaker.sum() / tokens) if tokens else math.nan
    p_value = _p_value(by_speaker, seed) if len(names) >= least_speakers(alpha) else math.nan
    return PairTest(*pair, len(names), tokens, difference, p_value, alpha)


def _p_value(gains: np.ndarray, seed: int) -> float:
    """Of gains (n_speakers,): how often a sum with signs at random is as large; the division by the tokens changes nothing of that."""
    found = stats.permutation_test(
        (gains,), np.sum, permutation_type="samples", vectorized=True, n_resamples=N_RESAMPLES, alternative="greater",
        batch=max(1, AT_ONCE // len(gains)), rng=np.random.default_rng(seed),
    )  # fmt: skip
    return float(found.pvalue)
