"""The people of the benchmark: what they said, to enrol with and to be tested on."""

import dataclasses
import fcntl
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.speed.__main__ import RESULTS
from moe.experts.people.parts import Parts, divide
from moe.experts.people.training import Enrolment
from moe.synthesis.corpus import synthesize
from moe.synthesis.enrolment import ENROLMENT
from moe.synthesis.planning import SynthesisOptions
from moe.text.normalisers import references

FOLDER = RESULTS / "personal"
SPOKEN: dict[str, Any] = {
    "own_ways": True, "n_test_utterances": 20, "n_enrolment_utterances": 40, "n_train_speakers": 1, "n_utterances": 2, "n_dev_speakers": 0, "seen_share": 0.0,
}  # fmt: skip
N_TESTED, MOST_ENROLLED = 20, 40


@dataclasses.dataclass(frozen=True)
class Speech:
    """What the people said, with numbers of each one's utterances to enrol with and to be tested on."""

    rows: pd.DataFrame
    root: Path
    enrolled: dict[str, np.ndarray]
    tested: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        """Everybody, in order."""
        return list(self.enrolled)


def speech(seed: int, normaliser: str) -> Speech:
    """The people of a seed, made where they are not there; a second process waits for the first."""
    folder = FOLDER / f"people-{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            synthesize(SynthesisOptions(**SPOKEN, seed=seed), folder)
    apart = pd.read_csv(folder / ENROLMENT / "manifest.csv")
    tests = pd.read_csv(folder / "manifest.csv").query("split == 'test'")
    rows = pd.concat([tests, apart.assign(path=f"{ENROLMENT}/" + apart["path"])])
    rows = rows.sort_values("utterance_id", ignore_index=True)
    rows = rows.assign(
        audio=rows["path"], member=None, reference=[references(normaliser, text)[0] for text in rows["transcript"]]
    )
    return divided(rows, folder, N_TESTED, MOST_ENROLLED)  # the sides that the corpus has


def divided(rows: pd.DataFrame, root: Path, n_tested: int, most_enrolled: int) -> Speech:
    """What each speaker is tested on, and by sentence apart from it what they may enrol with, in an order that says nothing."""
    enrolled, tested = {}, {}
    for name, part in rows.groupby("speaker"):
        halves = divide(part["reference"].tolist(), 0.0, n_tested / len(part), n_tested)
        numbers = part.index.to_numpy()
        rest = np.random.default_rng(0).permutation(np.concatenate([halves.learn, halves.choose]))
        enrolled[name], tested[name] = numbers[rest[:most_enrolled]], numbers[halves.held_back[:n_tested]]
    return Speech(rows, root, enrolled, tested)


def enrolment(said: Speech, name: str, size: int, fewest_held_back: int = 0) -> Enrolment:
    """A person with their first `size` utterances, all to learn from and to choose by, but for what the proof needs."""
    numbers = said.enrolled[name][:size]
    parts = divide(said.rows["reference"].iloc[numbers].tolist(), 0.2, 0.3, fewest_held_back)
    return Enrolment(name, Parts(numbers[parts.learn], numbers[parts.choose], numbers[parts.held_back]))
