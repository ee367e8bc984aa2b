"""The chain over several seeds on one corpus, and one comparison of all of them.

    python -m benchmarks.seeds --seeds 0,1,2 [any option of main, --name value]

Runs go to the tracking store like any other; the comparison's table is printed and logged.
"""

import argparse

from moe.options import parse
from steps import compare, main, tracking
from steps.chain import Chain
from steps.compare import StepOptions as CompareOptions

EVALUATIONS = ("evaluate zero_shot", "evaluate single_lora", "evaluate asr")


def run_seed(seed: int, flags: list[str]) -> list[str]:
    """Ids of the evaluation runs of one seed; the corpus is that of `--corpus_seed`, 42 unless given."""
    given = flags if "--corpus_seed" in flags else [*flags, "--corpus_seed", "42"]
    options = parse(main.StepOptions, [*given, "--seed", str(seed), "--until", "evaluate"])
    main.check_stages(options)
    with tracking.step_run("main", options, f"main · seed {seed} · {options.corpus}"):
        chain = Chain(options)
        chain.run()
    return [chain.run_ids[name] for name in EVALUATIONS]


def run() -> None:
    """Every seed, then the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--seeds", default="0,1,2")
    arguments, flags = parser.parse_known_args()
    run_ids = [run_id for seed in arguments.seeds.split(",") for run_id in run_seed(int(seed), flags)]
    compare_run_id = compare.run(CompareOptions(evaluate_run_ids=",".join(run_ids)))
    print(tracking.upstream(compare_run_id, "comparison.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    run()
