"""The parts of SteerMoE put together: base, language model, steering, projector, and what they are fed."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from moe.experts.routed_lora import AdapterOptions
from moe.systems.steer_moe.audio_prompt import AudioPrompt, stride_of
from moe.systems.steer_moe.decoder import DecoderRecord, read_decoder
from moe.systems.steer_moe.encoder import SteeredEncoder
from moe.systems.steer_moe.inputs import Limits, SteerInputs
from moe.systems.steer_moe.language_model import token_table
from moe.systems.steer_moe.model import SteeredWriter, SteerMoE
from moe.systems.steer_moe.options import LORA, WHISPER, AudioPromptOptions, SteerModelOptions
from moe.systems.steer_moe.shapes import DecoderShape, EncoderShape, frame_ms, prompt_of, shape_faults
from moe.systems.steer_moe.steering import Steering
from moe.systems.steer_moe.whisper_writer import WhisperWriter
from moe.systems.whisper.base_model import BaseModel, load_base, save_base, use_language
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.tokens import prompt_ids

BASE_DIR, DECODER_DIR = "base", "decoder"
ENCODER_LORA = "q_proj,v_proj"  # the layers of the control steer_adapter=lora


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
    config, extractor = base.model.config, base.processor.feature_extractor
    shape = EncoderShape(config.encoder_layers, config.d_model, frame_ms(extractor.hop_length, extractor.sampling_rate))
    if options.writer == WHISPER or sources.decoder is None:
        _check(shape_faults(options, shape, None))
        tokenizer = base.processor.tokenizer
        control = WhisperWriter(_encoder(base, options, lora_rank), base.model, prompt_ids(tokenizer), balance)
        return Parts(control, WhisperInputs(base.processor, context, config.max_target_positions), tokenizer, None)
    decoder = read_decoder(sources.decoder)
    limits = Limits.of(options, stride_of(options.prompt_ms, shape.frame_ms))
    prompt = prompt_of(options, decoder.record.textual_prompt)
    inputs = SteerInputs(base.processor, context, decoder.tokenizer, options, prompt, limits)
    _check(shape_faults(options, shape, DecoderShape(decoder.width, decoder.n_positions, len(inputs.around()))))
    encoder = _encoder(base, options, lora_rank)
    spread = float(token_table(decoder.model).square().mean().sqrt())
    audio = AudioPrompt(shape.width, decoder.width, shape.frame_ms, options.part(AudioPromptOptions), spread)
    module = SteerMoE(encoder, audio, decoder.model, decoder.n_text, decoder.end, balance)
    return Parts(module, inputs, decoder.tokenizer, decoder.record)


def lora_of(rank: int) -> AdapterOptions:
    """A LoRA of a rank, at the scale 2 of the project's other adapters."""
    return AdapterOptions(lora_r=rank, lora_alpha=2.0 * rank, shared_r=rank, lora_targets=ENCODER_LORA)


def _encoder(base: BaseModel, options: SteerModelOptions, lora_rank: int) -> SteeredEncoder:
    encoder, config = base.model.model.encoder, base.model.config
    if options.steer_adapter == LORA:
        return SteeredEncoder(encoder, lora=lora_of(lora_rank))
    layers = options.layers(config.encoder_layers)
    return SteeredEncoder(encoder, Steering(layers, config.d_model, options) if layers else None)


def _check(faults: Sequence[str]) -> None:
    if faults:
        raise ValueError("; ".join(faults))
