"""What SteerMoE is fed: the log-mel of a Whisper, and around its audio prompt the tokens of a language model."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase, WhisperProcessor

from moe.audio.augmentation import AugmentationOptions
from moe.system import Batch
from moe.systems.steer_moe.audio_prompt import n_vectors
from moe.systems.steer_moe.options import SequenceOptions
from moe.systems.steer_moe.sequence import Surroundings, padded, surroundings, text_ids, training_rows
from moe.systems.whisper.features import AudioContextOptions, valid_frames, window_frames
from moe.systems.whisper.inputs import WhisperInputs

PROMPT_COLUMN = "prompt"  # of a manifest: textual prompts of single utterances


@dataclasses.dataclass(frozen=True)
class Limits:
    """The longest that a sequence and its parts may be, and how audio becomes vectors.

    Attributes:
        stride: encoder frames in one vector of the audio prompt.
    """

    text: int
    sequence: int
    prompt: int
    stride: int

    @classmethod
    def of(cls, options: SequenceOptions, stride: int) -> "Limits":
        """Those that the options set."""
        return cls(options.max_text_tokens, options.max_sequence_tokens, options.max_prompt_tokens, stride)

    def n_vectors(self, n_mel_frames: int) -> int:
        """Vectors of an audio prompt."""
        return int(n_vectors(torch.tensor(n_mel_frames), self.stride))


class SteerInputs:
    """Inputs of SteerMoE; see `moe.system.Inputs`.

    Args:
        processor: the base's. context: how much audio its encoder takes.
        tokenizer: the language model's. around: what surrounds the audio prompt.
        prompt: the textual prompt of utterances that have none of their own.
    """

    own_columns = (PROMPT_COLUMN,)  # what of a manifest's row `refusal` takes beside the reference

    def __init__(
        self,
        processor: WhisperProcessor,
        context: AudioContextOptions,
        tokenizer: PreTrainedTokenizerBase,
        options: SequenceOptions,
        prompt: str,
        limits: Limits,
    ) -> None:
        self.whisper = WhisperInputs(processor, context)
        self.tokenizer, self.options, self.prompt, self.limits = tokenizer, options, prompt, limits
        self._around: dict[str, Surroundings] = {}

    @property
    def window_s(self) -> float:
        """Seconds of audio in the encoder's window, or in the longest audio prompt."""
        extractor = self.whisper.processor.feature_extractor
        longest: float = self.limits.prompt * self.limits.stride * 2 * extractor.hop_length / extractor.sampling_rate
        return min(self.whisper.window_s, longest)

    def around(self, prompt: str | None = None) -> Surroundings:
        """What surrounds the audio prompt with a textual prompt; None: the usual one."""
        text = self.prompt if prompt is None else prompt
        if text not in self._around:
            self._around[text] = surroundings(self.tokenizer, text, self.options.chat_template)
        return self._around[text]

    def example(self, waveform: np.ndarray, reference: str, prompt: str | None = None) -> Batch:
        """Log-mel (n_mels, n_frames), its frames that hold audio, what surrounds it, and the text's ids: waveform (n_samples,)."""
        example = self.whisper.features(waveform)
        opening = self.around(prompt).opening(self.limits.n_vectors(example["n_frames"]))
        return {**example, "opening": opening, "text": text_ids(self.tokenizer, reference)}

    def augment(self, example: Batch, options: AugmentationOptions, random: np.random.Generator) -> Batch:
        """SpecAugment and gain on a copy of the log-mel."""
        return self.whisper.augment(example, options, random)

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """mel (B, n_mels, F), n_frames (B,), opening (B, M) padded on the left, sequence and labels (B, N) padded on the right."""
        openings = [example["opening"] for example in examples]
        sequence, labels = training_rows(openings, [example["text"] for example in examples])
        return {
            **self.whisper.collate_features(examples),
            "opening": padded(openings, left=True),
            "sequence": sequence,
            "labels": labels,
        }

    def width(self, batch: Batch) -> int:
        """Mel frames that a batch is padded to."""
        return self.whisper.width(batch)

    def widened(self, batch: Batch, width: int) -> Batch:
        """The batch with more silence: mel (B, n_mels, F) → (B, n_mels, width)."""
        return self.whisper.widened(batch, width)

    def length(self, n_samples: int) -> int:
        """Mel frames of the length bucket."""
        return self.whisper.length(n_samples)

    def refusal(self, n_samples: int, reference: str, prompt: str | None = None) -> str | None:
        """Text, audio prompt or the whole of it is longer than allowed; nothing is ever cut."""
        limits, extractor = self.limits, self.whisper.processor.feature_extractor
        n_audio = limits.n_vectors(min(valid_frames(n_samples, extractor), window_frames(extractor)))
        n_text = len(text_ids(self.tokenizer, reference))
        found = {
            "max_text_tokens": (n_text - 1, limits.text, "tokens of text"),
            "max_prompt_tokens": (n_audio, limits.prompt, "vectors of audio prompt"),
            "max_sequence_tokens": (n_audio + len(self.around(prompt)) + n_text, limits.sequence, "places in the sequence"),
        }
        reasons = [f"more than {name}={most} {unit}" for name, (n, most, unit) in found.items() if n > most]
        return f"have {' and '.join(reasons)}" if reasons else None
