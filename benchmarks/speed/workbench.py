"""What all benchmarks work on: Whisper of a named shape with random weights, held once and shared by every variant, and batches.

Only speed, memory and equality can be read off random weights, never recognition quality.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from moe.experts.routed_lora import AdapterOptions
from moe.routing.gate import Gate, GateConfig
from moe.routing.options import RoutingOptions
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.model import WhisperMoE

R, ALPHA, TARGETS = 16, 32, ("q_proj", "v_proj")  # of every adapter of every variant
SAMPLE_RATE, HOP, FRAMES_PER_S = 16_000, 160, 100


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Whisper's dimensions; encoder and decoder have equally many layers."""

    d_model: int
    n_layers: int
    n_heads: int
    n_tokens: int = 51_865
    window_s: int = 30

    @property
    def middle(self) -> str:
        """`gate_layer` half way up the encoder."""
        return str(self.n_layers // 2)

    def config(self) -> WhisperConfig:
        """transformers' configuration: nothing suppressed, no forced tokens."""
        end, start = self.n_tokens - 2, self.n_tokens - 1
        return WhisperConfig(
            d_model=self.d_model,
            encoder_layers=self.n_layers,
            decoder_layers=self.n_layers,
            encoder_attention_heads=self.n_heads,
            decoder_attention_heads=self.n_heads,
            encoder_ffn_dim=4 * self.d_model,
            decoder_ffn_dim=4 * self.d_model,
            max_source_positions=self.window_s * FRAMES_PER_S // 2,
            vocab_size=self.n_tokens,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=start,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )


SHAPES = {
    "toy": Shape(32, 2, 2, n_tokens=64, window_s=4),
    "tiny": Shape(384, 4, 6),
    "base": Shape(512, 6, 8),
    "small": Shape(768, 12, 12),
    "large-v2": Shape(1280, 32, 20),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """How much is done at once; lengths in seconds of audio."""

    batch_size: int = 8
    n_experts: int = 8
    n_many_experts: int = 32
    same_s: float = 10.0  # training steps that differ in nothing but the adapters
    short_s: float = 5.0
    n_labels: int = 24
    n_new_tokens: int = 20
    n_embedded: int = 16
    n_stored: int = 64
    n_gate: int = 100_000


TOY = Workload(3, 4, 8, same_s=2.0, short_s=1.0, n_labels=6, n_new_tokens=4, n_embedded=3, n_stored=4, n_gate=400)


class Workbench:
    """Models and batches of one shape on one device.

    Args:
        shape: the model's dimensions.
        workload: batch size and lengths.
        device: `cpu` or `cuda`.
        dtype: `fp32`, or `bf16`: every variant under autocast.
    """

    def __init__(self, shape: Shape, workload: Workload, device: str = "cpu", dtype: str = "fp32") -> None:
        self.shape, self.workload, self.device, self.dtype = shape, workload, device, dtype
        self.extractor = WhisperFeatureExtractor(chunk_length=shape.window_s)

    def with_window(self, seconds: float) -> "Workbench":
        """A bench whose model takes a window of this length: transformers' own encoder takes no other input."""
        return Workbench(dataclasses.replace(self.shape, window_s=int(seconds)), self.workload, self.device, self.dtype)

    @functools.cached_property
    def weights(self) -> dict[str, Tensor]:
        """The random weights that every model of this bench holds; no variant changes them."""
        torch.manual_seed(0)
        with torch.device(self.device):
            return WhisperForConditionalGeneration(self.shape.config()).state_dict()

    def base(self) -> WhisperForConditionalGeneration:
        """A frozen Whisper on the shared weights."""
        with torch.device("meta"):
            model = WhisperForConditionalGeneration(self.shape.config())
        model.load_state_dict(self.weights, assign=True)
        model.tie_weights()
        generation: Any = model.generation_config
        generation.forced_decoder_ids = generation.max_length = None
        return model.requires_grad_(False)

    def single_lora(self) -> PeftModel:
        """PEFT's own LoRA, the floor that everything is measured against."""
        return get_peft_model(self.base(), lora_config()).train()

    def mixture(
        self, gate_layer: str = "0", top_k: int = 2, mixing: str = "delta", shared: bool = False, n_experts: int = 0
    ) -> WhisperMoE:
        """Ours with random gate and experts; `n_experts` 0 takes the workload's."""
        n_experts = n_experts or self.workload.n_experts
        torch.manual_seed(1)
        adapters = AdapterOptions(lora_r=R, shared_r=R, lora_alpha=ALPHA, lora_targets=",".join(TARGETS))
        adapters = adapters if shared else dataclasses.replace(adapters, shared_expert=False, shared_r=None)
        routing = RoutingOptions(gate_layer=gate_layer, top_k=top_k, mixing=mixing)
        gate = Gate(GateConfig(self.embedding.shape[1], n_experts)).to(self.device)
        return WhisperMoE(self.base(), n_experts, adapters, routing, gate).to(self.device).train()

    def mel(self, seconds: float) -> Tensor:
        """Random log-mels, (B, n_mels, F)."""
        random = torch.Generator().manual_seed(2)
        n_frames = round(seconds * FRAMES_PER_S)
        return torch.randn(self.workload.batch_size, self.extractor.feature_size, n_frames, generator=random).to(self.device)

    def short_mel(self) -> tuple[Tensor, Tensor]:
        """Short utterances in their bucketed context, and their valid frames (B,)."""
        n_valid = round(self.workload.short_s * FRAMES_PER_S)
        n_frames = AudioContextOptions().n_frames(n_valid, self.extractor)
        return self.mel(n_frames / FRAMES_PER_S), self.n_frames(n_valid)

    def n_frames(self, n_valid: int) -> Tensor:
        """The same number of valid frames for the whole batch, (B,)."""
        return torch.full((self.workload.batch_size,), n_valid, device=self.device)

    @property
    def window_mel(self) -> Tensor:
        """A batch that fills the window."""
        return self.mel(self.shape.window_s)

    @property
    def labels(self) -> Tensor:
        """Random labels, (B, N)."""
        random = torch.Generator().manual_seed(3)
        size = (self.workload.batch_size, self.workload.n_labels)
        return torch.randint(0, self.shape.n_tokens - 2, size, generator=random).to(self.device)

    @property
    def embedding(self) -> Tensor:
        """Random cached embeddings of the default pooling, (B, D) or (B, 2 D)."""
        random = torch.Generator().manual_seed(4)
        n_dims = self.shape.d_model * (2 if RoutingOptions().pooling == "mean_std" else 1)
        return torch.randn(self.workload.batch_size, n_dims, generator=random).to(self.device)

    def routing_weights(self, top_k: int) -> Tensor:
        """Random top-k routing weights, (B, E)."""
        random = torch.Generator().manual_seed(5)
        logits = torch.randn(self.workload.batch_size, self.workload.n_experts, generator=random)
        values, indices = torch.softmax(logits, -1).topk(top_k, -1)
        return torch.zeros_like(logits).scatter(-1, indices, values / values.sum(-1, keepdim=True)).to(self.device)

    def wave(self, number: int) -> np.ndarray:
        """Noise of the length of a short utterance, float32 (n_samples,)."""
        n_samples = round(self.workload.short_s * SAMPLE_RATE)
        return 0.1 * np.random.default_rng(number).standard_normal(n_samples).astype(np.float32)

    def precision(self, dtype: str | None = None) -> contextlib.AbstractContextManager:
        """Autocast where the bench (or `dtype`) asks for bf16."""
        return torch.autocast(self.device, torch.bfloat16, enabled=(dtype or self.dtype) == "bf16")


class Step:
    """One update as training makes it: loss, backward, clipping, AdamW; called again and again."""

    def __init__(
        self, bench: Workbench, loss: Callable[[], Tensor], parameters: Iterable[nn.Parameter], dtype: str | None = None
    ) -> None:
        self.bench, self.loss, self.dtype = bench, loss, dtype
        self.parameters = list(parameters)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.0)

    def __call__(self) -> None:
        with self.bench.precision(self.dtype):
            loss = self.loss()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def lora_config() -> LoraConfig:
    """PEFT's configuration of an adapter; without a task type, which Whisper's inputs do not fit."""
    return LoraConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS), bias="none")


def start_of(model: WhisperMoE) -> list[int]:
    """The prompt of a bench's models, which have no tokenizer: the start token."""
    start: Any = model.base.generation_config.decoder_start_token_id
    return [start]


def trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of a model that train."""
    return (parameter for parameter in model.parameters() if parameter.requires_grad)
