"""What an update of a mixture costs: floating-point operations and bytes, from the shape of the model and of a batch.

Matrix products alone are counted, two operations for each multiplication with addition (Kaplan et al. 2020, arXiv:2001.08361, §2.1); what
remains is less than a tenth at Whisper's widths. A frozen matrix costs a product forward and one backward, an adapter one forward and
two backward, attention two forward and five backward, since its scores are made again (Dao 2023, arXiv:2307.08691, §3).
"""

import dataclasses
from collections.abc import Iterator
from typing import Self

from transformers import WhisperConfig

from moe.experts.routed_lora import DENSE_SHARE, PARTS, AdapterOptions
from moe.routing.options import RoutingOptions
from moe.systems.whisper.head_loss import LOGITS

FLOAT, HALF = 4, 2  # bytes of a number
N_ADAM = 2  # moments that AdamW keeps of what trains
ATTENTION_BACKWARD = 2.5  # of its forward
LOGITS_COPIES = 3  # of the logits held at a time: themselves, their probabilities, one more while those are made


@dataclasses.dataclass(frozen=True)
class Batch:
    """A batch as the model sees it, padded: utterances, mel frames and labels of each."""

    size: int
    n_frames: int
    n_labels: int

    @property
    def n_positions(self) -> int:
        """Positions of the encoder, T."""
        return self.n_frames // 2


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Which layers carry adapters, and how many ranks of them an utterance uses.

    Attributes:
        targets: names of the linear layers.
        total_rank: ranks that are held in a layer, all experts and the shared adapter.
        used_rank: ranks that an utterance is computed with.
        first_layer: the lowest encoder layer that carries adapters.
        copies: decoder passes per utterance: k where losses are mixed.
        dense: one product over all experts, so that no utterance has matrices of its own.
        alone: a shared adapter without experts, the same matrices for all utterances.
        parts: of the model, that carry adapters.
    """

    targets: tuple[str, ...] = ()
    total_rank: int = 0
    used_rank: int = 0
    first_layer: int = 0
    copies: int = 1
    dense: bool = False
    alone: bool = False
    parts: tuple[str, ...] = PARTS

    @classmethod
    def of(cls, adapters: AdapterOptions, routing: RoutingOptions, n_experts: int) -> Self:
        """As the options of a mixture say; `n_experts` 0 is one LoRA."""
        top_k = min(routing.top_k, n_experts)
        losses = routing.mixing == "loss" and top_k > 1
        dense = not losses and top_k > DENSE_SHARE * n_experts
        n_used = 1 if losses else n_experts if dense else top_k
        shared = adapters.shared_rank
        return cls(
            adapters.targets,
            shared + n_experts * adapters.lora_r,
            shared + n_used * adapters.lora_r,
            (routing.layer or 0) if n_experts else 0,
            top_k if losses else 1,
            dense,
            n_experts == 0,
            adapters.parts,
        )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Forward and backward operations of one update, and the bytes held while it is made."""

    forward: float
    backward: float
    weights: float
    trained: float
    activations: float

    @property
    def flops(self) -> float:
        """Operations of an update."""
        return self.forward + self.backward

    @property
    def n_bytes(self) -> float:
        """Bytes at the peak, the libraries' own apart."""
        return self.weights + self.trained + self.activations


def update_cost(
    config: WhisperConfig, adapted: Adapted, batch: Batch, half: bool = False, n_copies: int = 1, checkpointing: bool = False
) -> Cost:
    """One update of a frozen Whisper with adapters.

    Args:
        config: of the base model.
        half: half precision: frozen matrices and most activations take two bytes.
        n_copies: copies kept of what trains: 1 and those of averaging and of the best epoch.
        checkpointing: keeps the input of each layer alone and runs every layer twice.
    """
    forward = backward = activations = 0.0
    for part in _parts(config, adapted, batch):
        forward += part.forward
        backward += part.backward * part.trains + (part.forward if checkpointing and part.trains else 0.0)
        activations += part.kept * part.trains
    width = config.d_model * batch.size * (batch.n_positions + batch.n_labels) * adapted.copies
    number = HALF if half else FLOAT
    n_trained = n_trainable(config, adapted)
    if checkpointing:
        n_layers = config.encoder_layers + config.decoder_layers
        activations = activations / n_layers + width * n_layers
    return Cost(
        forward,
        backward,
        n_frozen(config) * number,
        n_trained * FLOAT * (1 + 1 + N_ADAM + n_copies - 1),
        activations * number + LOGITS_COPIES * FLOAT * min(LOGITS, batch.size * batch.n_labels * config.vocab_size),
    )


def n_frozen(config: WhisperConfig) -> int:
    """Parameters of a Whisper; its head is its table of tokens."""
    d, f = config.d_model, config.encoder_ffn_dim
    stem = d * (3 * config.num_mel_bins + 1) + d * (3 * d + 1) + config.max_source_positions * d
    attention, ffn, norm = 4 * d * d + 3 * d, 2 * d * f + d + f, 2 * d  # keys have no bias
    tables = config.vocab_size * d + config.max_target_positions * d
    encoder = config.encoder_layers * (attention + ffn + 2 * norm) + norm
    decoder = (
        config.decoder_layers * (2 * attention + 2 * d * config.decoder_ffn_dim + d + config.decoder_ffn_dim + 3 * norm) + norm
    )
    return stem + encoder + tables + decoder


