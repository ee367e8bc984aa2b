"""A batch and the domains that it is given → hypotheses: search, texts, and how sure the model was of its tokens."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moe.system import Batch, DecodingOptions, Hypothesis
from moe.systems.domain_whisper.asks import NONE
from moe.systems.domain_whisper.domains import NO_DOMAIN
from moe.systems.domain_whisper.inputs import DOMAIN, DomainInputs
from moe.systems.domain_whisper.model import DomainWhisper
from moe.systems.whisper.next_token import is_plain
from moe.systems.whisper.said import Said
from moe.systems.whisper.search import clean_texts, most_new_tokens


def hypotheses_of(
    model: DomainWhisper,
    inputs: DomainInputs,
    batch: Batch,
    chosen: tuple[Tensor, Tensor],
    options: DecodingOptions,
    language: str | None,
    with_loss: bool,
) -> list[Hypothesis]:
    """Hypotheses of a batch, in its order; see `moe.system.System.decode`.

    Args:
        chosen: number of the domain whose token each utterance gets, and how sure that is, (B,) both.
    """
    domain, sure = chosen
    states, ids = model.encode(batch["mel"]), batch["utterance_ids"]
    n_new, prompts = most_new_tokens(inputs, int(batch["n_frames"].max()), options), _prompts(model, domain, language)
    found: list[tuple[str, float, int]] = [("", math.nan, 0)] * len(ids)
    for length in sorted({len(prompt) for prompt in prompts}):  # a prompt without token may be shorter
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        part = torch.tensor([prompts[row] for row in rows], device=states.device)  # (b, P)
        for row, each in zip(rows, _searched(model, inputs, states[rows], part, n_new, options.beam_size), strict=True):
            found[row] = each
    losses = model.decoder_loss(states, batch["labels"], domain).tolist() if with_loss else [math.nan] * len(ids)
    own = batch.get(DOMAIN, torch.full_like(domain, NO_DOMAIN))
    details = [
        {
            "domain": NONE if given < 0 else model.prompts.names[given],
            "domain_probability": None if math.isnan(probability) else round(probability, 4),
            "corpus_domain": None if number < 0 else model.prompts.names[number],
        }
        for given, probability, number in zip(domain.tolist(), sure.tolist(), own.tolist(), strict=True)
    ]
    return [
        Hypothesis(name, text, utterance_loss=loss, mean_logprob=mean, n_tokens=n_tokens, details=detail)
        for name, (text, mean, n_tokens), loss, detail in zip(ids, found, losses, details, strict=True)
    ]


def _prompts(model: DomainWhisper, domain: Tensor, language: str | None) -> list[list[int]]:
    return [model.prompts.of(number, language) for number in domain.tolist()]


def _searched(
    model: DomainWhisper, inputs: DomainInputs, states: Tensor, prompts: Tensor, n_new: int, n_beams: int
) -> list[tuple[str, float, int]]:
    """Text, mean log-probability and number of tokens of each row."""
    most: int = model.base.config.max_target_positions
    limit = min(most, prompts.shape[1] + n_new)
    n_most = limit - prompts.shape[1]
    if is_plain(model.base.generation_config):
        said = model.say(states, prompts, n_most, n_beams)
    else:
        said = _scored(model, states, prompts, model.search(states, prompts, limit, n_beams), n_most)
    end: Any = model.base.config.eos_token_id
    return list(zip(clean_texts(inputs.processor.tokenizer, said.tokens), *said.means(end), strict=True))


def _scored(model: DomainWhisper, states: Tensor, prompts: Tensor, tokens: Tensor, n_most: int) -> Said:
    """Tokens (b, n), with end of text after them unless the bound cut it off, and their log-probabilities by a second pass."""
    end: Any = model.base.config.eos_token_id
    ended = F.pad(tokens, (0, 1), value=end)[:, :n_most]
    return Said(ended, model.token_logprobs(states, prompts, ended))
