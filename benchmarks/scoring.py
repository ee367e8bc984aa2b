"""How long scoring, the bootstrap, MAPSSWE and the error explorer take. Prints one line per figure with its limit.

python -m benchmarks.scoring [--n_utterances 100000] [--n_speakers 1000] [--every_utterance_a_speaker]
"""

import argparse
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from analysis.error_rates import count_errors, rates_by
from analysis.intervals import bootstrap_interval
from analysis.pages.explorer import explorer_html
from analysis.significance import mapsswe, segment_errors, speaker_difference, word_errors

Result = TypeVar("Result")
VOCABULARY = np.array([f"word{number}" for number in range(2000)], object)
ETIOLOGIES = ("ALS", "Cerebral Palsy", "Down Syndrome", "Parkinson's Disease", "Stroke", "typical")
CHROMIUM = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n_utterances", type=int, default=100_000)
    parser.add_argument("--n_speakers", type=int, default=1000)
    parser.add_argument("--n_resamples", type=int, default=10_000)
    parser.add_argument("--every_utterance_a_speaker", action="store_true", help="the bootstrap's worst case, slow")
    options = parser.parse_args()
    base, system = (hypotheses(options.n_utterances, options.n_speakers, seed) for seed in (1, 2))
    counted = _timed(f"score {options.n_utterances} utterances, words and characters", 30, lambda: count_errors(base))
    other = count_errors(system)
    errors, lengths = counted.groupby("speaker")[["word_errors", "n_words"]].sum().to_numpy(float).T
    name = f"bootstrap of {options.n_utterances} utterances, {{}} speakers, {options.n_resamples} resamples"
    _timed(name.format(len(errors)), 10, lambda: bootstrap_interval(errors, lengths, options.n_resamples))
    if options.every_utterance_a_speaker:
        each, words = counted[["word_errors", "n_words"]].to_numpy(float).T
        _timed(name.format(len(each)), 10, lambda: bootstrap_interval(each, words, options.n_resamples))
    _timed("rates with intervals by etiology", None, lambda: rates_by(counted, "etiology", options.n_resamples))
    _timed("paired bootstrap of two systems", None, lambda: speaker_difference(other, counted, options.n_resamples))
    _timed(
        "MAPSSWE of two systems, alignment included",
        None,
        lambda: mapsswe(segment_errors(word_errors(system), word_errors(base))),
    )
    explore(counted.head(10_000))


def hypotheses(n_utterances: int, n_speakers: int, seed: int) -> pd.DataFrame:
    """A hypotheses table of about eight words an utterance, one word in five wrong; references are the same for every seed."""
    spoken, recognised = np.random.default_rng(0), np.random.default_rng(seed)
    lengths = spoken.integers(3, 14, n_utterances)
    references = [VOCABULARY[spoken.integers(0, len(VOCABULARY), length)] for length in lengths]
    rows = []
    for number, words in enumerate(references):
        draw = recognised.random(len(words))
        kept = np.where(draw < 0.13, VOCABULARY[recognised.integers(0, len(VOCABULARY), len(words))], words)[draw > 0.05]
        rows.append((" ".join(words), " ".join(kept), number % n_speakers))
    table = pd.DataFrame(rows, columns=["reference", "hypothesis", "number"])
    return table.assign(
        utterance_id=[f"u{number:06d}" for number in range(n_utterances)],
        speaker=[f"s{number:06d}" for number in table["number"]],
        etiology=[ETIOLOGIES[number % len(ETIOLOGIES)] for number in table["number"]],
        duration_s=lengths * 0.4,
    )


def explore(counted: pd.DataFrame) -> None:
    """Time to build the explorer and, where chromium is installed, to open it."""
    page = _timed(f"explorer of {len(counted)} utterances: build", None, lambda: explorer_html(counted))
    if shutil.which(CHROMIUM[0]) is None:
        print("explorer: not opened, chromium is not installed")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "explorer.html"
        path.write_text(page, encoding="utf-8")
        command = [*CHROMIUM, f"--user-data-dir={folder}/profile", "--dump-dom", path.as_uri()]
        run = lambda: subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: E731
        dom = _timed(f"explorer of {len(counted)} utterances ({len(page) / 1e6:.1f} MB): browser started, opened, closed", 3, run)
    ready = re.search("data-ready-ms=.([0-9]+)", dom)
    print(f"    ready {ready.group(1) if ready else '?'} ms after navigation began")


def _timed(name: str, limit_s: float | None, work: Callable[[], Result]) -> Result:
    started, started_cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - started_cpu
    said = "" if limit_s is None else f" (limit {limit_s:g} s: {'kept' if seconds <= limit_s else 'MISSED'})"
    print(f"{name}: {seconds:.2f} s, {cpu_seconds:.2f} s of this process's CPU{said}", flush=True)
    return result


if __name__ == "__main__":
    main()
