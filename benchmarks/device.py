"""What a device reaches in training and decoding a mixture, beside a PEFT single LoRA, and how near the estimate comes.

    python -m benchmarks.device --device cuda --dtype bf16                  whisper-small and large-v2, batch 32, 10 s
    python -m benchmarks.device --shapes tiny --batch_size 4 --seconds 5    on a CPU, in CPU seconds of one thread

Runs where only torch, transformers, peft, accelerate, numpy and safetensors are installed. Weights are random. The share of the peak is
that of a square matrix product measured in the same run. The estimate measures models of one and three layers and extrapolates.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import transformers
from peft import PeftModel, get_peft_model

from benchmarks.speed.workbench import ALPHA, SHAPES, TARGETS, R, Step, Workbench, Workload, lora_config, start_of, trainable
from benchmarks.table import write_both
from benchmarks.timing import machine, one_thread, peak_memory
from moe.experts.routed_lora import AdapterOptions
from moe.options import Options, option
from moe.routing.options import RoutingOptions
from moe.systems.whisper_moe.calibration import Mixture, calibrate
from moe.systems.whisper_moe.cost import Batch
from moe.training.precision import hold_frozen
from steps.options.command_line import parse

RESULTS = Path(__file__).parent / "results"
N_EXPERTS, TOP_K, TOKENS_PER_S = 8, 2, 3
ADAPTERS = AdapterOptions(lora_r=R, shared_r=R, lora_alpha=ALPHA, lora_targets=",".join(TARGETS))
ROUTING = RoutingOptions(top_k=TOP_K)
HEADER = (
    "| shape | what | batch | s | utterances/s | tokens/s | TFLOP/s | share of peak | peak memory, GiB | estimate: s | GiB |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


@dataclasses.dataclass(frozen=True)
class DeviceOptions(Options):
    """Measure a device."""

    shapes: str = option("small,large-v2", f"comma list of {', '.join(SHAPES)}")
    device: str = option("cpu", "where everything runs", choices=("cpu", "cuda"))
    dtype: str = option("fp32", "precision of every variant", choices=("fp32", "bf16"))
    batch_size: int = option(32, "utterances in a batch", low=1)
    seconds: int = option(10, "length of each utterance", low=1, high=30)
    repeats: int = option(5, "measured calls of each variant; their median counts", low=1)
    calibration_s: float = option(20.0, "about what the measurements of an estimate may take", above=0)

    def faults(self) -> list[str]:
        """A device that is not there, and shapes that are none."""
        found = ["device=cuda: this machine has none"] if self.device == "cuda" and not torch.cuda.is_available() else []
        return found + [f"shapes={name}: there are {', '.join(SHAPES)}" for name in self.names if name not in SHAPES]

    @property
    def names(self) -> list[str]:
        """The shapes as a list."""
        return [name.strip() for name in self.shapes.split(",")]

    @property
    def batch(self) -> Batch:
        """The batch that everything runs on."""
        return Batch(self.batch_size, 100 * self.seconds, TOKENS_PER_S * self.seconds)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    shape: str
    what: str
    batch_size: int
    seconds: float
    n_tokens: int
    flops: float | None
    n_bytes: float | None
    peak: float
    estimated_s: float | None = None
    estimated_bytes: float | None = None

    def line(self) -> str:
        """As Markdown."""
        rate = self.flops / self.seconds if self.flops else None
        cells = [self.shape, self.what, str(self.batch_size), f"{self.seconds:.3g}", f"{self.batch_size / self.seconds:.4g}"]
        cells += [f"{self.batch_size * self.n_tokens / self.seconds:.4g}", _cell(rate, 1e12), _cell(rate, self.peak, ".0%")]
        cells += [
            _cell(self.n_bytes, 2**30),
            _against(self.estimated_s, self.seconds, 1),
            _against(self.estimated_bytes, self.n_bytes, 2**30),
        ]
        return f"| {' | '.join(cells)} |"


def run(options: DeviceOptions) -> list[Row]:
    """Measure every shape, print and write the table after each."""
    peak = matrix_peak(options.device, options.dtype)
    rows: list[Row] = []
    for shape in options.names:
        rows += list(shape_rows(shape, options, peak))
        text = "\n".join(
            [
                f"# {options.device}, {options.dtype}, {options.seconds} s, peak {peak / 1e12:.4g} TFLOP/s",
                "",
                HEADER,
                *[row.line() for row in rows],
            ]
        )
        name = f"device-{options.device}-{options.dtype}"
        write_both(
            RESULTS / name, text + "\n", {"machine": machine(options.device), "rows": [dataclasses.asdict(row) for row in rows]}
        )
    print(f"{text}\n\n{json.dumps(machine(options.device))}")
    return rows


def workbench(shape: str, options: DeviceOptions) -> Workbench:
    """Models and batches of a shape whose window is as long as the utterances."""
    workload = Workload(batch_size=options.batch_size, n_experts=N_EXPERTS, n_labels=options.batch.n_labels)
    return Workbench(dataclasses.replace(SHAPES[shape], window_s=options.seconds), workload, options.device, options.dtype)


def shape_rows(shape: str, options: DeviceOptions, peak: float) -> Iterator[Row]:
    """Training and decoding of the mixture and of one LoRA at a shape."""
    bench, batch = workbench(shape, options), options.batch
    mixture = Mixture(bench.shape.config(), ADAPTERS, ROUTING, N_EXPERTS)
    one = dataclasses.replace(mixture, adapters=dataclasses.replace(ADAPTERS, shared_r=R), n_experts=0)
    clock = time.perf_counter if options.device == "cuda" else time.process_time
    found, cost = (
        calibrate(mixture, batch, options.device, options.dtype, options.calibration_s, clock),
        mixture.cost(batch, options.dtype),
    )
    seconds, n_bytes = measured(bench, lambda: our_step(bench), options, clock)
    n_bytes = n_bytes or 2**20 * peak_memory(one_update, shape, options)
    estimate = (found.update_s(cost), found.peak_bytes(cost))
    yield Row(
        shape, f"update, top-{TOP_K} of {N_EXPERTS}", batch.size, seconds, batch.n_labels, cost.flops, n_bytes, peak, *estimate
    )
    seconds, n_bytes = measured(bench, lambda: lora_step(bench), options, clock)
    flops = one.cost(batch, options.dtype).flops
    yield Row(shape, "update, PEFT single LoRA", batch.size, seconds, batch.n_labels, flops, n_bytes, peak)
    yield from decoding_rows(shape, bench, options, peak, clock)


def decoding_rows(shape: str, bench: Workbench, options: DeviceOptions, peak: float, clock: Callable[[], float]) -> Iterator[Row]:
    """Greedy decoding of as many tokens as a batch has labels."""
    batch, n_new = options.batch, options.batch.n_labels

    def ours() -> Callable[[], object]:
        model = bench.mixture(shared=True).eval().use_precision(options.dtype)
        mel, n_frames = bench.window_mel, bench.n_frames(batch.n_frames)
        return lambda: model.say(model.encode(model.route(mel, n_frames)), start_of(model), n_new, min_new=n_new)

    def lora() -> Callable[[], object]:
        model = lora_model(bench).eval()
        return lambda: model.generate(input_features=bench.window_mel, max_new_tokens=n_new, min_new_tokens=n_new)

    for what, build in ((f"greedy, top-{TOP_K} of {N_EXPERTS}", ours), ("greedy, PEFT single LoRA", lora)):
        with torch.no_grad(), bench.precision():
            seconds, n_bytes = measured(bench, build, options, clock)
        yield Row(shape, what, batch.size, seconds, batch.n_labels, None, n_bytes, peak)


def our_step(bench: Workbench) -> Step:
    """An update of the mixture, routed by cached embeddings, frozen matrices in the bench's precision."""
    model = bench.mixture(shared=True).use_precision(bench.dtype)
    mel, n_frames, labels, embedding = bench.window_mel, bench.n_frames(bench.window_mel.shape[-1]), bench.labels, bench.embedding
    return Step(bench, lambda: model(mel, n_frames, labels, embedding)["loss"], trainable(model))


