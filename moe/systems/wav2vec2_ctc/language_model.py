"""A character n-gram language model of the train transcripts, which beams ask how usual a text is.

Witten–Bell smoothing (Witten & Bell 1991): after a context that was seen c times with t different successors, a token w has
(count(w) + t · p(w | shorter context)) / (c + t); the shortest context of all has every token alike.
"""

import dataclasses
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from moe.files import read_json, write_json
from moe.systems.wav2vec2_ctc.vocabulary import BLANK

EDGE = BLANK  # stands for the start and the end of a text, which no text holds
Context = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Counts of token ids by context, and how much they weigh beside the network's outputs.

    Attributes:
        n_tokens: of the vocabulary.
        counts: successors of every context of up to `order` − 1 tokens.
        weight: of a log-probability of this model.
        score: added for every token of a text: a language model alone makes texts short.
    """

    order: int
    n_tokens: int
    counts: Mapping[Context, Counter[int]]
    weight: float = 0.5
    score: float = 0.0

    @classmethod
    def of(cls, texts: Iterable[Sequence[int]], order: int, n_tokens: int) -> "LanguageModel":
        """The model of some texts as token ids."""
        counts: dict[Context, Counter[int]] = defaultdict(Counter)
        for text in texts:
            tokens = (EDGE, *text, EDGE)
            for place in range(1, len(tokens)):
                for length in range(order):
                    if length <= place:
                        counts[tokens[place - length : place]][tokens[place]] += 1
        return cls(order, n_tokens, dict(counts))

    def logprob(self, context: Context, token: int) -> float:
        """Natural logarithm of the probability of a token, or of the end (`EDGE`), after a text that starts with `EDGE`."""
        probability = 1 / self.n_tokens
        for length in range(min(self.order - 1, len(context)) + 1):
            followed = self.counts.get(context[len(context) - length :])
            if followed is None:
                break
            n_kinds = len(followed)
            probability = (followed[token] + n_kinds * probability) / (followed.total() + n_kinds)
        return math.log(probability)

    def cost(self, context: Context, token: int) -> float:
        """What a token adds to the score of a text: its weighted log-probability, and `score`."""
        return self.weight * self.logprob(context, token) + self.score

    def end_cost(self, context: Context) -> float:
        """What the end adds."""
        return self.weight * self.logprob(context, EDGE)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        counts = {" ".join(map(str, context)): followed for context, followed in self.counts.items()}
        write_json(path, {**{name: getattr(self, name) for name in ("order", "n_tokens", "weight", "score")}, "counts": counts})

    @classmethod
    def load(cls, path: Path) -> "LanguageModel":
        """Read what `save` wrote."""
        values = read_json(path)
        counts = {
            tuple(map(int, context.split())): Counter({int(token): n for token, n in followed.items()})
            for context, followed in values.pop("counts").items()
        }
        return cls(**values, counts=counts)
