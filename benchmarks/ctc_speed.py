"""What the CTC's batches, experts and decoding cost, as ratios within one process: benchmarks/results/ctc_speed.md.

    python -m benchmarks.ctc_speed

Random weights, but for the Whisper that is decoded: the shipped base, of the CTC's size, on the same synthetic sentences.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Wav2Vec2BertForCTC

from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import Claim, figure, record, write
from benchmarks.timing import alternate, machine, one_thread
from moe.experts.routed_lora import AdapterOptions
from moe.recognition.decoding import decode
from moe.recognition.recognizer import WaveformSet
from moe.routing.gate import Gate, GateConfig
from moe.routing.options import RoutingOptions
from moe.synthesis.grammar import grammars
from moe.synthesis.rendering import render
from moe.synthesis.voices import keyed_generator, make_speaker
from moe.system import Batch, DecodingOptions, System
from moe.systems.wav2vec2_ctc.building import build
from moe.systems.wav2vec2_ctc.frames import Frames
from moe.systems.wav2vec2_ctc.mixture import CTCMixture
from moe.systems.wav2vec2_ctc.model import CTCModel, new_network
from moe.systems.wav2vec2_ctc.options import CTCModelOptions
from moe.systems.wav2vec2_ctc.vocabulary import Vocabulary
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper_moe.zero_shot import base_system

REPEATS, BATCH, N_UTTERANCES, N_TOKENS, WINDOW_S = 7, 16, 128, 60, 30.0
LARGER = CTCModelOptions(
    ctc_model="scratch", ctc_width=384, ctc_layers=6, ctc_heads=6, ctc_ffn=1536
)  # experts are measured on it
R, N_EXPERTS, TARGETS = 16, 8, "linear_q,linear_v"
BASE_DIR = Path("base/synthetic-en")
CLAIMS = (
    Claim("training step on utterances of 1 to 4 s, padded to the longest, against padding to 30 s", "dynamic", "30 s", 0.3),
    Claim("pass over utterances of 1 to 12 s in batches of similar length, against shuffled ones", "grouped", "shuffled", 0.9),
    Claim(
        "training step of top 2 of 8 experts, gate included, against one LoRA of an expert's rank by PEFT",
        "mixture",
        "LoRA",
        1.05,
    ),
    Claim("greedy decoding, features included, against a Whisper of the same size", "CTC", "Whisper", 0.5),
)


def batch_of(frames: Frames, seconds: np.ndarray, padded_s: float | None = None) -> Batch:
    """Random features and labels of utterances, padded to the longest or to `padded_s`."""
    random = torch.Generator().manual_seed(0)
    n_frames = [frames.n_frames(round(each * 16_000)) for each in seconds]
    length = frames.padded(max(n_frames) if padded_s is None else frames.n_frames(round(padded_s * 16_000)))
    n_labels = [max(1, n // 3) for n in n_frames]
    return {
        "features": torch.randn(len(seconds), length, 80 * frames.stack, generator=random),
        "n_frames": torch.tensor(n_frames),
        "labels": torch.randint(3, N_TOKENS, (len(seconds), max(n_labels)), generator=random),
        "n_labels": torch.tensor(n_labels),
    }


def step(model: torch.nn.Module, *batches: Batch) -> Callable[[], None]:
    """Forward and backward over batches."""

    def run() -> None:
        for batch in batches:
            loss: Tensor = model(**batch)["loss"]
            loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def padding() -> dict[str, list[float]]:
    """One batch, padded in two ways."""
    model = CTCModel(new_network(CTCModelOptions(ctc_model="scratch"), N_TOKENS).network).train()
    seconds = np.random.default_rng(0).uniform(1, 4, BATCH)
    batches = {"dynamic": batch_of(model.frames, seconds), "30 s": batch_of(model.frames, seconds, WINDOW_S)}
    return alternate({name: step(model, batch) for name, batch in batches.items()}, REPEATS)


def grouping() -> dict[str, list[float]]:
    """The same utterances in two orders."""
    model = CTCModel(new_network(CTCModelOptions(ctc_model="scratch"), N_TOKENS).network).train()
    shuffled = np.random.default_rng(0).uniform(1, 12, N_UTTERANCES)
    orders = {"grouped": np.sort(shuffled), "shuffled": shuffled}
    batches = {
        name: [batch_of(model.frames, seconds[at : at + BATCH]) for at in range(0, N_UTTERANCES, BATCH)]
        for name, seconds in orders.items()
    }
    return alternate({name: step(model, *each) for name, each in batches.items()}, REPEATS)


def experts() -> dict[str, list[float]]:
    """Routed experts and PEFT's own LoRA on the same network."""
    lora = CTCModel(_frozen())
    lora.network = get_peft_model(lora.network, LoraConfig(r=R, lora_alpha=2 * R, target_modules=TARGETS.split(",")))  # type: ignore[assignment]
    adapters = AdapterOptions(lora_r=R, lora_alpha=2 * R, lora_targets=TARGETS, shared_expert=False)
    gate = Gate(GateConfig(2 * LARGER.ctc_width, N_EXPERTS))
    mixture = CTCMixture(_frozen(), adapters, N_EXPERTS, RoutingOptions(top_k=2), gate)
    batch = batch_of(mixture.frames, np.full(BATCH, 6.0))
    return alternate({"mixture": step(mixture.train(), batch), "LoRA": step(lora.train(), batch)}, REPEATS)


def decoding() -> dict[str, list[float]]:
    """Both systems over the same recordings."""
    speaker = make_speaker("bench", "typical", ("bench",), grammars()["en"].accents)
    texts = grammars()["en"].distinct(keyed_generator("bench"), BATCH)
    waveforms = [render(speaker, text, number).samples for number, text in enumerate(texts)]
    base = load_base(str(BASE_DIR))
    whisper = base_system(base, BASE_DIR, "", "basic")
    ctc = build(CTCModelOptions(ctc_model="scratch"), Vocabulary(tuple("abcdefghijklmnopqrstuvwxyz")), "en", "basic")
    ctc.module.eval()

    def over(system: System) -> Callable[[], object]:
        return lambda: decode(system, WaveformSet(waveforms, system.inputs), DecodingOptions())

    return alternate({"CTC": over(ctc), "Whisper": over(whisper)}, REPEATS)


def _frozen() -> Wav2Vec2BertForCTC:
    torch.manual_seed(0)
    network = new_network(LARGER, N_TOKENS).network
    network.requires_grad_(False)
    network.lm_head.requires_grad_(True)
    return network


def main() -> None:
    """Measure all and write the table."""
    one_thread()
    found = {}
    for claim, measure in zip(CLAIMS, (padding, grouping, experts, decoding), strict=True):
        measured = measure()
        found[measure.__name__] = record([figure(claim, measured, "s")], measured, "s", **machine("cpu"))
    print(write(RESULTS / "ctc_speed", "The CTC's speed", found))


if __name__ == "__main__":
    main()
