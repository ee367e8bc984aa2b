"""Speed, memory and storage of the mixture against the documents' way and PEFT, at the shape of a named Whisper with random weights.

    python -m benchmarks.speed                                       whisper-tiny on the CPU, every comparison
    python -m benchmarks.speed --shape base --repeats 2 --only decoding
    python -m benchmarks.speed --shape large-v2 --device cuda --dtype bf16

Writes benchmarks/results/speed-SHAPE.md and .json (-cuda, -bf16 where asked for). `--only` replaces that comparison and keeps the others.
Every adapter has rank 16 on q_proj and v_proj; lines without "shared adapter" have the same trainable layers as the single LoRA.
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import table
from benchmarks.clustering import gate
from benchmarks.speed import variants as v
from benchmarks.speed.workbench import SHAPES, Workbench, Workload
from benchmarks.table import Claim
from benchmarks.timing import Variants, alternate, machine, one_thread
from moe.options import Options, option
from steps.options.command_line import parse
from steps.options.step_options import MixtureStepOptions

BARE = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "numpy",
    "safetensors",
)  # what a model computes with; the rest reads corpora
CORPUS_PACKAGES = ("pandas", "pyarrow", "soundfile", "av", "soxr")
RESULTS = Path(__file__).parents[1] / "results"
GATE = "gate training"
Measured = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is measured together, and what is claimed of it; `packages` it needs beyond `BARE`."""

    measure: Callable[[Workbench, int], Measured]
    claims: tuple[Claim, ...]
    unit: str = "s"
    packages: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        """Packages that it needs and that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def timed(variants: Callable[[Workbench], Variants]) -> Callable[[Workbench, int], Measured]:
    """A measurement that takes the variants in turn."""
    return lambda bench, repeats: alternate(variants(bench), repeats, bench.device)


def embedding_times(bench: Workbench, repeats: int) -> Measured:
    """Seconds to embed the same files in each way."""
    from benchmarks.speed import embedding  # here: it needs CORPUS_PACKAGES

    return embedding.times(bench, repeats)


def store_sizes(bench: Workbench, repeats: int) -> Measured:
    """KiB on disk per utterance."""
    from benchmarks.speed import embedding

    return embedding.store_sizes(bench)


def runtime_times(bench: Workbench, repeats: int) -> Measured:
    """Seconds of greedy decoding by us and by CTranslate2."""
    from benchmarks.speed import runtimes  # here: it needs the packages of an export

    return alternate(runtimes.variants(bench), repeats, bench.device)


def beam_times(bench: Workbench, repeats: int) -> Measured:
    """Seconds of beam search by us, by transformers and by CTranslate2."""
    from benchmarks.speed import runtimes

    return alternate(runtimes.beam_variants(bench), repeats, bench.device)


def gate_variants(bench: Workbench) -> Variants:
    """Gate training, making the embeddings included."""
    return {GATE: lambda: gate(bench.workload.n_gate)}


COMPARISONS = {
    "training": Comparison(
        timed(v.training_variants),
        (
            Claim("training step, 10 s, top-2 of 8, `delta` : PEFT single LoRA", v.DELTA, v.SINGLE, 0.95),
            Claim("the same with the shared adapter", v.DELTA_SHARED, v.SINGLE),
            Claim("the frozen base without any adapter, differentiated as far down : PEFT single LoRA", v.NO_ADAPTERS, v.SINGLE),
            Claim("training step, 10 s, top-2 of 8, `loss` : PEFT single LoRA", v.LOSS, v.SINGLE, 2.2),
            Claim("the same with the shared adapter", v.LOSS_SHARED, v.SINGLE),
            Claim("32 experts : 8 experts", v.MANY, v.DELTA, 1.10),
            Claim("soft routing over 8 experts : top-2", v.SOFT, v.DELTA, 1.25),
            Claim("PEFT `adapter_names`, top-1, eval mode : PEFT single LoRA", v.NAMES, v.SINGLE),
            Claim("expert-by-expert loop, top-2, no gate pass : PEFT single LoRA", v.LOOP, v.SINGLE),
        ),
    ),
    "whole_step": Comparison(
        timed(v.whole_step_variants),
        (
            Claim("whole training step, 30 s, `gate_layer` in the middle : PEFT single LoRA", v.MIDDLE, v.SINGLE, 0.70),
            Claim("the same with the shared adapter", v.MIDDLE_SHARED, v.SINGLE),
            Claim("`gate_layer=last`, two passes, 30 s : PEFT single LoRA", v.OWN_PASS, v.SINGLE),
            Claim("training, 5 s, everything on : reference way", v.SHORT, v.REFERENCE, 1 / 20),
            Claim("the same in bf16 : reference way in fp32", v.SHORT_HALF, v.REFERENCE, 1 / 20),
            Claim("training, 5 s, default options (experts in every layer) : reference way", v.SHORT_DEFAULT, v.REFERENCE),
            Claim(
                "evaluating 5 s (greedy, 24 tokens, losses) : training on as many; an epoch scores half as many",
                v.EVALUATION,
                v.SHORT,
                1 / MixtureStepOptions.eval_share,
            ),
            Claim("reference way : PEFT single LoRA, 30 s", v.REFERENCE, v.SINGLE),
        ),
    ),
    "decoding": Comparison(
        timed(v.decoding_variants),
        (
            Claim("decoding, one pass, 30 s, top-2 : PEFT single LoRA", v.MIDDLE, v.SINGLE, 1.05),
            Claim("the same with the shared adapter", v.MIDDLE_SHARED, v.SINGLE),
            Claim("decoding with `mixing=loss`, 30 s, top-2 : PEFT single LoRA", v.MIXED_LOSS, v.SINGLE),
            Claim("greedy decoding, 5 s, everything on : reference way", v.SHORT, v.REFERENCE, 1 / 6),
            Claim("beam 4, 5 s, everything on : reference way", v.SHORT_BEAMS, v.REFERENCE_BEAMS, 1 / 6),
        ),
    ),
    "runtimes": Comparison(
        runtime_times,
        (
            Claim("greedy decoding, 5 s in a window of 5 s, no adapters : CTranslate2", v.OURS, v.PACKED, 1.0),
            Claim("the same, top-2 of 8 with the shared adapter", v.OURS_ROUTED, v.PACKED),
            Claim("no adapters, in bf16 : CTranslate2 in int8", v.OURS_HALF, v.EIGHT_BITS, 1.2),
            Claim("no adapters, in int8 by torch's oneDNN : CTranslate2 in int8", v.OURS_EIGHT_BITS, v.EIGHT_BITS, 1.2),
            Claim("no adapters, in int8 by torch's oneDNN : in bf16", v.OURS_EIGHT_BITS, v.OURS_HALF),
            Claim("top-2 of 8 in bf16 : CTranslate2 in int8", v.OURS_ROUTED_HALF, v.EIGHT_BITS, 1.2),
            Claim("CTranslate2 in int8 : CTranslate2", v.EIGHT_BITS, v.PACKED),
        ),
        packages=("ctranslate2", *CORPUS_PACKAGES),
    ),
    "beams": Comparison(
        beam_times,
        (
            Claim(
                "five beams, 5 s in a window of 5 s, no adapters : transformers' `generate`", v.OURS_BEAMS, v.GENERATE_BEAMS, 1.0
            ),
            Claim("the same : CTranslate2", v.OURS_BEAMS, v.PACKED_BEAMS),
            Claim(
                "top-2 of 8 with the shared adapter : transformers' `generate`", v.OURS_ROUTED_BEAMS, v.GENERATE_ROUTED_BEAMS, 1.0
            ),
            Claim("the same : CTranslate2 without adapters", v.OURS_ROUTED_BEAMS, v.PACKED_BEAMS),
        ),
        packages=("ctranslate2", *CORPUS_PACKAGES),
    ),
    "memory": Comparison(
        lambda bench, repeats: v.memory_peaks(bench),
        (
            Claim("peak memory of a training step, batch 4, 5 s, everything on : reference way", v.SHORT, v.REFERENCE, 1 / 5),
            Claim("the same with default options (experts in every layer)", v.SHORT_DEFAULT, v.REFERENCE),
            Claim("peak memory, one pass, 30 s, `gate_layer` in the middle : PEFT single LoRA", v.MIDDLE, v.SINGLE),
        ),
        "MiB",
    ),
    "store": Comparison(
        store_sizes,
        (
            Claim("embedding store per utterance", v.POOLED, None, 8),
            Claim("embedding store per utterance at large-v2's width", v.POOLED_LARGE, None, 8),
            Claim("embedding store : every frame of the window", v.POOLED, v.ONE_BY_ONE),
        ),
        "KiB",
        CORPUS_PACKAGES,
    ),
    "embedding": Comparison(
        embedding_times,
        (
            Claim("embedding, 5 s, default layer (conv stem) : one by one at 30 s", v.OURS_STEM, v.ONE_BY_ONE, 1 / 8),
            Claim("embedding, 5 s, last layer : one by one at 30 s", v.OURS_LAST, v.ONE_BY_ONE, 1 / 8),
            Claim("the same in bf16 : one by one in fp32", v.OURS_LAST_HALF, v.ONE_BY_ONE, 1 / 8),
        ),
        packages=CORPUS_PACKAGES,
    ),
    "gate": Comparison(
        timed(gate_variants), (Claim("gate training on 100 000 embeddings", GATE, None, 60),), packages=("scipy",)
    ),
}


@dataclasses.dataclass(frozen=True)
class SpeedOptions(Options):
    """Compare the mixture with the documents' way and with PEFT."""

    shape: str = option("tiny", "Whisper whose shape is taken, with random weights", choices=tuple(SHAPES))
    device: str = option("cpu", "where everything runs", choices=("cpu", "cuda"))
    dtype: str = option("fp32", "precision of every variant", choices=("fp32", "bf16"))
    repeats: int = option(3, "rounds", low=1)
    only: str = option("all", "one comparison instead of all", choices=("all", *COMPARISONS))

    def faults(self) -> list[str]:
        """A GPU or packages that are not there."""
        found = ["device=cuda: this machine has none"] if self.device == "cuda" and not torch.cuda.is_available() else []
        missing = COMPARISONS[self.only].missing if self.only in COMPARISONS else []
        return found + ([f"only={self.only}: needs {', '.join(missing)}, which are not installed"] if missing else [])

    @property
    def names(self) -> list[str]:
        """The comparisons to make: the one asked for, or all that the installed packages allow."""
        return [self.only] if self.only != "all" else [name for name, comparison in COMPARISONS.items() if not comparison.missing]

    @property
    def path(self) -> Path:
        """Where the results go, without suffix."""
        parts = [self.shape, *([self.device] if self.device != "cpu" else []), *([self.dtype] if self.dtype != "fp32" else [])]
        return RESULTS / f"speed-{'-'.join(parts)}"


