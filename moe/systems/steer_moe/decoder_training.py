"""Making a small language model: a Llama over the base's own tokens, trained to write what it reads in pseudo-audio, then frozen."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast, WhisperTokenizer

from moe.audio.augmentation import generator
from moe.options import Options, option
from moe.system import Batch
from moe.systems.steer_moe.language_model import generate, token_table, utterance_losses
from moe.systems.steer_moe.options import UNITS
from moe.systems.steer_moe.pseudo_audio import MOST_NOISE, READ_SHARE, Units, pseudo_audio
from moe.systems.steer_moe.sequence import Surroundings, text_ids, training_rows
from moe.systems.whisper.tokens import END
from moe.training.batches import Draw
from moe.training.hooks import Report, TrainingHooks
from moe.training.processes import mean_of_batch

N_POSITIONS = 512
BATCH = 50  # sentences written together


@dataclasses.dataclass(frozen=True)
class DecoderOptions(Options):
    """The language model that is made here."""

    group = "decoder"

    decoder_layers: int = option(4, "layers of a language model from scratch", low=1)
    decoder_width: int = option(160, "width of a language model from scratch", low=8)
    decoder_heads: int = option(4, "attention heads of a language model from scratch", low=1)
    decoder_units: str = option(
        "phonemes", "units of the pseudo-audio that it learns to read; letters for any language, none for none", choices=UNITS
    )
    decoder_updates: int = option(900, "updates of a language model from scratch", low=1)
    decoder_batch_size: int = option(32, "sentences per batch", low=1)
    llm_learning_rate: float = option(3e-3, "learning rate of a language model from scratch", above=0)

    def faults(self) -> list[str]:
        """Heads that do not divide the width into even parts."""
        if self.decoder_width % (2 * self.decoder_heads):
            return [f"decoder_heads={self.decoder_heads}: decoder_width={self.decoder_width} must be an even multiple of it"]
        return []


def new_decoder(tokenizer: PreTrainedTokenizerBase, n_units: int, options: DecoderOptions) -> LlamaForCausalLM:
    """A Llama with random weights; ids from `len(tokenizer)` on are the units of pseudo-audio."""
    config = LlamaConfig(
        vocab_size=len(tokenizer) + n_units,
        hidden_size=options.decoder_width,
        intermediate_size=8 * -(-options.decoder_width // 3),
        num_hidden_layers=options.decoder_layers,
        num_attention_heads=options.decoder_heads,
        max_position_embeddings=N_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return LlamaForCausalLM(config)


def plain_tokenizer(tokenizer: WhisperTokenizer) -> PreTrainedTokenizerBase:
    """The base's own tokens without Whisper's prompt."""
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token=END, pad_token=END)


class LossLog(TrainingHooks):
    """Reports the loss as it comes."""

    title = "decoder"

    def __init__(self, report: Report) -> None:
        self.report = report

    def metrics(self, values: dict[str, float], update: int) -> None:
        self.report(update, {f"train/{name}": value for name, value in values.items()})


class Sentences:
    """Sentences and their pseudo-audio as a data set; what is drawn of a sentence follows from seed, epoch and sentence.

    Args:
        spelled: numbers of each sentence's units.
        reads: whether all sentences follow pseudo-audio, or `READ_SHARE` of them.
    """

    def __init__(
        self,
        texts: Sequence[str],
        spelled: Sequence[np.ndarray],
        units: Units,
        tokenizer: PreTrainedTokenizerBase,
        around: Surroundings,
        width: int,
        seed: int,
        reads: bool = False,
    ) -> None:
        self.texts, self.spelled, self.units, self.around = list(texts), list(spelled), units, around
        self.width, self.seed, self.reads = width, seed, reads
        self.tokens = [text_ids(tokenizer, text) for text in texts]

    @property
    def inputs(self) -> Self:
        """It makes its own batches."""
        return self

    @property
    def extras(self) -> Mapping[str, Tensor]:
        """None."""
        return {}

    @property
    def durations(self) -> np.ndarray:
        """Lengths by which batches are made, (N,)."""
        return np.array([len(units) + len(tokens) for units, tokens in zip(self.spelled, self.tokens, strict=True)], float)

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, Draw) else Draw(draw, 0)
        text, units = self.texts[draw.index], self.spelled[draw.index]
        random = generator(self.seed, draw.epoch, text)
        if not len(units) or not (self.reads or random.random() < READ_SHARE):
            frames = np.zeros((0, len(self.units)), np.float32)
        else:
            frames = pseudo_audio(units, len(self.units), random)
        noise = random.uniform(0, MOST_NOISE) * random.standard_normal((len(frames), self.width))
        tokens = self.tokens[draw.index]
        return {"utterance_id": text, "frames": frames, "noise": noise.astype(np.float32), "tokens": tokens}

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """frames (n, U) and noise (n, D) of all sentences in a row; sequence and labels, (B, N) each."""
        openings = [self.around.opening(len(example["frames"])) for example in examples]
        sequence, labels = training_rows(openings, [example["tokens"] for example in examples])
        frames, noise = (torch.from_numpy(np.concatenate([each[name] for each in examples])) for name in ("frames", "noise"))
        return {"frames": frames, "noise": noise, "sequence": sequence, "labels": labels}


class Reader(nn.Module):
    """The language model as it learns to read pseudo-audio.

    Args:
        n_text: ids of text; those above are the units.
    """

    accepts_loss_kwargs = False

    def __init__(self, decoder: LlamaForCausalLM, n_text: int) -> None:
        super().__init__()
        self.decoder, self.n_text = decoder, n_text

    def forward(
        self, frames: Tensor, noise: Tensor, sequence: Tensor, labels: Tensor, utterance_ids: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        """Losses of a batch: loss () and utterance_loss (B,).

        Args:
            frames: mixtures of units, (n, U). noise: (n, D), in units of the embeddings' own spread.
            sequence, labels: (B, N).
        """
        losses = utterance_losses(self.decoder, sequence, labels, self.prompts(frames, noise))
        return {"loss": mean_of_batch(losses.mean(), len(losses)), "utterance_loss": losses.detach()}

    def prompts(self, frames: Tensor, noise: Tensor) -> Tensor:
        """What is read in place of audio, (n, D)."""
        units = token_table(self.decoder)[self.n_text :]  # (U, D)
        if not len(units):
            return noise
        return frames @ units + units.detach().square().mean().sqrt() * noise

    @torch.no_grad()
    def write(self, sentences: Sentences, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> list[str]:
        """What it writes of the pseudo-audio of sentences."""
        self.eval()
        found: list[str] = []
        for start in range(0, len(sentences), BATCH):
            items = [sentences[number] for number in range(start, min(start + BATCH, len(sentences)))]
            batch = sentences.collate(items)
            openings = [sentences.around.opening(len(item["frames"])) for item in items]
            prompts = self.prompts(*(batch[name].to(self.decoder.device) for name in ("frames", "noise")))
            end = int(tokenizer.eos_token_id)
            tokens = generate(self.decoder, openings, prompts, self.n_text, end, max_new_tokens)
            found += [str(tokenizer.decode(row)).strip() for row in tokens]
        return found
