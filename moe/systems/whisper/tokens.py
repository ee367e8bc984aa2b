"""Tokenizers of our own (characters, small byte-level BPE) and the one prompt that training and decoding share."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GenerationConfig, WhisperConfig, WhisperTokenizer
from transformers.models.whisper.modeling_whisper import shift_tokens_right

from moe.system import IGNORED

END, START = "<|endoftext|>", "<|startoftranscript|>"
TASKS = ("<|translate|>", "<|transcribe|>")
NO_TIMESTAMPS = "<|notimestamps|>"
TASK = "transcribe"
ENGLISH_VOCABULARY = 51_864  # of the hub's models of English alone: it has tokens of languages, and no model of it ever saw one
CHECKPOINT, CHARACTERS = "checkpoint", "characters"
TOKENIZERS = (CHECKPOINT, CHARACTERS, "bpe")


def train_tokenizer(texts: Iterable[str], kind: str, n_merges: int, language: str) -> WhisperTokenizer:
    """A Whisper tokenizer learnt from texts: all 256 bytes, so that no text is unspeakable, then merges, then the specials.

    Args:
        texts: normalised references of the train split.
        kind: `characters` merges the bytes of each character seen and nothing more; `bpe` learns `n_merges` merges.
        language: two-letter code, becomes the language token.
    """
    texts = [" " + text for text in texts]
    merges = _character_merges(texts) if kind == "characters" else _bpe_merges(texts, n_merges)
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
    specials = [END, START, f"<|{language}|>", *TASKS, "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", NO_TIMESTAMPS]
    vocabulary = {symbol: index for index, symbol in enumerate(dict.fromkeys(symbols + specials))}
    tokenizer = WhisperTokenizer(
        vocab=vocabulary, merges=merges, add_prefix_space=True, pad_token=END, additional_special_tokens=specials[1:]
    )
    tokenizer.language, tokenizer.task = (
        language,
        TASK,
    )  # set here: the class counts its own hundred languages from the start token
    return tokenizer


def _bpe_merges(texts: Sequence[str], n_merges: int) -> list[tuple[str, str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=len(alphabet) + n_merges, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def _character_merges(texts: Sequence[str]) -> list[tuple[str, str]]:
    to_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges: dict[tuple[str, str], None] = {}
    for character in sorted(set("".join(texts))):
        symbols = to_symbols.pre_tokenize_str(character)[0][0]
        for end in range(1, len(symbols)):  # join a character's bytes from the left, one merge a byte
            merges[symbols[:end], symbols[end]] = None
    return list(merges)


def generation_config(tokenizer: WhisperTokenizer, max_target_positions: int, language: str) -> GenerationConfig:
    """What `generate` needs for a tokenizer of ours; nothing suppressed, no timestamps."""
    token_id, spoken = tokenizer.convert_tokens_to_ids, f"<|{language}|>"
    end, known = token_id(END), spoken in tokenizer.get_vocab() and len(tokenizer) != ENGLISH_VOCABULARY
    languages = {"lang_to_id": {spoken: token_id(spoken)}} if known else {}  # an empty table makes `generate` find token 0
    return GenerationConfig(
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=token_id(START),
        max_length=max_target_positions,
        is_multilingual=known,
        **languages,
        task_to_id={"transcribe": token_id("<|transcribe|>"), "translate": token_id("<|translate|>")},
        language=language if known else None,
        task=TASK if known else None,
        no_timestamps_token_id=token_id(NO_TIMESTAMPS),
        prev_sot_token_id=token_id("<|startofprev|>"),
        return_timestamps=False,
    )


def token_ids(tokenizer: WhisperTokenizer, *tokens: str) -> list[int]:
    """Ids of tokens by their names."""
    ids: Any = tokenizer.convert_tokens_to_ids(list(tokens))
    return list(ids)


def language_ids(generation: GenerationConfig) -> dict[str, int]:
    """Ids of a base's language tokens, by language code; empty where it knows one language and has no token for it."""
    known = getattr(generation, "lang_to_id", None) if getattr(generation, "is_multilingual", False) else None
    return {token.strip("<|>"): number for token, number in (known or {}).items()}


def prompt_ids(tokenizer: WhisperTokenizer) -> list[int]:
    """The decoder's prompt: start, language and task where the tokenizer has them, no timestamps.

    By the names of the tokens: `tokenizer.prefix_tokens` counts from the start token and fits only the vocabularies of the hub.
    """
    spoken = [f"<|{tokenizer.language}|>", f"<|{tokenizer.task}|>"] if tokenizer.language else []
    return token_ids(tokenizer, START, *spoken, NO_TIMESTAMPS)


def decoder_inputs(config: WhisperConfig, labels: Tensor) -> Tensor:
    """What the decoder reads to say the labels: one step behind them, the start token first; (B, N) → (B, N)."""
    padding: Any = config.pad_token_id  # every Whisper has one
    inputs: Tensor = shift_tokens_right(labels, padding, config.decoder_start_token_id)
    return inputs


def label_ids(tokenizer: WhisperTokenizer, reference: str) -> list[int]:
    """What the decoder must say after the start token: the rest of the prompt, the text, end of text."""
    return [*prompt_ids(tokenizer)[1:], *text_ids(tokenizer, reference)]  # the model prepends the start token itself


def text_ids(tokenizer: WhisperTokenizer, reference: str) -> list[int]:
    """The text and the end of text."""
    return [*tokenizer(reference, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def label_batch(labels: Sequence[Sequence[int]]) -> Tensor:
    """Label ids, (B, N), masked by length: end of text is learnt even where it is also the padding token."""
    batch = torch.full((len(labels), max(map(len, labels))), IGNORED)
    for row, ids in zip(batch, labels, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return batch
