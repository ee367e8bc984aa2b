"""What each choice of speed costs in errors: the whole chain with one option changed at a time, over seeds, in one table of `compare`.

    python -m benchmarks.quality                                     the synthetic corpus, seeds 42, 43, 44
    python -m benchmarks.quality --only mixing --corpus folder --corpus_dir PATH --init_from BASE

Takes every option of `main`; what is given is the common default. Runs go to the tracking store and are taken over from it where they would
come out the same, so that variants share what lies upstream of their change and a second call costs nothing. Writes
benchmarks/results/quality-CORPUS.md.
"""

import dataclasses
from pathlib import Path
from typing import Any

from analysis.comparison import Comparison, compare
from analysis.systems import SystemScores
from benchmarks.speed import RESULTS
from moe.files import write_whole
from moe.options import option, parse
from steps import evaluate, main
from steps.compare import read_scores
from steps.reuse import launch

CHANGES: dict[str, tuple[Any, ...]] = {
    "audio_context": ("bucketed", "full"),
    "gate_layer": ("0", "1", "2", "last"),
    "mixing": ("delta", "loss"),
    "top_k": (1, 2, 4, None),  # None: all experts
}
DEFAULT = "as given"


@dataclasses.dataclass(frozen=True)
class QualityOptions(main.StepOptions):
    """Compare variants of the mixture; every option of `main` is common to all."""

    seeds: str = option("42,43,44", "seeds of each variant, comma list; the corpus keeps one seed")
    only: str = option("all", "the option whose values are compared", choices=("all", *CHANGES))

    def faults(self) -> list[str]:
        """Also: seeds are whole numbers."""
        bad = [part for part in self.seeds.split(",") if not part.strip().isdigit()]
        return super().faults() + ([f"seeds={self.seeds}: must be whole numbers, comma list"] if bad else [])


def variants(options: QualityOptions) -> dict[str, QualityOptions]:
    """Each variant's options by name: those given, then one option changed at a time."""
    found = {DEFAULT: options}
    for name in CHANGES if options.only == "all" else [options.only]:
        for value in CHANGES[name]:
            value = main.n_experts(options) if value is None else value
            if value != getattr(options, name):
                found[f"{name}={value}"] = dataclasses.replace(options, **{name: value})
    return found


def evaluated(options: QualityOptions) -> str:
    """Run the chain up to the mixture, score it on the test split, and return the id of the evaluation."""
    chain = main.Chain(dataclasses.replace(options, until="asr"))
    chain.run()
    ids = {f"{name}_run_id": chain.run_ids[name] for name in ("prepare", "asr")}
    return launch(evaluate, main.stage_options(evaluate, options, **ids))


def scores(options: QualityOptions) -> list[SystemScores]:
    """Every variant under every seed, under the variant's name: `compare` pools the seeds of a name."""
    corpus_seed = options.seed if options.corpus_seed is None else options.corpus_seed
    found = []
    for name, variant in variants(options).items():
        for seed in map(int, options.seeds.split(",")):
            print(f"\n{name}, seed {seed}", flush=True)
            run_id = evaluated(dataclasses.replace(variant, seed=seed, corpus_seed=corpus_seed, ablations=False))
            found.append(dataclasses.replace(read_scores(run_id), name=name))
    return found


def write(comparison: Comparison, path: Path) -> None:
    """The comparison as Markdown."""
    with write_whole(path) as aside:
        aside.write_text(comparison.markdown() + "\n", encoding="utf-8")


def command() -> None:
    """Command line."""
    options = parse(QualityOptions)
    main.check_stages(options)
    comparison = compare(scores(options), note=f"{options.corpus}, seeds {options.seeds}")
    write(comparison, RESULTS / f"quality-{options.corpus}.md")
    print(comparison.markdown().split("## By group")[0])


if __name__ == "__main__":
    command()
