"""What people cost, as ratios within one run: decoding with 32 of them in a batch, learning 30 at once, and 1000 in memory.

    python -m benchmarks.personal_cost [--base FOLDER] [--shape demo|tiny] [--repeats 5]

The model has one LoRA of rank 8 with random weights above BASE, or above a new one of whisper-tiny's shape; the audio is noise.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import Claim, figure, record, write
from benchmarks.timing import alternate, machine, one_thread
from benchmarks.voice_activity import TINY
from moe.experts.people.person import Person
from moe.experts.routed_lora import AdapterOptions
from moe.recognition.recognizer import Recognizer
from moe.routing.options import RoutingOptions
from moe.system import DecodingOptions
from moe.systems.whisper.base_model import load_base, new_base
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.building import wrap
from moe.systems.whisper_moe.folder import LORA, WhisperShape, new_record
from moe.systems.whisper_moe.model import WhisperMoE
from moe.systems.whisper_moe.system import WhisperSystem
from steps.pretrain import SHIPPED

N_DECODED, SECONDS, N_PEOPLE, N_EACH = 32, 2.5, 30, 5
TARGETS, R = ("q_proj", "v_proj"), 8
MORE = 5  # rounds of decoding for one of learning: it is short, and its ratios are near to 1
GOALS = {"demo": 1.15, "tiny": 1.05}


def system_of(base_dir: str, shape: str) -> WhisperSystem:
    """One LoRA above a base of the demo's or of whisper-tiny's shape."""
    base = load_base(base_dir)
    if shape == "tiny":
        base = new_base(base.processor.tokenizer, TINY, "en")
    adapters = AdapterOptions()
    whisper = WhisperShape(0, adapters, RoutingOptions(), AudioContextOptions())
    model = WhisperMoE(base.model, 0, adapters, whisper.routing).eval()
    model.requires_grad_(False)
    return wrap(model, base, Path(base_dir), new_record(LORA, whisper, "en", "basic", {}))


def somebody(system: WhisperSystem, number: int) -> Person:
    """A person whose expert changes a little."""
    layout = system.layout(TARGETS, R)
    generator = torch.Generator().manual_seed(number)
    return Person(f"p{number}", layout, layout.new(number, "p") + 1e-3 * torch.randn(layout.n_numbers, generator=generator))


def measure(base_dir: str, shape: str, repeats: int) -> dict[str, Any]:
    """The comparison as JSON."""
    plain, system = system_of(base_dir, shape), system_of(base_dir, shape)
    people = [somebody(system, number) for number in range(N_DECODED)]
    random = np.random.default_rng(0)
    waveforms = [0.1 * random.standard_normal(int(SECONDS * 16_000)).astype(np.float32) for _ in range(N_DECODED)]
    without, with_people = Recognizer(plain), Recognizer(system)
    options = DecodingOptions(max_tokens_per_s=8.0)
    examples = [plain.inputs.example(waveform, "oak elm fig") for waveform in waveforms[:N_PEOPLE]] * N_EACH
    learning = [torch.nn.Parameter(people[number].expert.clone()) for number in range(N_PEOPLE)]  # type: ignore[union-attr]

    def learn(whose: Sequence[int]) -> None:
        """A pass over the same utterances, by people who are each the owner of some."""
        for start in range(0, len(examples), N_DECODED):
            part = range(start, min(start + N_DECODED, len(examples)))
            batch = system.inputs.collate([examples[number] for number in part])
            owners = [Person("p", people[0].layout, learning[whose[number]]) for number in part]
            system.person_losses(batch, owners).sum().backward()
        for each in learning:
            each.grad = None

    decoding = {
        "nobody's recogniser": lambda: without.transcribe(waveforms, options),
        "nobody enrolled in the batch": lambda: with_people.transcribe(waveforms, options),
        "32 people in the batch": lambda: with_people.transcribe(waveforms, options, people=people),
    }
    training = {
        "one person learns": lambda: learn([0] * len(examples)),
        "30 people learn": lambda: learn([number % N_PEOPLE for number in range(len(examples))]),
    }
    measured = alternate(decoding, MORE * repeats) | alternate(training, repeats)
    numbers = somebody(system, 0).n_numbers
    measured["1000 people"] = [1000 * numbers * 4 / 1e6] * repeats
    claims = [
        Claim(f"{shape}: decoding 32 utterances of 32 people", "32 people in the batch", "nobody's recogniser", GOALS[shape]),
        Claim(f"{shape}: decoding where nobody is enrolled", "nobody enrolled in the batch", "nobody's recogniser", 1.02),
        Claim(f"{shape}: 30 people at once, gradients of the same utterances", "30 people learn", "one person learns", 1.1),
    ]
    figures = [figure(claim, measured, "s") for claim in claims]
    memory = figure(
        Claim(f"{shape}: 1000 people in memory", "1000 people", at_most=160.0 if shape == "demo" else None), measured, "MB"
    )
    return record([*figures, memory], measured, "s", **machine("cpu"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=SHIPPED)
    parser.add_argument("--shape", choices=tuple(GOALS), default="demo")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    one_thread()
    transformers.logging.set_verbosity_error()
    found = {chosen.shape: measure(chosen.base, chosen.shape, chosen.repeats)}
    print(write(chosen.out / f"personal-cost-{chosen.shape}", "What people cost", found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
