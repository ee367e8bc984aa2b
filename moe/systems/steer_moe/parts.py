"""The parts of SteerMoE put together: base, language model, steering, projector, and what they are fed."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from moe.experts.routed_lora import AdapterOptions
from moe.systems.steer_moe.audio_prompt import AudioPrompt, stride_of
from moe.systems.steer_moe.decoder import PROMPT, Decoder, DecoderRecord, read_decoder
from moe.systems.steer_moe.encoder import SteeredEncoder
from moe.systems.steer_moe.inputs import Limits, SteerInputs
from moe.systems.steer_moe.model import SteeredWriter, SteerMoE
from moe.systems.steer_moe.options import LORA, WHISPER, AudioPromptOptions, SteerModelOptions
from moe.systems.steer_moe.steering import Steering
from moe.systems.steer_moe.whisper_writer import WhisperWriter
from moe.systems.whisper.base_model import BaseModel, load_base, save_base, use_language
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.tokens import prompt_ids

BASE_DIR, DECODER_DIR = "base", "decoder"


@dataclasses.dataclass(frozen=True)
class Sources:
    """The folders of a base and of a language model; None where the base writes."""

    base: Path
    decoder: Path | None

    def copy(self, folder: Path) -> None:
        """Copy both into a folder."""
        save_base(load_base(str(self.base)), folder / BASE_DIR)
        if self.decoder is not None:
            shutil.copytree(self.decoder, folder / DECODER_DIR)


@dataclasses.dataclass(frozen=True)
class Parts:
    """A module, its inputs, the tokenizer of what writes, and the language model's record."""

    module: SteeredWriter
    inputs: SteerInputs | WhisperInputs
    tokenizer: PreTrainedTokenizerBase
    decoder: DecoderRecord | None


def assemble(
    sources: Sources, options: SteerModelOptions, context: AudioContextOptions, language: str, lora_rank: int, balance: float
) -> Parts:
    """An untrained model.

    Raises:
        ValueError: base, language model and options do not go together.
    """
    base = use_language(load_base(str(sources.base)), language)
    encoder = _encoder(base, options, lora_rank)
    if options.writer == WHISPER or sources.decoder is None:
        tokenizer = base.processor.tokenizer
        module = WhisperWriter(encoder, base.model, prompt_ids(tokenizer), balance)
        return Parts(module, WhisperInputs(base.processor, context, base.model.config.max_target_positions), tokenizer, None)
    decoder = read_decoder(sources.decoder)
    inputs = _inputs(base, decoder, options, context)
    width = base.model.config.d_model
    prompt = AudioPrompt(width, decoder.width, frame_ms(base), options.part(AudioPromptOptions))
    return Parts(
        SteerMoE(encoder, prompt, decoder.model, decoder.n_text, decoder.end, balance), inputs, decoder.tokenizer, decoder.record
    )


def frame_ms(base: BaseModel) -> float:
    """Milliseconds of an encoder frame."""
    extractor = base.processor.feature_extractor
    return float(2000 * extractor.hop_length / extractor.sampling_rate)


def lora_of(rank: int) -> AdapterOptions:
    """A LoRA of a rank, at the scale 2 of the project's other adapters."""
    return AdapterOptions(lora_r=rank, lora_alpha=2.0 * rank, shared_r=rank)


def _encoder(base: BaseModel, options: SteerModelOptions, lora_rank: int) -> SteeredEncoder:
    encoder, config = base.model.model.encoder, base.model.config
    if options.steer_adapter == LORA:
        return SteeredEncoder(encoder, lora=lora_of(lora_rank))
    layers = options.layers(config.encoder_layers)
    return SteeredEncoder(encoder, Steering(layers, config.d_model, options) if layers else None)


def _inputs(base: BaseModel, decoder: Decoder, options: SteerModelOptions, context: AudioContextOptions) -> SteerInputs:
    limits = Limits.of(options, stride_of(options.prompt_ms, frame_ms(base)))
    prompt = decoder.record.textual_prompt or PROMPT if options.textual_prompt is None else options.textual_prompt
    inputs = SteerInputs(base.processor, context, decoder.tokenizer, options, prompt, limits)
    if faults := length_faults(options, decoder.n_positions, len(inputs.around())):
        raise ValueError("; ".join(faults))
    return inputs


def length_faults(options: SteerModelOptions, n_positions: int | None, n_around: int) -> Sequence[str]:
    """Lengths that the language model has no positions for, or that leave no room for a text.

    Args:
        n_around: tokens around the audio prompt.
    """
    found = []
    for name in ("max_prompt_tokens", "max_sequence_tokens"):
        asked = getattr(options, name)
        if n_positions is not None and asked > n_positions:
            found.append(f"{name}={asked}: the language model has {n_positions} positions")
    if n_around + 2 >= options.max_sequence_tokens:  # a vector of audio, and the end of text
        found.append(
            f"textual_prompt: with what surrounds it {n_around} tokens, which leaves no room for text in "
            f"max_sequence_tokens={options.max_sequence_tokens}"
        )
    return found
