"""Whether a base, a language model and the options go together: known from their shapes, before any weights are read."""

import dataclasses
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, WhisperConfig

from moe.audio.sampling import SAMPLE_RATE
from moe.files import read_json
from moe.systems.steer_moe.audio_prompt import prompt_faults
from moe.systems.steer_moe.decoder import PROMPT, RECORD, positions_of
from moe.systems.steer_moe.options import PromptTextOptions, SteerModelOptions
from moe.systems.steer_moe.sequence import surroundings
from moe.systems.whisper.base_source import SCRATCH, SmallShape, feature_extractor, small_files
from moe.systems.whisper.checkpoint_weights import NO_MODEL

WIDTHS = ("word_embed_proj_dim", "hidden_size")  # of the embeddings, as configs name it


@dataclasses.dataclass(frozen=True)
class EncoderShape:
    """Layers of a base's encoder, width of its frames, and their milliseconds."""

    n_layers: int
    width: int
    frame_ms: float


@dataclasses.dataclass(frozen=True)
class DecoderShape:
    """Width of a language model's embeddings, its positions, and the tokens around an audio prompt; None for what is not known."""

    width: int | None = None
    n_positions: int | None = None
    n_around: int | None = None


def shape_faults(options: SteerModelOptions, encoder: EncoderShape, decoder: DecoderShape | None) -> list[str]:
    """Why they do not go together; empty where they do.

    Args:
        decoder: None where the base writes.
    """
    found = options.layer_faults(encoder.n_layers)
    if decoder is None:
        return found
    found += prompt_faults(options, encoder.width, decoder.width, encoder.frame_ms)
    return found + _length_faults(options, decoder)


def frame_ms(hop_length: int, sampling_rate: int = SAMPLE_RATE) -> float:
    """Milliseconds of an encoder frame, which is two mel frames."""
    return 2000 * hop_length / sampling_rate


def encoder_shape(base: str) -> EncoderShape | None:
    """The shape of a base that is new or lies on this machine; None where that shows when it is loaded."""
    if base == SCRATCH:
        new = SmallShape()
        return EncoderShape(new.encoder_layers, new.d_model, frame_ms(new.hop_length))
    folder = small_files(base)
    if folder is None:
        return None
    try:
        config, extractor = WhisperConfig.from_pretrained(folder), feature_extractor(folder)
    except (OSError, *NO_MODEL):
        return None  # said of the base itself
    return EncoderShape(config.encoder_layers, config.d_model, frame_ms(extractor.hop_length, extractor.sampling_rate))


def decoder_shape(folder: Path, options: SteerModelOptions) -> DecoderShape:
    """The shape of a language model in a folder."""
    config = AutoConfig.from_pretrained(folder)
    width = next((int(found) for name in WIDTHS if (found := getattr(config.get_text_config(), name, None))), None)
    own = read_json(folder / RECORD).get("textual_prompt") if (folder / RECORD).exists() else None
    around = surroundings(AutoTokenizer.from_pretrained(folder), prompt_of(options, own), options.chat_template)
    return DecoderShape(width, positions_of(config), len(around))


def prompt_of(options: PromptTextOptions, own: str | None) -> str:
    """The textual prompt in use: that of the options, or the language model's own, or that of those made here."""
    return (own or PROMPT) if options.textual_prompt is None else options.textual_prompt


def _length_faults(options: SteerModelOptions, decoder: DecoderShape) -> list[str]:
    """Lengths that the language model has no positions for, or that leave no room for a text."""
    found = []
    for name in ("max_prompt_tokens", "max_sequence_tokens"):
        asked = getattr(options, name)
        if decoder.n_positions is not None and asked > decoder.n_positions:
            found.append(f"{name}={asked}: the language model has {decoder.n_positions} positions")
    if (
        decoder.n_around is not None and decoder.n_around + 2 >= options.max_sequence_tokens
    ):  # a vector of audio, and the end of text
        found.append(
            f"textual_prompt: with what surrounds it {decoder.n_around} tokens, which leaves no room for text in "
            f"max_sequence_tokens={options.max_sequence_tokens}"
        )
    return found