def n_trainable(config: WhisperConfig, adapted: Adapted) -> int:
    """Parameters of all adapters; the gate's are a few thousand more."""
    sizes = sum(n_in + n_out for _, n_in, n_out in _linears(config, adapted, "encoder"))
    n_encoder = config.encoder_layers - adapted.first_layer
    decoder = sum(n_in + n_out for _, n_in, n_out in _linears(config, adapted, "decoder"))
    return adapted.total_rank * (n_encoder * sizes + config.decoder_layers * decoder)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Operations of one layer for the batch, and the numbers that it keeps for backward; `trains` where backward passes it."""

    forward: float
    backward: float
    kept: float
    trains: bool = True


KEPT_ENCODER = (
    12  # widths kept of each position: inputs of norms and adapters, q, k, v, what is attended, input and output of the GELU
)
KEPT_DECODER = 18
KEPT_CROSS = 3  # keys, values and the input of their adapters


def _parts(config: WhisperConfig, adapted: Adapted, batch: Batch) -> Iterator[_Part]:
    d, t, n = config.d_model, batch.n_positions, batch.n_labels
    has, encodes = bool(adapted.targets), bool(adapted.targets) and "encoder" in adapted.parts
    yield _Part(2 * batch.size * (batch.n_frames * 3 * config.num_mel_bins * d + t * 3 * d * d), 0, 0, False)
    for layer in range(config.encoder_layers):
        trains, lowest = encodes and layer >= adapted.first_layer, encodes and layer == adapted.first_layer
        rows = batch.size * (adapted.copies if trains else 1) * t
        linear, attention = rows * (8 * d * d + 4 * d * config.encoder_ffn_dim), rows * 4 * t * d
        own, held = _adapters(config, adapted, batch, "encoder") if trains else (0, 0)
        unneeded = rows * 6 * d * d if lowest else 0  # nothing below asks for a gradient
        backward = linear - unneeded + ATTENTION_BACKWARD * attention + 2 * own
        yield _Part(linear + attention + own, backward, rows * d * KEPT_ENCODER + held, trains)
    audio_rows, text_rows = batch.size * adapted.copies * t, batch.size * adapted.copies * n
    for layer in range(config.decoder_layers):
        linear, attention = (
            text_rows * (12 * d * d + 4 * d * config.decoder_ffn_dim) + audio_rows * 4 * d * d,
            text_rows * 4 * (n + t) * d,
        )
        own, held = _adapters(config, adapted, batch, "decoder")
        unneeded = (text_rows * 6 * d * d if layer == 0 else 0) + (0 if encodes else audio_rows * 4 * d * d)
        backward = linear - unneeded + ATTENTION_BACKWARD * attention + 2 * own
        yield _Part(linear + attention + own, backward, d * (text_rows * KEPT_DECODER + audio_rows * KEPT_CROSS) + held, has)
    head = 2 * text_rows * d * config.vocab_size
    yield _Part(head, head, text_rows * d, has)


def _adapters(config: WhisperConfig, adapted: Adapted, batch: Batch, part: str) -> tuple[float, float]:
    """Forward operations of the adapters of one layer, and the numbers that they keep: their middle, the matrices of each utterance."""
    lengths, utterances = {"t": batch.n_positions, "n": batch.n_labels}, batch.size * adapted.copies
    flops = held = 0.0
    for over, n_in, n_out in _linears(config, adapted, part):
        flops += 2 * utterances * lengths[over] * adapted.used_rank * (n_in + n_out)
        held += utterances * adapted.used_rank * (lengths[over] + _matrices(adapted, lengths[over], n_in, n_out))
        held += utterances * lengths[over] * n_in * (n_in > config.d_model)  # of the GELU, which else nobody keeps
    return flops, held


def _matrices(adapted: Adapted, length: int, n_in: int, n_out: int) -> int:
    """Numbers that a layer keeps for each utterance and rank beside the middle, of so many positions."""
    if adapted.alone:
        return 0
    return length if adapted.dense else n_in + 2 * n_out  # dense: the middle is kept before and after its weights


def _linears(config: WhisperConfig, adapted: Adapted, part: str) -> list[tuple[str, int, int]]:
    """Adapted linear layers of one layer: the rows they run over (`t` positions of the audio, `n` tokens), their input and output."""
    d, f = config.d_model, config.encoder_ffn_dim if part == "encoder" else config.decoder_ffn_dim
    own = "t" if part == "encoder" else "n"
    layers = [(name, own, d, d) for name in ("q_proj", "k_proj", "v_proj", "out_proj")] + [("fc1", own, d, f), ("fc2", own, f, d)]
    if part == "decoder":
        layers += [(name, "n", d, d) for name in ("q_proj", "out_proj")] + [(name, "t", d, d) for name in ("k_proj", "v_proj")]
    carrying = adapted.targets if part in adapted.parts else ()
    return [(over, n_in, n_out) for name, over, n_in, n_out in layers if name.endswith(carrying)]
