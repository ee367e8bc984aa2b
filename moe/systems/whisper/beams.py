"""Beam search of a mixture: what `generate` needs beside the model, and nothing that an utterance's rows share moved about."""

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor, WhisperForConditionalGeneration


class BeamCache(EncoderDecoderCache):
    """Keys and values of a decoder whose beams belong to one audio each: only those of the tokens follow their beam.

    The keys and values of the audio are the same in all rows of an utterance, and a beam never leaves its utterance.
    """

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows (R,) that go on; those of an utterance stay among themselves."""
        self.self_attention_cache.reorder_cache(beam_idx)


def beam_cache(model: WhisperForConditionalGeneration, states: Tensor, n_beams: int) -> BeamCache:
    """A cache that holds the audio: keys and values are computed once per utterance, not once per beam.

    Args:
        states: encoder states, (B, T, D).
    """
    cache = BeamCache(DynamicCache(config=model.config), DynamicCache(config=model.config))
    for index, layer in enumerate(model.model.decoder.layers):
        attention = layer.encoder_attn
        keys, values = (
            projection(states).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).repeat_interleave(n_beams, 0)
            for projection in (attention.k_proj, attention.v_proj)
        )  # (B·beams, heads, T, D / heads)
        cache.cross_attention_cache.update(keys, values, index)
        cache.is_updated[index] = True
    return cache


class ProbabilityMixing(LogitsProcessor):
    """Decoding that matches `mixing=loss`: one token distribution per utterance, mixed over its k replicated rows.

    Replicas of an utterance get the same scores, so that greedy search and beams stay in step across them; `values` (B, k) are the
    weights of its experts.
    """

    def __init__(self, values: Tensor) -> None:
        self.log_values = values.float().log()  # (B, k)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        n_utterances, k = self.log_values.shape
        logits = scores.view(n_utterances, k, -1, scores.shape[-1])  # (B, k, beams, V)
        mixed = torch.logsumexp(logits.log_softmax(-1) + self.log_values[:, :, None, None], dim=1, keepdim=True)
        return mixed.expand_as(logits).reshape_as(scores)