def lora_model(bench: Workbench) -> PeftModel:
    """PEFT's LoRA over a base whose frozen matrices are held in the bench's precision too."""
    base = bench.base()
    hold_frozen(base, bench.dtype)
    return get_peft_model(base, lora_config())


def lora_step(bench: Workbench) -> Step:
    """An update of PEFT's LoRA."""
    model, mel, labels = lora_model(bench).train(), bench.window_mel, bench.labels
    return Step(bench, lambda: model(input_features=mel, labels=labels).loss, trainable(model))


def measured(
    bench: Workbench, build: Callable[[], Callable[[], object]], options: DeviceOptions, clock: Callable[[], float]
) -> tuple[float, float | None]:
    """Median seconds of a call after two that do not count, and on CUDA the bytes held at its peak; the model is dropped afterwards."""
    cuda = options.device == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    work, taken = build(), []
    del bench.weights  # the model holds them, or its own in half precision
    for _ in range(options.repeats + 2):
        start = clock()
        work()
        if cuda:
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return statistics.median(taken[2:]), float(torch.cuda.max_memory_allocated()) if cuda else None


def one_update(shape: str, options: DeviceOptions) -> None:
    """Build the mixture from nothing and update it once, as `peak_memory` measures it."""
    our_step(workbench(shape, options))()


def matrix_peak(device: str, dtype: str) -> float:
    """Operations a second of a square matrix product in this precision, on random numbers."""
    size, kind = (8192, torch.bfloat16 if dtype == "bf16" else torch.float32) if device == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    taken = []
    clock = time.perf_counter if device == "cuda" else time.process_time
    for _ in range(8):
        start = clock()
        for _ in range(5):
            a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return 5 * 2 * size**3 / statistics.median(taken[3:])


def _cell(value: float | None, unit: float, form: str = ".3g") -> str:
    return "" if value is None else format(value / unit, form)


def _against(estimate: float | None, value: float | None, unit: float) -> str:
    return "" if estimate is None or not value else f"{estimate / unit:.3g} ({estimate / value - 1:+.0%})"


def main() -> None:
    """Command line."""
    options = parse(DeviceOptions)
    transformers.logging.set_verbosity_error()
    if options.device == "cpu":
        one_thread()
    run(options)


if __name__ == "__main__":
    main()
