"""What `main` refuses of a SteerMoE before anything has run: faults between base, language model and options."""

from pathlib import Path
from typing import Any

from transformers import WhisperTokenizer

from moe.systems.steer_moe.decoder import decoder_fault
from moe.systems.steer_moe.decoder_training import N_POSITIONS, DecoderOptions, plain_tokenizer
from moe.systems.steer_moe.options import WHISPER, SteerModelOptions
from moe.systems.steer_moe.sequence import surroundings
from moe.systems.steer_moe.shapes import DecoderShape, decoder_shape, encoder_shape, prompt_of, shape_faults
from moe.systems.whisper.base_source import has_processor
from steps.chain.stages import makes_decoder, makes_tokenizer


def steer_faults(options: Any) -> list[str]:
    """What does not go together; of what is not on this machine it shows when that is loaded.

    Args:
        options: `steps.main.StepOptions`, whose fields are those of all stages.
    """
    encoder = encoder_shape(options.source)
    if encoder is None:
        return []
    try:
        asked = options.part(SteerModelOptions)
        return shape_faults(asked, encoder, None if asked.writer == WHISPER else _decoder_shape(options, asked))
    except ValueError:
        return []  # said of the stage itself


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
