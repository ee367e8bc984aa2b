"""Decoding beside CTranslate2, on the same short context and the same random weights; it comes with `requirements-export.txt`."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, AutoTokenizer, WhisperForConditionalGeneration

from benchmarks.speed.eight_bits import hold_in_eight_bits
from benchmarks.speed.variants import (
    EIGHT_BITS,
    GENERATE_BEAMS,
    GENERATE_ROUTED_BEAMS,
    OURS,
    OURS_BEAMS,
    OURS_EIGHT_BITS,
    OURS_HALF,
    OURS_ROUTED,
    OURS_ROUTED_BEAMS,
    OURS_ROUTED_HALF,
    PACKED,
    PACKED_BEAMS,
)
from benchmarks.speed.workbench import Workbench, start_of
from benchmarks.timing import Variants
from moe.systems.whisper.beams import beams
from moe.systems.whisper.conversion import to_ctranslate2
from moe.systems.whisper.encoder import encode
from moe.systems.whisper.greedy import greedy
from moe.systems.whisper.next_token import NextToken
from moe.training.precision import computing, hold_frozen
from steps.pretrain import SHIPPED

N_SEARCHED = 5  # beams


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


def beam_variants(bench: Workbench) -> Variants:
    """The same with beams; `generate` gives no probabilities."""
    short, n_new = bench.with_window(bench.workload.short_s), bench.workload.n_labels
    base, mel, routed = short.base().eval(), short.window_mel, short.mixture(shared=True).eval()
    options = {"max_new_tokens": n_new, "min_new_tokens": n_new, "num_beams": N_SEARCHED}

    @torch.no_grad()
    def by_generate() -> None:
        routed.generate(routed.route(mel, short.n_frames(mel.shape[-1])), **options)

    return {
        OURS_BEAMS: lambda: ours(base, mel, n_new, n_beams=N_SEARCHED),
        GENERATE_BEAMS: lambda: base.generate(input_features=mel, **options).tolist(),
        PACKED_BEAMS: ctranslated(base, mel, n_new, "float32", N_SEARCHED),
        OURS_ROUTED_BEAMS: _routed(short, "fp32", N_SEARCHED),
        GENERATE_ROUTED_BEAMS: by_generate,
    }


@torch.no_grad()
def ours(
    base: WhisperForConditionalGeneration, mel: torch.Tensor, n_new: int, precision: str = "fp32", n_beams: int = 1
) -> list[list[int]]:
    """Token ids of our own search."""
    with computing(mel.device, precision):
        next_token = NextToken(base, encode(base.model.encoder, mel), prompt(), n_new, n_new)
        return (greedy(next_token) if n_beams == 1 else beams(next_token, n_beams)).tokens.tolist()


def ctranslated(
    base: WhisperForConditionalGeneration, mel: torch.Tensor, n_new: int, kind: str, n_beams: int = 1
) -> Callable[[], list[list[int]]]:
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
            features, [prompt()] * len(mel), beam_size=n_beams, max_length=2 * n_new, suppress_tokens=[end], suppress_blank=False
        )
        return [each.sequences_ids[0] for each in found]

    return decode


def prompt() -> list[int]:
    """Start and no timestamps, by the shipped tokenizer: CTranslate2 finds them by name, and without the second says timestamps."""
    tokens = AutoTokenizer.from_pretrained(SHIPPED).get_vocab()
    return [tokens["<|startoftranscript|>"], tokens["<|notimestamps|>"]]


def _routed(bench: Workbench, precision: str, n_beams: int = 1) -> Callable[[], None]:
    model = bench.mixture(shared=True).eval().use_precision(precision)
    mel, n_new = bench.window_mel, bench.workload.n_labels

    @torch.no_grad()
    def decode() -> None:
        encoded = model.encode(model.route(mel, bench.n_frames(mel.shape[-1])))
        model.say(encoded, start_of(model), n_new, n_beams, n_new)

    return decode
