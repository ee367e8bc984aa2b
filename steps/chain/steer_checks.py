"""What `main` refuses of a SteerMoE before anything has run: faults between base, language model and options."""

from pathlib import Path
from typing import Any

from transformers import WhisperTokenizer

from moe.systems.steer_moe.decoder import NOT_COPIED, decoder_fault, megabytes
from moe.systems.steer_moe.decoder_training import N_POSITIONS, DecoderOptions, plain_tokenizer
from moe.systems.steer_moe.options import WHISPER, SteerModelOptions
from moe.systems.steer_moe.sequence import surroundings
from moe.systems.steer_moe.shapes import DecoderShape, decoder_shape, encoder_shape, prompt_of, shape_faults
from moe.systems.whisper.base_source import has_processor
from steps.chain.options import STEER
from steps.chain.stages import makes_decoder, makes_tokenizer
from steps.registry.judging import ANY


def steer_faults(options: Any) -> list[str]:
    """What does not go together; of what is not on this machine it shows when that is loaded.

    Args:
        options: `steps.main.StepOptions`, whose fields are those of all stages.
    """
    return _shape_faults(options) + _pin_faults(options)


def _shape_faults(options: Any) -> list[str]:
    encoder = encoder_shape(options.source)
    if encoder is None:
        return []
    try:
        asked = options.part(SteerModelOptions)
        return shape_faults(asked, encoder, None if asked.writer == WHISPER else _decoder_shape(options, asked))
    except ValueError:
        return []  # said of the stage itself


def _pin_faults(options: Any) -> list[str]:
    """A language model that would be registered and that no server could get."""
    folder, registers = Path(options.llm), options.until == "register" and options.register_system in (ANY, STEER)
    is_taken = options.writer != WHISPER and not makes_decoder(options) and folder.is_dir()
    if not registers or not is_taken or megabytes(folder) <= options.copy_decoder_mb:
        return []
    return [
        f"llm={folder}: {NOT_COPIED} ({megabytes(folder):.0f} MB, copy_decoder_mb={options.copy_decoder_mb:g}), or set until=compare"
    ]


def _decoder_shape(options: Any, asked: SteerModelOptions) -> DecoderShape:
    if makes_decoder(options):
        tokens_of = None if makes_tokenizer(options) else options.source
        return _made_shape(options.part(DecoderOptions), asked, tokens_of)
    folder = Path(options.llm)
    return decoder_shape(folder, asked) if folder.is_dir() and decoder_fault(options.llm) is None else DecoderShape()


def _made_shape(made: DecoderOptions, asked: SteerModelOptions, tokens_of: str | None) -> DecoderShape:
    """Of a language model that the chain makes, over the tokens of a base; None where a new tokenizer is made too."""
    n_around = None
    if tokens_of is not None and has_processor(Path(tokens_of)):
        tokenizer = plain_tokenizer(WhisperTokenizer.from_pretrained(tokens_of))
        n_around = len(surroundings(tokenizer, prompt_of(asked, None), asked.chat_template))
    return DecoderShape(made.decoder_width, N_POSITIONS, n_around)
