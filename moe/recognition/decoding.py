"""Utterances → hypotheses: batched by context, cached, with the routing a policy asks for, and how sure the model was.

A batch holds utterances that hear the same context, so no hypothesis depends on the batch size or on what stands beside it; batches
are made in one order whatever the order of the utterances. With a folder to keep them in, batches done are not done again.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import WhisperTokenizer

from moe.audio.waveforms import SAMPLE_RATE
from moe.options import Options, option
from moe.recognition.hypothesis_store import BatchStore, Hypothesis
from moe.routing.weights import RoutingWeights
from moe.systems.whisper.features import AudioContextOptions, valid_frames
from moe.systems.whisper.tokens import prompt_ids
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.passes import Encoded, Routed
from moe.systems.whisper_moe.token_scores import token_logprobs
from moe.training.batches import collator, context_batches, to_device
from moe.training.dataset import SpeechDataset

MIN_NEW_TOKENS = 16
GATE = "gate"  # name of the routing where the gate decides


@dataclasses.dataclass(frozen=True)
class DecodingOptions(Options):
    """How hypotheses are searched."""

    beam_size: int = option(1, "beams; 1 is greedy", low=1, high=32)
    decoding_batch_size: int = option(32, "utterances decoded together", low=1)
    max_tokens_per_s: float = option(30.0, "bound on the hypothesis: tokens per second of audio", above=0)


RoutingPolicy = Callable[[Sequence[str]], Tensor]  # utterance ids → routing weights (B, E)


def decode(
    model: WhisperMoE,
    dataset: SpeechDataset,
    context: AudioContextOptions,
    options: DecodingOptions,
    policy: RoutingPolicy | None = None,
    with_loss: bool = False,
    title: str | None = None,
    store: BatchStore | None = None,
) -> list[Hypothesis]:
    """Hypotheses of a whole dataset, in its order, under one routing; see `decode_routings`."""
    return decode_routings(model, dataset, context, options, {GATE: policy}, with_loss, title, store)[GATE]


@torch.inference_mode()
def decode_routings(
    model: WhisperMoE,
    dataset: SpeechDataset,
    context: AudioContextOptions,
    options: DecodingOptions,
    policies: Mapping[str, RoutingPolicy | None],
    with_loss: bool = False,
    title: str | None = None,
    store: BatchStore | None = None,
) -> dict[str, list[Hypothesis]]:
    """Hypotheses of a whole dataset, in its order, under several routings; features and what lies below the experts are made once.

    Args:
        policies: routing by utterance id, by name; None lets the gate decide.
        with_loss: also the reference's cross-entropy (one more pass).
        title: shows a progress bar of that name.
        store: where batches are kept as they are done; those an earlier call left there are taken as they are.
    """
    model.eval()
    store = store or BatchStore(None)
    ids_of = dataset.utterance_ids
    found: dict[str, list[Hypothesis | None]] = {name: [None] * len(dataset) for name in policies}
    search = _Search(model, dataset, context, options, with_loss)
    with tqdm(total=len(dataset), desc=title, unit="utterance", disable=title is None) as bar:
        for number, indices in enumerate(context_batches(dataset, context, options.decoding_batch_size)):
            ids = [ids_of[index] for index in indices]
            parts = store.read(number, ids, list(policies))
            if parts is None:
                started = time.perf_counter()
                parts = search.batch(indices, policies)
                store.write(number, parts, time.perf_counter() - started)
            for name, part in parts.items():
                for index, hypothesis in zip(indices, part, strict=True):
                    found[name][index] = hypothesis
            bar.update(len(indices))
    return found


def confidence(hypotheses: Sequence[Hypothesis]) -> float:
    """Geometric mean of the probabilities of all tokens of these hypotheses; 0 where there are none."""
    n_tokens = sum(hypothesis.n_tokens for hypothesis in hypotheses)
    total = sum(hypothesis.mean_logprob * hypothesis.n_tokens for hypothesis in hypotheses if hypothesis.n_tokens)
    return math.exp(total / n_tokens) if n_tokens else 0.0


def clean_texts(tokenizer: WhisperTokenizer, tokens: Tensor) -> list[str]:
    """Token ids → texts without special tokens and outer spaces."""
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def decoder_prompt(model: WhisperMoE, tokenizer: WhisperTokenizer) -> list[int]:
    """The prompt that decoding starts from: the training's, in the language that is asked of the model now."""
    config = model.base.generation_config
    languages = getattr(config, "lang_to_id", None) or {}
    asked = languages.get(f"<|{getattr(config, 'language', None)}|>")
    return [asked if asked is not None and token in languages.values() else token for token in prompt_ids(tokenizer)]


