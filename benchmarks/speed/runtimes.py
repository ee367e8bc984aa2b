"""Greedy decoding beside CTranslate2, on the same short context and the same random weights; it comes with `requirements-export.txt`."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, AutoTokenizer, WhisperForConditionalGeneration

from benchmarks.speed.eight_bits import hold_in_eight_bits
from benchmarks.speed.variants import (
    EIGHT_BITS,
    OURS,
    OURS_EIGHT_BITS,
    OURS_HALF,
    OURS_ROUTED,
    OURS_ROUTED_HALF,
    PACKED,
)
from benchmarks.speed.workbench import Workbench, start_of
from benchmarks.timing import Variants
from moe.systems.whisper.conversion import to_ctranslate2
from moe.systems.whisper.encoder import encode
from moe.systems.whisper.greedy import greedy
from moe.training.precision import computing, hold_frozen
from steps.pretrain import SHIPPED


def variants(bench: Workbench) -> Variants:
    """Encoding and a fixed number of new tokens; the audio is as long as the model's window, so that nobody pads."""
    short, n_new = bench.with_window(bench.workload.short_s), bench.workload.n_labels
    base, mel = short.base().eval(), short.window_mel
    half, eight = (Workbench(short.shape, short.workload, short.device).base().eval() for _ in range(2))  # models of their own
    hold_frozen(half, "bf16")
    hold_in_eight_bits(eight)
    return {
        OURS: lambda: ours(base, mel, n_new),
        OURS_HALF: lambda: ours(half, mel, n_new, "bf16"),
        OURS_EIGHT_BITS: lambda: ours(eight, mel, n_new),
        OURS_ROUTED: _routed(short, "fp32"),
        OURS_ROUTED_HALF: _routed(
            Workbench(short.shape, short.workload, short.device), "bf16"
        ),  # a model of its own: its matrices are held in bf16
        PACKED: ctranslated(base, mel, n_new, "float32"),
        EIGHT_BITS: ctranslated(base, mel, n_new, "int8"),
    }


@torch.no_grad()
def ours(base: WhisperForConditionalGeneration, mel: torch.Tensor, n_new: int, precision: str = "fp32") -> list[list[int]]:
    """Token ids of our own loop."""
    with computing(mel.device, precision):
        return greedy(base, encode(base.model.encoder, mel), prompt(), n_new, n_new).tokens.tolist()


def ctranslated(base: WhisperForConditionalGeneration, mel: torch.Tensor, n_new: int, kind: str) -> Callable[[], list[list[int]]]:
    """The same by CTranslate2, in numbers of this kind, on one thread."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as folder:
        source, converted = Path(folder) / "whisper", Path(folder) / "converted"
        base.save_pretrained(source)
        AutoProcessor.from_pretrained(SHIPPED).save_pretrained(source)  # its few tokens are the first ids; only ids are compared
        to_ctranslate2(source, converted)
        model = ctranslate2.models.Whisper(
            str(converted), device=mel.device.type, compute_type=kind, inter_threads=1, intra_threads=1
        )
    features = ctranslate2.StorageView.from_array(np.ascontiguousarray(mel.cpu().numpy()))
    end = base.generation_config.eos_token_id

    def decode() -> list[list[int]]:
        found = model.generate(
            features, [prompt()] * len(mel), beam_size=1, max_length=2 * n_new, suppress_tokens=[end], suppress_blank=False
        )
        return [each.sequences_ids[0] for each in found]

    return decode


def prompt() -> list[int]:
    """Start and no timestamps, by the shipped tokenizer: CTranslate2 finds them by name, and without the second says timestamps."""
    tokens = AutoTokenizer.from_pretrained(SHIPPED).get_vocab()
    return [tokens["<|startoftranscript|>"], tokens["<|notimestamps|>"]]


def _routed(bench: Workbench, precision: str) -> Callable[[], None]:
    model = bench.mixture(shared=True).eval().use_precision(precision)
    mel, n_new = bench.window_mel, bench.workload.n_labels

    @torch.no_grad()
    def decode() -> None:
        encoded = model.encode(model.route(mel, bench.n_frames(mel.shape[-1])))
        model.greedy(encoded, start_of(model), n_new, n_new)

    return decode
