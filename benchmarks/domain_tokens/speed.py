"""What domain tokens cost: an update of the last 4/4 blocks against all and one LoRA, the optimizer's memory, and decoding with a token.

    python -m benchmarks.domain_tokens.speed

Variants in turn in one process, on a Whisper of 12 + 12 blocks with random weights; ratios of CPU time with one thread.
"""

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import table
from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import Claim
from benchmarks.timing import alternate, machine, one_thread
from moe.recognition.decoding import decode
from moe.recognition.recognizer import WaveformSet
from moe.system import Batch, DecodingOptions
from moe.systems.domain_whisper.asks import DomainAsk
from moe.systems.domain_whisper.domains import Domains
from moe.systems.domain_whisper.folder import DomainShape
from moe.systems.domain_whisper.options import LossOptions, TokenOptions
from moe.systems.domain_whisper.system import DomainSystem, build
from moe.systems.domain_whisper.unfreezing import ALL, BLOCKS, LORA, UnfreezeOptions
from moe.systems.whisper.base_model import load_base, new_base, save_base
from moe.systems.whisper.base_source import SmallShape
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper.tokens import train_tokenizer
from moe.training.loop import seed_everything

SHAPE = SmallShape(d_model=256, encoder_layers=12, decoder_layers=12, heads=4)
WORDS = "the cat sat on the mat and the dog ran after a bird"
N, SECONDS, REPEATS = 8, 3.0, 7
WITH, WITHOUT = "with a token", "without a token"


def systems(folder: Path) -> dict[str, DomainSystem]:
    """One system for each way to unfreeze, on the same base."""
    seed_everything(0)
    save_base(new_base(train_tokenizer([WORDS], "bpe", 40, "en"), SHAPE, "en"), folder)
    return {name: _system(folder, name) for name in (BLOCKS, ALL, LORA)}


def _system(folder: Path, unfreeze: str) -> DomainSystem:
    domains = Domains(("normal", "atypical"), ("typical",), "two")
    shape = DomainShape(domains, "end", 0.5, UnfreezeOptions(unfreeze=unfreeze), AudioContextOptions())
    return build(load_base(str(folder)), folder, shape, "en", "basic", TokenOptions(), LossOptions(), (1e-4, 1e-3))


def batch_of(system: DomainSystem) -> Batch:
    """Noise with references, half of each domain."""
    waves = np.random.default_rng(0).normal(0, 0.1, (N, round(SECONDS * 16_000))).astype(np.float32)
    batch = system.inputs.collate([system.inputs.example(wave, WORDS) for wave in waves])
    return batch | {"domain": torch.arange(N) % 2}


def update_of(system: DomainSystem) -> tuple[Callable[[], object], torch.optim.AdamW]:
    """An update of a batch, and the optimizer that it fills."""
    optimizer = torch.optim.AdamW(
        [{"params": list(group.parameters), "lr": group.learning_rate} for group in system.parameter_groups()]
    )
    batch = batch_of(system)
    system.module.train()

    def update() -> None:
        optimizer.zero_grad()
        system.module(**batch)["loss"].backward()
        optimizer.step()

    return update, optimizer


def megabytes(optimizer: torch.optim.AdamW) -> float:
    """Size of an optimizer's state."""
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20


def main() -> None:
    """Measure, write and print the table."""
    one_thread()
    with tempfile.TemporaryDirectory() as folder:
        found = systems(Path(folder))
        updates = {name: update_of(system) for name, system in found.items()}
        seconds = alternate({name: update for name, (update, _) in updates.items()}, REPEATS)
        memory = {name: [megabytes(optimizer)] for name, (_, optimizer) in updates.items()}
        decoding = alternate(_decodings(found[BLOCKS]), 3 * REPEATS)
    steps = [
        Claim("an update, last 4/4 blocks : all", BLOCKS, ALL),
        Claim("an update, last 4/4 blocks : one LoRA of their size", BLOCKS, LORA),
    ]
    held = [
        Claim("optimizer state, last 4/4 blocks : all", BLOCKS, ALL),
        Claim("optimizer state, last 4/4 blocks : LoRA", BLOCKS, LORA),
    ]
    tokens = [Claim("decoding with a token : without", WITH, WITHOUT, 1.01)]
    parts = {"updates": (steps, seconds, "s"), "memory": (held, memory, "MiB"), "decoding": (tokens, decoding, "s")}
    comparisons = {
        name: table.record([table.figure(claim, values, unit) for claim in claims], values, unit, machine=machine("cpu"))
        for name, (claims, values, unit) in parts.items()
    }
    print(table.write(RESULTS / "domain_speed", "What domain tokens cost", comparisons))


def _decodings(system: DomainSystem) -> dict[str, Callable[[], object]]:
    """The same audio with and without a token, to the bound of the hypothesis."""
    waves = [wave for wave in np.random.default_rng(1).normal(0, 0.1, (N, round(SECONDS * 16_000))).astype(np.float32)]
    options, data = DecodingOptions(max_tokens_per_s=8.0), WaveformSet(waves, system.inputs)
    system.module.eval()
    system.module.base.generation_config.eos_token_id = -1  # nothing ends early, so that both say as many tokens
    asked = {WITH: DomainAsk(domain="normal"), WITHOUT: DomainAsk(domain="none")}
    return {name: functools.partial(decode, system, data, options, ask) for name, ask in asked.items()}


if __name__ == "__main__":
    main()