def run(options: SpeedOptions, workload: Workload, results: Path) -> dict[str, dict[str, Any]]:
    """Measure what is asked for and write it after each comparison."""
    title = f"Speed at whisper-{options.shape}'s shape, {options.device}, {options.dtype}"
    found = table.read(results.with_suffix(".json"))
    for name in options.names:
        found[name] = measured(COMPARISONS[name], options, workload)
        found = {key: found[key] for key in COMPARISONS if key in found}
        text = table.write(results, title, found)
    print(text)
    for name in set(COMPARISONS) - set(options.names) if options.only == "all" else ():
        print(f"{name}: left out, needs {', '.join(COMPARISONS[name].missing)}")
    return found


def measured(comparison: Comparison, options: SpeedOptions, workload: Workload) -> dict[str, Any]:
    """One comparison on a bench of its own; claims about variants that this bench has not got are left out."""
    bench = Workbench(SHAPES[options.shape], workload, options.device, options.dtype)
    values = comparison.measure(bench, options.repeats)
    claims = [claim for claim in comparison.claims if claim.variant in values]
    figures = [table.figure(claim, values, comparison.unit) for claim in claims]
    return table.record(figures, values, comparison.unit, machine=machine(options.device), workload=dataclasses.asdict(workload))


def main() -> None:
    """Command line."""
    options = parse(SpeedOptions)
    transformers.logging.set_verbosity_error()
    if options.device == "cpu":
        one_thread()
    run(options, Workload(), options.path)


if __name__ == "__main__":
    main()
