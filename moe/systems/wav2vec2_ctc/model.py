"""The network: transformers' Wav2Vec2BertForCTC, from random weights or from a checkpoint, and the loss of each utterance."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Wav2Vec2BertConfig, Wav2Vec2BertForCTC

from moe.experts.routed_lora import AdapterOptions, attach
from moe.routing.weights import Routing, RoutingWeights
from moe.systems.wav2vec2_ctc.frames import HOP, N_MELS, Frames
from moe.systems.wav2vec2_ctc.options import SCRATCH, CTCModelOptions, RegularisationOptions, checkpoint_of
from moe.systems.wav2vec2_ctc.vocabulary import BLANK
from moe.training.processes import mean_of_batch, sum_of_batch

HEAD = ("lm_head.weight", "lm_head.bias")
MEL_MS = HOP // 16


class CTCModel(nn.Module):
    """A Wav2Vec2-BERT with the loss of each utterance.

    Args:
        network: its config has everything that training reads.
        adapters: LoRA on its projections; None for none. Without experts it is the shared adapter alone.
        first_layer: encoder layers below it get no adapters.
    """

    accepts_loss_kwargs = False

    def __init__(
        self,
        network: Wav2Vec2BertForCTC,
        adapters: AdapterOptions | None = None,
        n_experts: int = 0,
        first_layer: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.frames = network, frames_of(network.config)
        network.config.apply_spec_augment = False  # transformers' masks come from a global generator; ours are given
        self.adapters, self.n_experts, self.precision = adapters, n_experts, "fp32"
        self.routing = attach(network, n_experts, adapters, first_layer) if adapters else Routing()
        if network.wav2vec2_bert.adapter is not None:
            network.wav2vec2_bert.adapter.layerdrop = 0.0  # a skipped stride would leave twice the outputs that lengths say

    def use_precision(self, name: str) -> Self:
        """Decode in `fp32`, `bf16` or `fp16` from now on; in training the Trainer's own mixed precision is all there is."""
        self.precision = name
        return self

    def log_probabilities(
        self,
        features: Tensor,
        n_frames: Tensor,
        mask: Tensor | None = None,
        feature_mask: Tensor | None = None,
        weights: RoutingWeights | None = None,
    ) -> Tensor:
        """Natural log-probabilities of the tokens in every output: features (B, T, D) → float32 (B, T', V).

        Args:
            mask: frames that the mask vector replaces, (B, T). feature_mask: projected features that are 0, (B, H).
            weights: of the experts, where there are any.
        """
        valid = valid_frames(features, n_frames)
        with self._adapted(weights), self._masked(mask, feature_mask):
            logits = self.network(features, attention_mask=valid.long()).logits
        said: Tensor = logits.float().log_softmax(-1)
        return said

    def forward(
        self,
        features: Tensor,
        n_frames: Tensor,
        labels: Tensor,
        n_labels: Tensor,
        mask: Tensor | None = None,
        feature_mask: Tensor | None = None,
        utterance_ids: Sequence[str] = (),
    ) -> dict[str, Tensor]:
        """features (B, T, D), labels (B, N) → loss (), utterance_loss (B,); masks as of `log_probabilities`."""
        return self.ctc_outputs(self.log_probabilities(features, n_frames, mask, feature_mask), n_frames, labels, n_labels)

    def ctc_outputs(self, said: Tensor, n_frames: Tensor, labels: Tensor, n_labels: Tensor) -> dict[str, Tensor]:
        """said (B, T', V), labels (B, N) → loss (), utterance_loss (B,)."""
        losses = self.losses(said, n_frames, labels, n_labels)
        sums = self.network.config.ctc_loss_reduction == "sum"
        loss = sum_of_batch(losses.sum()) if sums else mean_of_batch(losses.mean(), len(losses))
        return {"loss": loss, "utterance_loss": losses.detach()}

    def losses(self, said: Tensor, n_frames: Tensor, labels: Tensor, n_labels: Tensor) -> Tensor:
        """The loss of each utterance, (B,): by its labels, unless the config says sum. said (B, T', V)."""
        config = self.network.config
        totals = ctc_losses(said, self.frames.n_outputs(n_frames), labels, n_labels, config.ctc_zero_infinity)
        return totals if config.ctc_loss_reduction == "sum" else totals / n_labels.clamp_min(1)

    def enable_checkpointing(self) -> None:
        """Gradient checkpointing, non-reentrant, with the routing of the forward restored when layers are recomputed."""
        options = {"use_reentrant": False, "context_fn": self.routing.checkpoint_contexts}
        self.network.gradient_checkpointing_enable(options)

    @contextmanager
    def _masked(self, mask: Tensor | None, feature_mask: Tensor | None) -> Iterator[None]:
        """Projected features masked inside the block, where masks are given."""
        trunk = self.network.wav2vec2_bert

        def masked(module: nn.Module, given: Any, output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            hidden, normed = output  # (B, T, H), (B, T, D)
            if mask is not None:
                hidden = torch.where(mask[..., None], trunk.masked_spec_embed.to(hidden.dtype), hidden)
            if feature_mask is not None:
                hidden = hidden.masked_fill(feature_mask[:, None], 0.0)
            return hidden, normed

        handle = trunk.feature_projection.register_forward_hook(masked)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _adapted(self, weights: RoutingWeights | None) -> Iterator[None]:
        """Adapters on inside the block, where there are any."""
        if self.adapters is None:
            yield
            return
        with self.routing.use(weights):
            yield


def valid_frames(features: Tensor, n_frames: Tensor) -> Tensor:
    """Which frames of a batch are its utterances': features (B, T, D), n_frames (B,) → bool (B, T)."""
    return torch.arange(features.shape[1], device=features.device) < n_frames[:, None]


def ctc_losses(said: Tensor, n_outputs: Tensor, labels: Tensor, n_labels: Tensor, zero_infinity: bool = False) -> Tensor:
    """−log of the probability of the labels, over all paths (Graves et al. 2006): said (B, T', V), labels (B, N) → (B,)."""
    return F.ctc_loss(said.transpose(0, 1), labels, n_outputs, n_labels, BLANK, reduction="none", zero_infinity=zero_infinity)


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, and the names of the tensors that no checkpoint provided."""

    network: Wav2Vec2BertForCTC
    missing: tuple[str, ...]


def new_network(options: CTCModelOptions, n_tokens: int, keeps_head: bool = False) -> Network:
    """A network as the options say, with a head of `n_tokens` outputs; what it draws comes from torch's generator.

    Args:
        keeps_head: the checkpoint's head, which writes the same tokens; else it is new.

    Raises:
        ValueError: a checkpoint that cannot be read, or whose features or adapter are of another kind.
    """
    if options.ctc_model not in (None, SCRATCH):
        return _loaded(options, n_tokens, keeps_head)
    shape: dict[str, Any] = {
        "hidden_size": options.ctc_width,
        "output_hidden_size": options.ctc_width,
        "num_hidden_layers": options.ctc_layers,
        "num_attention_heads": options.ctc_heads,
        "intermediate_size": options.ctc_ffn,
        "conv_depthwise_kernel_size": options.ctc_kernel,
        "feature_projection_input_dim": options.ctc_frame_ms // MEL_MS * N_MELS,
    }
    network = Wav2Vec2BertForCTC(Wav2Vec2BertConfig(**shape, **_changes(options, n_tokens)))
    return Network(network, tuple(name for name, _ in network.named_parameters()))


def frames_of(config: Wav2Vec2BertConfig) -> Frames:
    """How a network of this config counts frames.

    Raises:
        ValueError: its features are no stacked mels, or its adapter does not halve.
    """
    stack, rest = divmod(config.feature_projection_input_dim, N_MELS)
    if rest:
        raise ValueError(f"the model takes {config.feature_projection_input_dim} features: must be a multiple of {N_MELS} mels")
    if config.add_adapter and (config.adapter_kernel_size, config.adapter_stride) != (3, 2):
        found = f"adapter_kernel_size={config.adapter_kernel_size} and adapter_stride={config.adapter_stride}"
        raise ValueError(f"the model has {found}: only 3 and 2 are known; set add_adapter=false")
    return Frames(stack, config.num_adapter_layers if config.add_adapter else 0)


def _changes(options: CTCModelOptions, n_tokens: int) -> dict[str, Any]:
    """What is set in a config before a network is made of it."""
    regularisation = dataclasses.asdict(options.part(RegularisationOptions))
    return regularisation | {"add_adapter": options.add_adapter, "vocab_size": n_tokens, "pad_token_id": BLANK}


def _loaded(options: CTCModelOptions, n_tokens: int, keeps_head: bool) -> Network:
    source = checkpoint_of(str(options.ctc_model))
    try:
        config = Wav2Vec2BertConfig.from_pretrained(source)
        config.update(_changes(options, n_tokens))
        frames_of(config)
        loaded: Any = Wav2Vec2BertForCTC.from_pretrained(
            source, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"ctc_model={options.ctc_model}: {error}") from error
    network, found = loaded
    if not keeps_head:
        network.lm_head.reset_parameters()  # its rows are the tokens of another vocabulary, whatever their number
    lacking = {*(() if keeps_head else HEAD), *found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
    return Network(network, tuple(name for name, _ in network.named_parameters() if name in lacking))
