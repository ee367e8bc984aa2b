"""What a language model reads, position by position: [beginning] audio prompt; textual prompt; [end]; text; end of text.

A sequence is a row of codes: a token's id, `AUDIO` for a place that the audio prompt fills, `PADDING` for none. Training and decoding
build it here, from the same ids, so labels cannot be longer than what is read, and what is padding does not depend on any token's id.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from moe.system import IGNORED, Batch

AUDIO, PADDING = -2, -1
AFTER = "after_audio"  # in a batch: what follows the audio prompts of single utterances
MARK = "<<audio>>"  # where a chat template is to have the audio prompt


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """Ids before and after the audio prompt; the textual prompt is among those after it."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    def opening(self, n_audio: int) -> list[int]:
        """All that is read before the text, with an audio prompt of `n_audio` vectors."""
        return [*self.before, *[AUDIO] * n_audio, *self.after]

    def __len__(self) -> int:
        return len(self.before) + len(self.after)


def surroundings(tokenizer: PreTrainedTokenizerBase, prompt: str, chat_template: str) -> Surroundings:
    """The ids around the audio prompt: those of the tokenizer's chat template, or its first token and the textual prompt.

    Raises:
        ValueError: the chat template does not leave the user's words as they are.
    """
    if chat_template == "none" or not getattr(tokenizer, "chat_template", None):
        return Surroundings(_first_ids(tokenizer), _ids(tokenizer, prompt))
    said = tokenizer.apply_chat_template([{"role": "user", "content": MARK + prompt}], tokenize=False, add_generation_prompt=True)
    before, mark, after = str(said).partition(MARK)
    if not mark:
        raise ValueError("chat_template=auto: the language model's template changes the user's words; set chat_template=none")
    return Surroundings(_ids(tokenizer, before), _ids(tokenizer, after))


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of a text and its end; of an empty text the end alone."""
    return [*_ids(tokenizer, text), tokenizer.eos_token_id]


def padded(rows: Sequence[Sequence[int]], left: bool = False, value: int = PADDING) -> Tensor:
    """Rows of codes as one tensor (B, N), padded on the right, or on the left."""
    batch = torch.full((len(rows), max(map(len, rows))), value)
    for row, codes in zip(batch, rows, strict=True):
        row[len(row) - len(codes) if left else 0 : len(row) if left else len(codes)] = torch.tensor(codes, dtype=torch.long)
    return batch


def training_rows(openings: Sequence[Sequence[int]], texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Sequences and labels, (B, N) each: labels by position, of text and end alone."""
    rows = [[*opening, *text] for opening, text in zip(openings, texts, strict=True)]
    labels = [[IGNORED] * len(opening) + list(text) for opening, text in zip(openings, texts, strict=True)]
    return padded(rows), padded(labels, value=IGNORED)


def with_prompts(batch: Batch) -> Batch:
    """The batch with the textual prompts of its own utterances, `AFTER` (B, n), in place of what follows their audio prompts."""
    if AFTER not in batch:
        return batch
    after, device = unpadded(batch[AFTER]), batch[AFTER].device
    usual = unpadded(batch["opening"])
    openings = [[*row[: _audio_end(row)], *own] for row, own in zip(usual, after, strict=True)]
    texts = [row[len(opening) :] for row, opening in zip(unpadded(batch["sequence"]), usual, strict=True)]
    sequence, labels = training_rows(openings, texts)
    made = {"opening": padded(openings, left=True), "sequence": sequence, "labels": labels}
    return {
        **{name: value for name, value in batch.items() if name != AFTER},
        **{name: each.to(device) for name, each in made.items()},
    }


def _audio_end(row: Sequence[int]) -> int:
    return len(row) - row[::-1].index(AUDIO)


def unpadded(codes: Tensor) -> list[list[int]]:
    """The rows (B, N) without their padding."""
    return [[code for code in row if code != PADDING] for row in codes.tolist()]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids) if text else ()


def _first_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts before any text: nothing, or the token that begins one."""
    begin = tokenizer.bos_token_id
    return (begin,) if begin is not None and tokenizer("a").input_ids[0] == begin else ()
