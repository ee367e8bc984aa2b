"""A whole system in one file: a linear CTC over spectra, with inputs, tokenizer and request parameter of its own.

What it takes to move in: inputs, a module, the methods of `moe.system.System`, `build`, `load`, and one row in the table.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from moe.audio.augmentation import AugmentationOptions
from moe.files import write_whole_dir
from moe.options import Options, option
from moe.system import Ask, Batch, DecodingOptions, Hypothesis, ParameterGroup, Record, read_record, write_record
from moe.systems.table import Row
from moe.training.processes import mean_of_batch

NAME, WEIGHTS = "toy_ctc", "weights.safetensors"
FRAME, N_BINS = 640, 64  # samples of a frame; bins of its spectrum that are kept
BLANK, LETTERS = 0, " abcdefghijklmnopqrstuvwxyz"


@dataclasses.dataclass(frozen=True)
class ToyAsk(Options):
    """What may be asked of it."""

    capitals: bool = option(False, "write in capitals")


class ToyInputs:
    """Spectra of frames, and letters as labels; any length."""

    window_s = None

    def example(self, waveform: np.ndarray, reference: str) -> Batch:
        frames = np.pad(waveform, (0, -len(waveform) % FRAME)).reshape(-1, FRAME)
        spectra = np.log1p(np.abs(np.fft.rfft(frames))[:, :N_BINS]).astype(np.float32)  # (T, N_BINS)
        return {"frames": spectra, "labels": [1 + LETTERS.index(letter) for letter in reference if letter in LETTERS]}

    def augment(self, example: Batch, options: AugmentationOptions, random: np.random.Generator) -> Batch:
        return example

    def collate(self, examples: Sequence[Batch]) -> Batch:
        rows = [torch.from_numpy(example["frames"]) for example in examples]
        labels = [torch.tensor(example["labels"], dtype=torch.long) for example in examples]
        return {
            "frames": nn.utils.rnn.pad_sequence(rows, batch_first=True),  # (B, T, N_BINS)
            "n_frames": torch.tensor([len(row) for row in rows]),
            "labels": nn.utils.rnn.pad_sequence(labels, batch_first=True),  # (B, N)
            "n_labels": torch.tensor([len(row) for row in labels]),
        }

    def length(self, n_samples: int) -> int:
        return -(-n_samples // FRAME)

    def refusal(self, n_samples: int, reference: str) -> str | None:
        return "have more letters than frames" if 2 * len(reference) > self.length(n_samples) else None


class ToyCTC(nn.Module):
    """Frames (B, T, N_BINS) → log-probabilities (B, T, letters and blank)."""

    accepts_loss_kwargs = False

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(N_BINS, 1 + len(LETTERS))

    def log_probabilities(self, frames: Tensor) -> Tensor:
        return self.head(frames).log_softmax(-1)

    def forward(
        self, frames: Tensor, n_frames: Tensor, labels: Tensor, n_labels: Tensor, utterance_ids: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        said = self.log_probabilities(frames).transpose(0, 1)  # (T, B, V)
        losses = F.ctc_loss(said, labels, n_frames, n_labels, BLANK, reduction="none", zero_infinity=True) / n_labels.clamp_min(1)
        return {"loss": mean_of_batch(losses.mean(), len(losses)), "utterance_loss": losses.detach()}


class ToySystem:
    """The system; see `moe.system.System`."""

    ask_type = ToyAsk

    def __init__(self, module: ToyCTC, record: Record, learning_rate: float = 0.0) -> None:
        self.module, self.record, self.inputs, self.learning_rate = module, record, ToyInputs(), learning_rate

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup("head", tuple(self.module.parameters()), self.learning_rate)] if self.learning_rate else []

    @torch.no_grad()
    def decode(self, batch: Batch, options: DecodingOptions, ask: Ask, with_loss: bool = False) -> list[Hypothesis]:
        said = self.module.log_probabilities(batch["frames"])  # (B, T, V)
        losses = self.module(**batch)["utterance_loss"].tolist() if with_loss else [float("nan")] * len(said)
        rows = zip(batch["utterance_ids"], said, batch["n_frames"].tolist(), losses, strict=True)
        return [self._hypothesis(name, row[:n_frames], loss, ask) for name, row, n_frames, loss in rows]

    def check(self, ask: Ask, beam_size: int = 1) -> None:
        pass

    def ablations(self) -> Mapping[str, Ask]:
        return {}

    def measures(self, hypotheses: Sequence[Hypothesis]) -> dict[str, float]:
        return {"blank_share": float(np.mean([hypothesis.details["blank_share"] for hypothesis in hypotheses]))}

    def describe(self) -> dict[str, str]:
        return {"frame": f"{FRAME} samples"}

    def place(self, device: torch.device | str, precision: str) -> None:
        self.module.to(device)

    def save(self, folder: Path) -> None:
        with write_whole_dir(folder) as aside:
            save_file(self.module.state_dict(), aside / WEIGHTS)
            write_record(aside, self.record)

    def _hypothesis(self, name: str, said: Tensor, loss: float, ask: Ask) -> Hypothesis:
        best, path = said.max(-1)  # (T,)
        kept = [letter for at, letter in enumerate(path.tolist()) if letter != BLANK and (at == 0 or letter != path[at - 1])]
        text = "".join(LETTERS[letter - 1] for letter in kept).strip()
        details = {"blank_share": float((path == BLANK).float().mean())}
        return Hypothesis(name, text.upper() if ask.capitals else text, None, loss, float(best.mean()), len(path), None, details)


def build(seed: int, learning_rate: float) -> ToySystem:
    """An untrained one."""
    return ToySystem(ToyCTC(seed), Record(NAME, "toy CTC", "candidate", "en", "basic"), learning_rate)


def load(folder: Path) -> ToySystem:
    """A saved one."""
    system = ToySystem(ToyCTC(0), read_record(folder))
    system.module.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return system


ROW = Row(load, ToyAsk)
