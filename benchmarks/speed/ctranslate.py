"""Greedy decoding beside CTranslate2, on the same random weights, log-mels and number of tokens: `pip install ctranslate2==4.8.5`.

CTranslate2 has no experts: what it decodes is the frozen base, ours the base and the whole mixture.
"""

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from benchmarks.speed.workbench import Workbench
from benchmarks.timing import Variants
from moe.experts.routed_lora import AdapterOptions
from moe.routing.options import RoutingOptions
from moe.systems.whisper_moe.model import WhisperMoE

OURS_BASE, OURS_MIXTURE, GENERATE = "greedy, base alone", "greedy, mixture", "generate, base alone"
FLOAT32, INT8 = "CTranslate2, fp32", "CTranslate2, int8"
N_TOKENS = 24
SPECIALS = {"<|notimestamps|>": -8, "<|transcribe|>": -7, "<|translate|>": -6, "<|nospeech|>": -5, "<|startofprev|>": -4,
            "<|startoflm|>": -3, "<|endoftext|>": -2, "<|startoftranscript|>": -1}  # fmt: skip


def variants(bench: Workbench) -> Variants:
    """Short utterances in their context, a fixed number of tokens each."""
    mel, n_frames = bench.short_mel()
    nothing = AdapterOptions(shared_expert=False)
    base = WhisperMoE(bench.base(), 0, nothing, RoutingOptions()).eval()
    return {
        OURS_BASE: ours(base, mel, n_frames),
        OURS_MIXTURE: ours(bench.mixture(shared=True).eval(), mel, n_frames),
        GENERATE: lambda: base.generate(base.route(mel, n_frames), max_new_tokens=N_TOKENS, min_new_tokens=N_TOKENS),
        FLOAT32: theirs(bench.base(), mel, "float32"),
        INT8: theirs(bench.base(), mel, "int8"),
    }


def ours(model: WhisperMoE, mel: Tensor, n_frames: Tensor) -> Callable[[], object]:
    """Our own loop."""

    def decode() -> object:
        with torch.no_grad():
            return model.greedy(model.encode(model.route(mel, n_frames)), prompt_of(model.base), N_TOKENS, N_TOKENS)

    return decode


def theirs(base: WhisperForConditionalGeneration, mel: Tensor, kind: str) -> Callable[[], object]:
    """The same weights in CTranslate2, in one thread."""
    import ctranslate2

    with tempfile.TemporaryDirectory() as folder:
        specification(base, None if kind == "float32" else kind).save(folder)
        model = ctranslate2.models.Whisper(folder, device="cpu", compute_type=kind, intra_threads=1, inter_threads=1)
    features, config = ctranslate2.StorageView.from_array(mel.numpy()), base.config
    prompt, end = prompt_of(base), config.eos_token_id
    options: dict[str, Any] = {"beam_size": 1, "max_length": 2 * N_TOKENS, "suppress_tokens": [end], "suppress_blank": False}

    def decode() -> object:
        found = model.generate(features, [prompt] * len(mel), return_scores=True, **options)
        assert [len(each.sequences_ids[0]) for each in found] == [N_TOKENS] * len(mel)  # it takes half of max_length
        return found

    return decode


def prompt_of(base: WhisperForConditionalGeneration) -> list[int]:
    """The start and no timestamps: with timestamps CTranslate2 follows rules of its own."""
    start: Any = base.config.decoder_start_token_id
    return [start, base.config.vocab_size + SPECIALS["<|notimestamps|>"]]


def specification(base: WhisperForConditionalGeneration, quantisation: str | None) -> Any:
    """The weights as CTranslate2 writes them, with made-up words for the tokens."""
    from ctranslate2.converters.transformers import WhisperLoader

    words = [f"token{number}" for number in range(base.config.vocab_size)]
    for word, place in SPECIALS.items():
        words[place] = word
    spec = WhisperLoader().get_model_spec(base)
    spec.register_vocabulary(words)
    spec.config.suppress_ids, spec.config.suppress_ids_begin, spec.config.lang_ids = [], [], []
    spec.config.alignment_heads = [(0, 0)]
    spec.validate()
    spec.optimize(quantization=quantisation)
    return spec
