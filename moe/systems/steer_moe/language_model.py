"""A causal language model that reads an audio prompt among its tokens: embeddings, losses, generation. Any that transformers loads."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationConfig, PreTrainedModel

from moe.system import IGNORED
from moe.systems.steer_moe.sequence import AUDIO, PADDING, padded, training_rows


def embed(model: PreTrainedModel, codes: Tensor, prompts: Tensor) -> Tensor:
    """Embeddings of sequences, (B, N, D); padding gets that of the id 0, which nothing attends to.

    Args:
        codes: (B, N). prompts: vectors of all audio prompts, those of the first utterance first, (n, D).

    Raises:
        ValueError: more or fewer places than vectors.
    """
    audio = codes == AUDIO  # (B, N)
    if int(audio.sum()) != len(prompts):
        raise ValueError(f"{int(audio.sum())} places for {len(prompts)} vectors of audio prompts")
    embeddings: Tensor = model.get_input_embeddings()(codes.clamp_min(0)).float()  # (B, N, D)
    return embeddings.index_put(torch.where(audio), prompts.float())


def token_losses(model: PreTrainedModel, codes: Tensor, labels: Tensor, prompts: Tensor) -> Tensor:
    """Cross-entropy of every label, 0 where there is none: (B, N) each → (B, N).

    Args:
        codes: padded on the right, (B, N); labels: (B, N). prompts: (n, D).

    Raises:
        ValueError: a label that is not the code at its place.
    """
    scored = labels != IGNORED
    if labels.shape != codes.shape or bool((labels != codes)[scored].any()):
        raise ValueError("labels must be the codes that they score: they are of another length or another text")
    n_opening = int(scored.int().argmax(1).min())  # what no label is in is read, and no logits are made of it
    kept = {"logits_to_keep": codes.shape[1] - n_opening + 1} if "logits_to_keep" in _takes(model) else {}
    logits = model(
        inputs_embeds=embed(model, codes, prompts), attention_mask=(codes != PADDING).long(), use_cache=False, **kept
    ).logits  # (B, n, V)
    wanted = labels[:, 1:][:, -(logits.shape[1] - 1) :]  # (B, n − 1)
    losses = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none")
    return F.pad(losses.view_as(wanted), (codes.shape[1] - wanted.shape[1], 0))


def utterance_losses(model: PreTrainedModel, codes: Tensor, labels: Tensor, prompts: Tensor) -> Tensor:
    """Mean of the losses of each utterance's labels, (B,); arguments as of `token_losses`, (B, N)."""
    return token_losses(model, codes, labels, prompts).sum(1) / (labels != IGNORED).sum(1).clamp_min(1)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    openings: Sequence[Sequence[int]],
    prompts: Tensor,
    n_text: int,
    end: int,
    max_new_tokens: int,
    num_beams: int = 1,
) -> list[list[int]]:
    """Token ids that follow each opening, without their end. Keys and values are cached: transformers always does so with embeddings.

    Args:
        openings: codes of each utterance. prompts: (n, D).
        n_text: ids from here on are no text, and are never written.
        end: id of the end of text.
    """
    codes = padded(openings, left=True).to(prompts.device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
        eos_token_id=end,
        pad_token_id=end,
        suppress_tokens=list(range(n_text, vocabulary_size(model))) or None,
    )
    search: Any = model
    tokens = search.generate(
        inputs_embeds=embed(model, codes, prompts), attention_mask=(codes != PADDING).long(), generation_config=config
    )
    return [row[: row.index(end)] if end in row else row for row in tokens.tolist()]


@torch.no_grad()
def written_scores(
    model: PreTrainedModel, openings: Sequence[Sequence[int]], texts: Sequence[Sequence[int]], prompts: Tensor
) -> tuple[list[float], list[int]]:
    """Mean natural log-probability of the tokens (ends among them) that follow each opening, and their number; prompts (n, D)."""
    codes, labels = (each.to(prompts.device) for each in training_rows(openings, texts))
    counts = (labels != IGNORED).sum(1)
    means = -token_losses(model, codes, labels, prompts).double().sum(1) / counts
    return means.tolist(), counts.tolist()


def vocabulary_size(model: PreTrainedModel) -> int:
    """Rows of the token table."""
    return int(token_table(model).shape[0])


def token_table(model: PreTrainedModel) -> Tensor:
    """The embeddings of all ids, (V, D)."""
    table: Any = model.get_input_embeddings()
    weight: Tensor = table.weight
    return weight


def _takes(model: PreTrainedModel) -> set[str]:
    return set(inspect.signature(model.forward).parameters)
