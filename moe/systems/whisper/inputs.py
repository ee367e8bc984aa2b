"""What a Whisper is fed: log-mels in a context of the utterance's own length, and labels that start with the prompt."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import WhisperProcessor

from moe.audio.augmentation import AugmentationOptions, augment
from moe.system import Batch
from moe.systems.whisper.features import (
    LOG_MEL_FLOOR,
    LOG_MEL_RANGE,
    AudioContextOptions,
    log_mel,
    pad_silence,
    valid_frames,
    window_seconds,
)
from moe.systems.whisper.tokens import label_batch, label_ids


class WhisperInputs:
    """Inputs of a Whisper; see `moe.system.Inputs`.

    Args:
        max_labels: tokens that the decoder can say.
    """

    def __init__(self, processor: WhisperProcessor, context: AudioContextOptions, max_labels: int | None = None) -> None:
        self.processor, self.context, self.max_labels = processor, context, max_labels

    @property
    def window_s(self) -> float:
        """Seconds of audio in the encoder's window."""
        return window_seconds(self.processor.feature_extractor)

    def example(self, waveform: np.ndarray, reference: str) -> Batch:
        """Log-mel (n_mels, n_frames), its frames that hold audio, and label ids: waveform (n_samples,) at 16 kHz."""
        return {**self.features(waveform), "labels": label_ids(self.processor.tokenizer, reference)}

    def features(self, waveform: np.ndarray) -> Batch:
        """Log-mel (n_mels, n_frames) and its frames that hold audio: waveform (n_samples,) at 16 kHz."""
        extractor = self.processor.feature_extractor
        mel = log_mel(waveform, extractor)
        return {"mel": mel, "n_frames": min(valid_frames(len(waveform), extractor), mel.shape[1])}

    def augment(self, example: Batch, options: AugmentationOptions, random: np.random.Generator) -> Batch:
        """SpecAugment and gain on a copy of the log-mel."""
        return {**example, "mel": augment(example["mel"], options, random)}

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """mel (B, n_mels, F), n_frames (B,), labels (B, N)."""
        return {
            **self.collate_features(examples),
            "labels": label_batch([example["labels"] for example in examples]),
        }  # labels (B, N)

    def collate_features(self, examples: Sequence[Batch]) -> Batch:
        """mel (B, n_mels, F), n_frames (B,)."""
        n_frames = self.context.n_frames(max(example["n_frames"] for example in examples), self.processor.feature_extractor)
        return {
            "mel": torch.from_numpy(np.stack([pad_silence(example["mel"], n_frames) for example in examples])),  # (B, n_mels, F)
            "n_frames": torch.tensor([example["n_frames"] for example in examples]),  # (B,)
        }

    def width(self, batch: Batch) -> int:
        """Mel frames that a batch is padded to."""
        return int(batch["mel"].shape[2])

    def widened(self, batch: Batch, width: int) -> Batch:
        """The batch with more silence, which the encoder takes for audio: mel (B, n_mels, F) → (B, n_mels, width)."""
        mel = batch["mel"]
        silence = (mel.amax((1, 2)) - LOG_MEL_RANGE).clamp_min(LOG_MEL_FLOOR)  # (B,), as `pad_silence` has it
        more = silence[:, None, None].expand(-1, mel.shape[1], max(0, width - mel.shape[2]))
        return {**batch, "mel": torch.cat([mel, more], 2)}

    def length(self, n_samples: int) -> int:
        """Mel frames of the length bucket; under a full context too, where utterances of one bucket share the bound of their text."""
        extractor = self.processor.feature_extractor
        return self.context.bucket(valid_frames(n_samples, extractor), extractor)

    def refusal(self, n_samples: int, reference: str) -> str | None:
        """A reference that the decoder cannot say to its end."""
        if self.max_labels is None or len(label_ids(self.processor.tokenizer, reference)) <= self.max_labels:
            return None
        return f"have references of more than the decoder's {self.max_labels} tokens"
