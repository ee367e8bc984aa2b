"""Beam search: what transformers' `generate` says with the same number of beams, with the probabilities of what it says.

A finished hypothesis counts by the mean log-probability of its tokens, its end among them (by its sum over their number to the power of
`length_penalty`). An utterance is done when it has as many finished ones as beams and none that goes on can still come above the last
of them, as far as its score now says; with `early_stopping` as soon as it has so many.
"""

import dataclasses
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig

from moe.systems.whisper.next_token import NextToken
from moe.systems.whisper.said import Said


@dataclasses.dataclass(frozen=True)
class _Hypotheses:
    """Some of each utterance, the best first.

    Attributes:
        tokens, logprobs: (B, n, N), end of text and 0 after what has been said.
        scores: (B, n), −∞ where there is none.
        origins: number of the hypothesis that each continues, (B, n).
    """

    tokens: Tensor
    logprobs: Tensor
    scores: Tensor
    origins: Tensor

    @classmethod
    def empty(cls, n_utterances: int, n_new: int, end: int, score: float, device: torch.device) -> Self:
        """One of each utterance, of which nothing has been said."""
        first = torch.full((n_utterances, 1), score, device=device)
        tokens = torch.full((n_utterances, 1, n_new), end, device=device)
        return cls(tokens, tokens.new_zeros(tokens.shape, dtype=torch.float32), first, tokens.new_zeros(n_utterances, 1))

    def best(self, n: int, scores: Tensor) -> Self:
        """The n best by these scores, (B, n_now)."""
        found, indices = scores.topk(n)  # (B, n)
        tokens, logprobs = (each.take_along_dim(indices[..., None], 1) for each in (self.tokens, self.logprobs))
        return type(self)(tokens, logprobs, found, self.origins.gather(1, indices))

    def beside(self, others: Self) -> Self:
        """These and others."""
        pairs = [(getattr(self, each.name), getattr(others, each.name)) for each in dataclasses.fields(self)]
        return type(self)(*(torch.cat(pair, 1) for pair in pairs))

    def continued(self, logits: Tensor, total: Tensor, n: int, place: int) -> Self:
        """The n best that say one more token at a place; logits (B·n_now, V) and the log of their sum, (B·n_now,)."""
        n_utterances, n_now = self.scores.shape
        n_short = max(0, n - logits.shape[-1])  # where the vocabulary is small
        found, tokens = logits.topk(n - n_short)  # no other can be among the n best
        found, tokens = F.pad(found, (0, n_short), value=-torch.inf), F.pad(tokens, (0, n_short))  # (B·n_now, n)
        logprobs = (found - total[:, None]).view(n_utterances, -1)  # (B, n_now·n)
        scores, indices = (logprobs + self.scores.repeat_interleave(n, 1)).topk(n)  # (B, n)
        origins = indices // n
        said, sure = (each.take_along_dim(origins[..., None], 1) for each in (self.tokens, self.logprobs))
        said[..., place], sure[..., place] = tokens.view(n_utterances, -1).gather(1, indices), logprobs.gather(1, indices)
        return type(self)(said, sure, scores, origins)


@torch.no_grad()
def beams(next_token: NextToken, n_beams: int) -> Said:
    """The best hypothesis of each utterance, n_beams followed at a time."""
    end, prompts, n_new = next_token.end, next_token.prompts, next_token.n_new
    penalty, stopping = _rules(next_token.generation)
    going, finished = (_Hypotheses.empty(len(prompts), n_new, end, score, prompts.device) for score in (0.0, -torch.inf))
    is_open = prompts.new_ones(len(prompts), 1, dtype=torch.bool)  # (B, 1)
    said, origins = None, None
    for place in range(n_new):
        found = going.continued(*next_token(said, origins), 2 * n_beams, place)  # so many that n_beams of them can go on
        said = found.tokens[..., place]
        ends = said == end if place + 1 < n_new else torch.ones_like(said, dtype=torch.bool)
        going = found.best(n_beams, found.scores.masked_fill(ends, -torch.inf))
        counts = ends & is_open & (torch.arange(2 * n_beams, device=said.device) < n_beams)  # the others are there to go on
        both = finished.beside(
            dataclasses.replace(found, scores=(found.scores / (place + 1) ** penalty).where(counts, -torch.inf))
        )
        finished = both.best(n_beams, both.scores)
        last = finished.scores[:, -1:]  # (B, 1), −∞ until as many as beams have ended
        n_hoped = n_new if stopping == "never" and penalty > 0 else place + 1
        is_open &= going.scores[:, :1] / n_hoped**penalty > last
        if stopping is True:
            is_open &= last == -torch.inf
        if not bool(is_open.any()):
            break
        said, origins = going.tokens[..., place], going.origins
    n_said = int((finished.tokens[:, 0] != end).sum(1).max()) + 1
    return Said(finished.tokens[:, 0, :n_said], finished.logprobs[:, 0, :n_said])


def _rules(generation: GenerationConfig) -> tuple[float, bool | str]:
    """Length penalty and early stopping, transformers' where none are said."""
    penalty, stopping = generation.length_penalty, generation.early_stopping
    return 1.0 if penalty is None else float(penalty), False if stopping is None else stopping
