"""Utterances → hypotheses: batched by length, cached, with the routing a policy asks for."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jiwer
import numpy as np
import torch
from tqdm import tqdm
from transformers import WhisperTokenizer

from moe.batches import SpeechDataset, collator, length_batches, to_device
from moe.features import AudioContext
from moe.options import Options, option
from moe.tokens import prompt_ids
from moe.whisper_moe import WhisperMoE

MIN_NEW_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class DecodingOptions(Options):
    """How hypotheses are searched."""

    beam_size: int = option(1, "beams; 1 is greedy", low=1, high=32)
    decoding_batch_size: int = option(32, "utterances decoded together", low=1)
    max_tokens_per_s: float = option(30.0, "bound on the hypothesis: tokens per second of audio", above=0)


@dataclasses.dataclass(frozen=True)
class Hypothesis:
    """What was recognised in one utterance; `routing_weights` is (E,) or None without experts."""

    utterance_id: str
    text: str
    routing_weights: np.ndarray | None = None
    utterance_loss: float = math.nan


RoutingPolicy = Callable[[Sequence[str]], torch.Tensor]  # utterance ids → routing weights (B, E)


@torch.inference_mode()
def decode(
    model: WhisperMoE,
    dataset: SpeechDataset,
    context: AudioContext,
    options: DecodingOptions,
    policy: RoutingPolicy | None = None,
    with_loss: bool = False,
    title: str | None = None,
) -> list[Hypothesis]:
    """Hypotheses of a whole dataset, in its order.

    Args:
        policy: routing by utterance id; None lets the gate decide.
        with_loss: also the reference's cross-entropy (one more decoder pass).
        title: shows a progress bar of that name.
    """
    model.eval()
    collate = collator(dataset.processor, context)
    hypotheses: list[Hypothesis | None] = [None] * len(dataset)
    with tqdm(total=len(dataset), desc=title, unit="utterance", disable=title is None) as bar:
        for indices in length_batches(dataset.durations, options.decoding_batch_size):
            batch = to_device(collate([dataset[int(index)] for index in indices]), model.device)
            for index, hypothesis in zip(indices, _decode_batch(model, dataset, batch, options, policy, with_loss), strict=True):
                hypotheses[index] = hypothesis
            bar.update(len(indices))
    return hypotheses


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Errors over reference words, both summed over the utterances; for selecting, not for reporting."""
    scores = jiwer.process_words(list(references), list(hypotheses))
    n_words = scores.hits + scores.substitutions + scores.deletions
    return (scores.substitutions + scores.deletions + scores.insertions) / max(1, n_words)


def _decode_batch(
    model: WhisperMoE,
    dataset: SpeechDataset,
    batch: dict[str, Any],
    options: DecodingOptions,
    policy: RoutingPolicy | None,
    with_loss: bool,
) -> list[Hypothesis]:
    ids = batch["utterance_ids"]
    weights = policy(ids).to(model.device) if policy else None
    routed = model.route(batch["mel"], batch["n_frames"], batch.get("embedding"), weights)
    tokens = model.generate(routed, num_beams=options.beam_size, max_length=_max_length(model, dataset, batch, options))
    texts = clean_texts(dataset.processor.tokenizer, tokens)
    losses = model.transcription_loss(routed, batch["labels"]).tolist() if with_loss else [math.nan] * len(ids)
    rows = [None] * len(ids) if routed.weights is None else routed.weights.weights.float().cpu().numpy()
    return [Hypothesis(*values) for values in zip(ids, texts, rows, losses, strict=True)]


def clean_texts(tokenizer: WhisperTokenizer, tokens: torch.Tensor) -> list[str]:
    """Token ids → texts without special tokens and outer spaces."""
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _max_length(model: WhisperMoE, dataset: SpeechDataset, batch: dict[str, Any], options: DecodingOptions) -> int:
    extractor = dataset.processor.feature_extractor
    seconds = int(batch["n_frames"].max()) * extractor.hop_length / extractor.sampling_rate
    n_new = max(MIN_NEW_TOKENS, math.ceil(options.max_tokens_per_s * seconds))
    return min(model.base.config.max_target_positions, len(prompt_ids(dataset.processor.tokenizer)) + n_new)
