"""Entry point `estimate`: what the chain would cost with the same options, before anything runs.

Measures this device for at most a minute and says the seconds of each stage of the mixture and its baselines, the memory of a process and
the largest batch that fits; with `num_processes` what each of them has of a batch. Reads no corpus: one that is not synthetic is given by its hours. Example:
    mlflow run . --env-manager local -e estimate -P corpus=folder -P dataset_root=FOLDER -P hours=400 -P utterance_s=6
"""

import dataclasses

from moe.options import option
from moe.systems.whisper_moe.calibration import Calibration, calibrate
from steps import main as chain
from steps.chain.corpus_size import TOKENS_PER_S, size_of
from steps.chain.costs import ChainCost, StageCost
from steps.tracking import runs

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class StepOptions(chain.StepOptions):
    """Say what the chain would cost."""

    hours: float | None = option(None, "hours of the train split (none: those of the synthetic corpus)", above=0)
    utterance_s: float | None = option(None, "mean length of an utterance, seconds (none: 2 synthetic, else 5)", above=0, high=30)
    tokens_per_s: float = option(TOKENS_PER_S, "tokens of the transcript per second of audio", above=0)
    calibration_s: float = option(30.0, "about how long this device is measured, seconds", above=0, high=60)


def run(options: StepOptions) -> str:
    """Measure the device, print and log the estimate, and return the run id."""
    chain.check_stages(options)
    cost = ChainCost(options, size_of(options, options.hours, options.utterance_s, options.tokens_per_s))
    with runs.step_run("estimate", options, f"estimate · {options.corpus}") as step:
        each_s = options.calibration_s / (1 + cost.trains_lora)
        found, of_lora = cost.measured(lambda each: calibrate(each, cost.training_batch, cost.device, cost.precision, each_s))
        stages = cost.stages(found, of_lora)
        lines = estimate_lines(cost, found, stages)
        step.log_metrics({f"seconds/{stage.stage}": stage.seconds for stage in stages})
        step.log_metrics({"bytes_per_process": cost.training_bytes(found), "largest_batch": float(cost.largest_batch(found))})
        step.describe("## What the chain would cost\n" + "\n".join(f"- {line}" for line in lines))
        print("\n".join(lines), flush=True)
    return step.run_id


def estimate_lines(cost: ChainCost, found: Calibration, stages: list[StageCost]) -> list[str]:
    """The estimate in words: the corpus, a line for each stage, the sum, memory, what is not counted, and what memory does not bear."""
    size, n = cost.size, cost.n_processes * cost.training_batch.size
    seconds, largest = cost.total_s(stages, found), cost.largest_batch(found)
    busy_s, n_processes = sum(stage.seconds for stage in stages), cost.n_processes * cost.at_once
    gpu = f", {cost.n_processes * busy_s / 3600:.2g} GPU hours" if cost.device == "cuda" else ""
    each = f" for each of {n_processes} processes" if n_processes > 1 else ""
    needed, free = cost.training_bytes(found) / GIB, cost.free_bytes() / GIB
    lines = [
        f"{size.n_train} utterances of {size.utterance_s:g} s to train on, {cost.n_experts} experts, {cost.precision} on {cost.device}",
        *(f"{stage.stage}: {duration(stage.seconds)}, {stage.what}" for stage in stages),
        f"together: {duration(seconds)}{gpu}",
        f"memory: {needed:.2f} GiB in batches of {n}, {free:.1f} GiB are free{each}; the largest batch that fits is {largest}",
        f"not counted: {', '.join(cost.not_counted())}; what early stopping saves",
    ]
    if n > largest:
        change = f"set asr_batch_size={largest}" if largest else "take a smaller base model or gradient_checkpointing=true"
        lines.append(f"asr_batch_size={n}: memory will not do; {change}")
    return lines


def duration(seconds: float) -> str:
    """Seconds in the unit that people say them in."""
    for limit, unit, divisor in ((120, "s", 1), (7200, "min", 60), (172_800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 86_400:.3g} days"


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