def _rows(values: Tensor | None, n_rows: int) -> list[np.ndarray] | list[None]:
    return [None] * n_rows if values is None else list(values.float().cpu().numpy())


def _rerouted(routed: Routed, weights: Tensor | None) -> Routed:
    return routed if weights is None else Routed(routed.hidden, RoutingWeights(weights, int((weights > 0).sum(-1).max())))


class _Search:
    """What the batches of one decoding share."""

    def __init__(
        self, model: WhisperMoE, dataset: SpeechDataset, context: AudioContextOptions, options: DecodingOptions, with_loss: bool
    ) -> None:
        self.model, self.dataset, self.options, self.with_loss = model, dataset, options, with_loss
        self.context, self.collate, self.durations = context, collator(dataset.processor, context), dataset.durations

    def batch(self, indices: np.ndarray, policies: Mapping[str, RoutingPolicy | None]) -> dict[str, list[Hypothesis]]:
        """Hypotheses of a batch under each routing."""
        batch = to_device(self.collate([self.dataset[int(index)] for index in indices]), self.model.device)
        given = {name: policy(batch["utterance_ids"]).to(self.model.device) for name, policy in policies.items() if policy}
        weights = None if len(given) < len(policies) else next(iter(given.values()))  # the gate is asked only where it decides
        routed = self.model.route(batch["mel"], batch["n_frames"], batch.get("embedding"), weights)
        limit = self._max_length(self.durations[indices[0]])
        return {name: self._one(batch, _rerouted(routed, given.get(name)), limit) for name in policies}

    def _one(self, batch: dict[str, Any], routed: Routed, limit: int) -> list[Hypothesis]:
        tokenizer, ids = self.dataset.processor.tokenizer, batch["utterance_ids"]
        encoded = self.model.encode(routed)
        tokens = self.model.search(encoded, num_beams=self.options.beam_size, max_length=limit)
        means, counts = self._token_scores(encoded, tokens, limit)
        losses = self.model.decoder_loss(encoded, batch["labels"]).tolist() if self.with_loss else [math.nan] * len(ids)
        rows = _rows(None if routed.weights is None else routed.weights.shares(), len(ids))
        gate = _rows(routed.probabilities, len(ids))
        values = zip(ids, clean_texts(tokenizer, tokens), rows, losses, means, counts, gate, strict=True)
        return [Hypothesis(*each) for each in values]

    def _token_scores(self, encoded: Encoded, tokens: Tensor, limit: int) -> tuple[list[float], list[int]]:
        """Mean log-probability and number of the tokens of each row, its end of text among them unless the bound cut it off."""
        prompt = decoder_prompt(self.model, self.dataset.processor.tokenizer)
        end = self.model.base.config.eos_token_id
        n_most = limit - len(prompt)
        ended = torch.cat([tokens, tokens.new_full((len(tokens), 1), end)], dim=1)[:, :n_most]
        n_tokens = ((ended != end).cumprod(1).sum(1) + 1).clamp(max=ended.shape[1])  # up to the first end of text
        rows = torch.cat([tokens.new_tensor(prompt).expand(len(tokens), -1), ended], dim=1)
        logprobs = token_logprobs(self.model, encoded, rows)[:, len(prompt) - 1 :]  # (B, n)
        said = torch.arange(ended.shape[1], device=tokens.device) < n_tokens[:, None]
        means = (logprobs.double() * said).sum(1) / n_tokens
        return means.tolist(), n_tokens.tolist()

    def _max_length(self, seconds: float) -> int:
        """Bound on prompt and hypothesis, from the length bucket and so the same for every utterance of a batch."""
        extractor = self.dataset.processor.feature_extractor
        n_valid = valid_frames(round(seconds * SAMPLE_RATE), extractor)
        longest_s = self.context.bucket(n_valid, extractor) * extractor.hop_length / extractor.sampling_rate
        n_new = max(MIN_NEW_TOKENS, math.ceil(self.options.max_tokens_per_s * longest_s))
        n_prompt = len(prompt_ids(self.dataset.processor.tokenizer))
        return min(self.model.base.config.max_target_positions, n_prompt + n_new)
