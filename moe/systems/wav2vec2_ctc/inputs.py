"""What a CTC is fed: stacked log-mels, characters as labels, and in training the frames to mask."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from moe.audio.augmentation import AugmentationOptions
from moe.system import Batch
from moe.systems.wav2vec2_ctc.frames import WINDOW_S, Frames, extractor, features, frames_needed
from moe.systems.wav2vec2_ctc.masks import Masks
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary


class CTCInputs:
    """Inputs of a CTC; see `moe.system.Inputs`.

    Args:
        masks: what training masks.
    """

    def __init__(self, vocabulary: Vocabulary, frames: Frames, masks: Masks = Masks()) -> None:
        self.vocabulary, self.frames, self.masks = vocabulary, frames, masks
        self._extractor = extractor()

    @property
    def window_s(self) -> float:
        """Seconds of audio that one pass takes at most."""
        return WINDOW_S

    def example(self, waveform: np.ndarray, reference: str) -> Batch:
        """Features (T, D) and label ids of one utterance: waveform (n_samples,) at 16 kHz."""
        return {
            "features": features(waveform, self.frames, self._extractor),
            "labels": np.array(self.vocabulary.encode(reference), np.int64),
        }

    def augment(self, example: Batch, options: AugmentationOptions, random: np.random.Generator) -> Batch:
        """The example with the frames to mask (T,), and features (H,); the model masks them itself, and nothing else is changed."""
        return {**example, **self.masks.drawn(len(example["features"]), random)}

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """features (B, T, D), n_frames (B,), labels (B, N), n_labels (B,), and what training masks: mask (B, T), feature_mask (B, H)."""
        n_frames = [len(example["features"]) for example in examples]
        n_padded = self.frames.padded(max(n_frames))
        labels = [torch.from_numpy(example["labels"]) for example in examples]
        batch = {
            "features": _padded([example["features"] for example in examples], n_padded),  # (B, T, D)
            "n_frames": torch.tensor(n_frames),  # (B,)
            "labels": pad_sequence(labels, batch_first=True),  # (B, N)
            "n_labels": torch.tensor([len(row) for row in labels]),  # (B,)
        }
        if "mask" in examples[0]:
            batch["mask"] = _padded([example["mask"] for example in examples], n_padded)  # (B, T)
        if "feature_mask" in examples[0]:
            batch["feature_mask"] = torch.from_numpy(np.stack([example["feature_mask"] for example in examples]))  # (B, H)
        return batch

    def length(self, n_samples: int) -> int:
        """Frames that an utterance is padded to."""
        return self.frames.padded(self.frames.n_frames(n_samples))

    def refusal(self, n_samples: int, reference: str) -> str | None:
        """More labels than outputs: no path writes them, and the loss is infinite."""
        n_outputs = self.frames.n_outputs(self.frames.n_frames(n_samples))
        if frames_needed(self.vocabulary.encode(reference)) <= n_outputs:
            return None
        return f"have more labels, with a blank between equal ones, than outputs of {1000 * self.frames.output_s:g} ms"


def _padded(rows: Sequence[np.ndarray], length: int) -> torch.Tensor:
    """Rows of one kind padded with zeros at the end to one length."""
    return torch.from_numpy(np.stack([np.pad(row, [(0, length - len(row))] + [(0, 0)] * (row.ndim - 1)) for row in rows]))
