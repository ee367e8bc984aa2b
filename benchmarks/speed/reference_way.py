"""The documents' way, written plainly, as the thing compared against.

A second, whole Whisper encodes every batch for the gate; each expert is a PEFT adapter, switched on in turn for the utterances routed to it;
everything is padded to the full window; embeddings are kept frame by frame. One fault of the documents is not repeated, since nothing could
be compared with it: `set_adapter` freezes every other adapter, so that only the last one switched on would learn; all stay trainable here.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import get_peft_model
from torch import Tensor, nn
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from benchmarks.speed.workbench import lora_config
from moe.systems.whisper.head_loss import utterance_cross_entropy
from moe.systems.whisper.tokens import decoder_inputs

GATE_UNITS = 128


def expert_name(expert: int) -> str:
    """Name of an expert's adapter."""
    return f"expert_{expert}"


class ReferenceWay(nn.Module):
    """The mixture as two models and a loop over experts.

    Args:
        base: Whisper that carries the experts.
        embedder: a second Whisper, whose encoder feeds the gate.
        n_experts: adapters.
    """

    def __init__(self, base: WhisperForConditionalGeneration, embedder: WhisperForConditionalGeneration, n_experts: int) -> None:
        super().__init__()
        self.n_experts, self.embedder = n_experts, embedder.model.eval().requires_grad_(False)
        self.model = get_peft_model(base, lora_config(), adapter_name=expert_name(0))
        for expert in range(1, n_experts):
            self.model.add_adapter(expert_name(expert), lora_config())
        self.gate = nn.Sequential(nn.Linear(base.config.d_model, GATE_UNITS), nn.ReLU(), nn.Linear(GATE_UNITS, n_experts)).to(
            base.device
        )
        self.unfreeze_experts()

    def unfreeze_experts(self) -> None:
        """Every adapter trains, whichever was switched on last."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("lora_" in name)

    @torch.no_grad()
    def embed(self, mel: Tensor) -> Tensor:
        """The gate's view of a batch: the mean over all frames, padding too, of the second encoder; (B, n_mels, F) → (B, D)."""
        return self.embedder.encoder(mel).last_hidden_state.mean(1)

    def routing(self, mel: Tensor, top_k: int) -> Tensor:
        """Top-k routing weights (B, E) of a batch, from a pass of its own."""
        probabilities = torch.softmax(self.gate(self.embed(mel)).float(), -1)  # (B, E)
        values, indices = probabilities.topk(top_k, -1)
        return torch.zeros_like(probabilities).scatter(-1, indices, values / values.sum(-1, keepdim=True))

    def loss(self, mel: Tensor, labels: Tensor, weights: Tensor, top_k: int) -> Tensor:
        """Mean over the batch of the experts' losses weighted by the routing weights, expert by expert."""
        values, indices = weights.topk(top_k, -1)  # (B, k)
        total, model = (
            torch.zeros(len(mel), device=mel.device),
            cast(WhisperForConditionalGeneration, self.model.get_base_model()),
        )
        for rank in range(top_k):
            for expert in indices[:, rank].unique().tolist():
                self.model.set_adapter(expert_name(expert))
                rows = (indices[:, rank] == expert).nonzero()[:, 0]
                losses = utterance_loss(model, mel[rows], labels[rows])
                total = total.index_add(0, rows, values[rows, rank] * losses)
        self.unfreeze_experts()
        return total.mean()

    @torch.no_grad()
    def generate(self, mel: Tensor, weights: Tensor, **options: Any) -> list[list[int]]:
        """Token ids of each utterance by its best expert alone, expert by expert."""
        best = weights.argmax(-1)
        tokens: list[list[int]] = [[] for _ in range(len(mel))]
        for expert in best.unique().tolist():
            self.model.set_adapter(expert_name(expert), inference_mode=True)
            rows = (best == expert).nonzero()[:, 0]
            for row, ids in zip(rows.tolist(), self.model.generate(input_features=mel[rows], **options), strict=True):
                tokens[row] = ids.tolist()
        return tokens


def utterance_loss(model: WhisperForConditionalGeneration, mel: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each utterance, (B,)."""
    inputs = decoder_inputs(model.config, labels)
    return utterance_cross_entropy(model(input_features=mel, decoder_input_ids=inputs, use_cache=False).logits, labels)


def mixed_adapters_loss(reference: ReferenceWay, mel: Tensor, labels: Tensor, experts: Sequence[int]) -> Tensor:
    """One forward with one whole expert per utterance, by PEFT's `adapter_names`; PEFT allows it in eval mode only."""
    model: Any = reference.model.eval()
    names = [expert_name(expert) for expert in experts]
    with model.base_model._enable_peft_forward_hooks(adapter_names=names):
        return utterance_loss(model.base_model.model, mel, labels).mean()


@torch.no_grad()
def embed_one_by_one(
    model: WhisperForConditionalGeneration,
    extractor: WhisperFeatureExtractor,
    waves: Iterable[np.ndarray],
    folder: Path,
    precision: Callable[[], AbstractContextManager] = nullcontext,
) -> None:
    """Every frame of the last layer of every utterance, padded to the window, one utterance at a time, one file each."""
    for number, wave in enumerate(waves):
        mel = extractor(wave, sampling_rate=extractor.sampling_rate, return_tensors="pt").input_features.to(model.device)
        with precision():
            hidden = model.model.encoder(mel).last_hidden_state[0]  # (T, D)
        np.save(folder / f"{number}.npy", hidden.float().cpu().numpy())
