"""Domain tokens, and the one prompt that training, decoding, log-probabilities and serving start from.

The token is a condition of the decoder: it stands in the prompt and is not scored. As a target it would change nothing at decoding.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration, WhisperTokenizer

from moe.systems.whisper.base_model import BaseModel
from moe.systems.whisper.tokens import prompt_ids, token_ids

END, NO_TIMESTAMPS = "end", "no_timestamps"
PLACES = (END, NO_TIMESTAMPS)
STARTS = ("prompt", "words", "mean")
NOISE = 0.01  # of the table's standard deviation: equal rows would have equal gradients at first


def domain_token(name: str) -> str:
    """The token of a domain."""
    return f"<|domain:{name}|>"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Prompts of a tokenizer that has the tokens of these domains.

    Attributes:
        place: of the token: at the prompt's `end`, or in the place of the `no_timestamps` token.
    """

    tokenizer: WhisperTokenizer
    names: tuple[str, ...]
    place: str

    def of(self, domain: int, language: str | None = None) -> list[int]:
        """start, language and task where the base has them, no timestamps, domain; without the last where its number is negative.

        Args:
            language: in place of the tokenizer's own.
        """
        prompt = prompt_ids(self.tokenizer)
        if language is not None and self.tokenizer.language:
            own, asked = token_ids(self.tokenizer, f"<|{self.tokenizer.language}|>", f"<|{language}|>")
            prompt = [asked if token == own else token for token in prompt]
        if domain < 0:
            return prompt
        (token,) = token_ids(self.tokenizer, domain_token(self.names[domain]))
        return [*(prompt if self.place == END else prompt[:-1]), token]

    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return len(self.of(0))


def token_table(model: WhisperForConditionalGeneration) -> nn.Embedding:
    """The embedding of a model's tokens."""
    table: Any = model.get_input_embeddings()
    return cast(nn.Embedding, table)


def token_faults(tokenizer: WhisperTokenizer, names: Sequence[str]) -> list[str]:
    """Tokens that the base has already."""
    known = tokenizer.get_vocab()
    taken = [domain_token(name) for name in names if domain_token(name) in known]
    return (
        [f"domains: the base has the tokens {', '.join(taken)} already; name a base without, or other domains"] if taken else []
    )


def add_tokens(base: BaseModel, names: Sequence[str]) -> int:
    """Give a base a token for each domain, with ids above all that it has, and return the first of them."""
    tokenizer, model = base.processor.tokenizer, base.model
    unnamed = [f"<|unused:{number}|>" for number in range(len(tokenizer), model.config.vocab_size)]  # rows that no token names
    added = [*unnamed, *map(domain_token, names)]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in added], special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return len(tokenizer) - len(names)


@torch.no_grad()
def initial_rows(base: BaseModel, names: Sequence[str], start: str) -> Tensor:
    """Embeddings (n, D) that the tokens of domains begin with; noise is drawn from torch's generator.

    Args:
        start: `prompt` is the row of the prompt's last token, `words` the mean row of the words of its name, `mean` that of all tokens.
    """
    tokenizer, table = base.processor.tokenizer, token_table(base.model).weight
    words = {
        name: tokenizer(" " + name.replace("_", " ").replace("-", " "), add_special_tokens=False).input_ids for name in names
    }
    rows = {
        "prompt": lambda name: table[prompt_ids(tokenizer)[-1]],
        "words": lambda name: table[words[name]].mean(0),
        "mean": lambda name: table[: len(tokenizer)].mean(0),
    }
    made = torch.stack([rows[start](name) for name in names])  # (n, D)
    return made + NOISE * table.std() * torch.randn_like(made)
