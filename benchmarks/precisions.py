"""What is recognised of a test set in other precisions, and by transformers' `generate`: the same texts? how many errors? how long?

    python -m benchmarks.precisions --prepare_run_id ID --model_run_id ID

One thread; decoding is greedy, its seconds are CPU time with features. `int8` is what `benchmarks.speed.eight_bits` tries.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd

from analysis.error_rates import total_errors
from benchmarks.speed.eight_bits import hold_in_eight_bits
from benchmarks.timing import one_thread
from moe.system import DecodingOptions
from moe.systems.table import load_system
from moe.systems.whisper.next_token import is_plain
from moe.systems.whisper_moe import decoding
from steps.inputs.corpus import read_prepared
from steps.inputs.test_set import prepare_test_set, recognise
from steps.tracking import artifacts

OURS, GENERATE = "ours, fp32", "transformers' `generate`, fp32"
WAYS: dict[str, Callable[[Any], object]] = {
    OURS: lambda system: system.place("cpu", "fp32"),
    GENERATE: lambda system: system.place("cpu", "fp32"),
    "ours, bf16": lambda system: system.place("cpu", "bf16"),
    "ours, int8": lambda system: hold_in_eight_bits(system.model.base),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--prepare_run_id", "--model_run_id"):
        parser.add_argument(name, required=True)
    given = parser.parse_args(arguments)
    one_thread()
    print(f"| way | other texts | other numbers of tokens | word errors | WER | seconds |\n|{' --- |' * 6}")
    usual, _ = first = counted(OURS, given.prepare_run_id, given.model_run_id)
    for way in WAYS:
        found, seconds = first if way == OURS else counted(way, given.prepare_run_id, given.model_run_id)
        others = [int((found[name] != usual[name]).sum()) for name in ("hypothesis", "n_tokens")]
        words = total_errors(found).words
        print(
            f"| {way} | {others[0]} of {len(found)} | {others[1]} | {words.errors} | {100 * words.rate:.2f} % | {seconds:.1f} |",
            flush=True,
        )
    return 0


def counted(way: str, prepare_run_id: str, model_run_id: str) -> tuple[pd.DataFrame, float]:
    """The hypotheses of a test set with their errors, and the seconds that they took."""
    model_dir, prepared = artifacts.upstream(model_run_id, artifacts.MODEL), read_prepared(prepare_run_id)
    system = load_system(model_dir)
    WAYS[way](system)
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(decoding, "is_plain", lambda config: way != GENERATE and is_plain(config)),
    ):
        return recognise(prepare_test_set(system, system.ask_type(), prepared, model_dir, DecodingOptions(), Path(folder)))


if __name__ == "__main__":
    raise SystemExit(main())
