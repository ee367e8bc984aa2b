"""What searches of Whisper decoders share: how long a hypothesis may be, and token ids as texts."""

import math

from torch import Tensor
from transformers import WhisperTokenizer

from moe.system import DecodingOptions
from moe.systems.whisper.inputs import WhisperInputs

MIN_NEW_TOKENS = 16


def clean_texts(tokenizer: WhisperTokenizer, tokens: Tensor) -> list[str]:
    """Token ids (B, N) → texts without special tokens and outer spaces."""
    return [text.strip() for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def most_new_tokens(inputs: WhisperInputs, n_frames: int, options: DecodingOptions) -> int:
    """Bound on a hypothesis, from the length bucket of the longest utterance and so the same for every one of a bucket."""
    extractor = inputs.processor.feature_extractor
    longest_s: float = inputs.context.bucket(n_frames, extractor) * extractor.hop_length / extractor.sampling_rate
    return max(MIN_NEW_TOKENS, math.ceil(options.max_tokens_per_s * longest_s))
