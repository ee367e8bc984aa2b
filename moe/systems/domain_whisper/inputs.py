"""What a domain-token Whisper is fed: log-mels as any Whisper, labels without a prompt, and whether the token is kept in training."""

from collections.abc import Sequence

import numpy as np
import torch
from transformers import WhisperProcessor

from moe.audio.augmentation import AugmentationOptions
from moe.system import Batch
from moe.systems.domain_whisper.prompts import Prompts
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.inputs import WhisperInputs
from moe.systems.whisper.tokens import text_ids

KEEPS = "keeps_token"
DOMAIN = "domain"  # of a batch: numbers (B,) of the domains that the manifest says


class DomainInputs(WhisperInputs):
    """Inputs of a domain-token Whisper; see `moe.system.Inputs`.

    Args:
        token_dropout: share of the utterances that train without their token; drawn anew in every epoch.
    """

    def __init__(
        self,
        processor: WhisperProcessor,
        context: AudioContextOptions,
        prompts: Prompts,
        max_positions: int,
        token_dropout: float = 0.0,
    ) -> None:
        super().__init__(processor, context, max_positions)
        self.prompts, self.token_dropout = prompts, token_dropout

    def example(self, waveform: np.ndarray, reference: str) -> Batch:
        """Log-mel (n_mels, n_frames), its frames that hold audio, and the text's ids with the end of text."""
        labels = text_ids(self.processor.tokenizer, reference)
        return super().example(waveform, reference) | {"labels": labels, KEEPS: True}

    def augment(self, example: Batch, options: AugmentationOptions, random: np.random.Generator) -> Batch:
        """Masks and gain, and the draw whether the token is kept."""
        keeps = bool(random.random() >= self.token_dropout)
        return super().augment(example, options, random) | {KEEPS: keeps}

    def collate(self, examples: Sequence[Batch]) -> Batch:
        """mel (B, n_mels, F), n_frames (B,), labels (B, N), keeps_token (B,)."""
        return super().collate(examples) | {KEEPS: torch.tensor([example[KEEPS] for example in examples])}

    def refusal(self, n_samples: int, reference: str) -> str | None:
        """A reference that the decoder cannot say to its end after the longest prompt."""
        n_positions = self.prompts.longest() + len(text_ids(self.processor.tokenizer, reference)) - 1
        if self.max_labels is None or n_positions <= self.max_labels:
            return None
        return f"have references of more than the decoder's {self.max_labels} tokens, prompt included"
