"""Error rates of recognising people by their voice (`speaker=auto`): the 50 synthetic people, or the speakers of a recorded corpus.

    python -m benchmarks.voices --model FOLDER [--people_seed 42]               the people of `benchmarks.personal`
    python -m benchmarks.voices --base BASE --recordings FOLDER                 dev and test speakers of a corpus

A profile is made of half of what each says, at most 20 utterances; the other sentences are compared with all profiles. The equal error rate
is over pairs of utterance and profile. At a confidence, `taken for another` and `not recognised` are shares of the utterances of people
who have a profile, and `stranger accepted` that of the same utterances where the speaker's own profile is taken away.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.personal.people import Speech, speech
from benchmarks.personal_recorded import recorded, system_of
from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import write_both
from moe.experts.people.profiles import embeddings_of, likeness, profile_of
from moe.serving.requests import ServiceOptions
from moe.systems.table import load_system
from moe.training.dataset import SpeechDataset

MOST_ENROLLED, MOST_STRANGERS = 20, 0.01


def cosines(system: Any, said: Speech) -> tuple[np.ndarray, np.ndarray]:
    """Cosine of every tested utterance to every profile, (N, P), and whose it is, (N,)."""
    dataset = SpeechDataset(said.rows, said.root, system.inputs)
    profiles = [profile_of(embeddings_of(system, dataset, said.enrolled[name][:MOST_ENROLLED])) for name in said.names]
    rows = [embeddings_of(system, dataset, said.tested[name]) for name in said.names]
    whose = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    return likeness(torch.cat(rows), torch.stack(profiles)).numpy(), whose


def rates(found: np.ndarray, whose: np.ndarray, confidence: float) -> dict[str, float]:
    """Shares at a confidence of cosines (N, P) to utterances of these people (N,)."""
    own = found[np.arange(len(whose)), whose]
    others = found.copy()
    others[np.arange(len(whose)), whose] = -np.inf
    nearest = found.argmax(1)
    sure = found.max(1) >= confidence
    return {
        "recognised": float((sure & (nearest == whose)).mean()),
        "taken for another": float((sure & (nearest != whose)).mean()),
        "not recognised": float((~sure).mean()),
        "stranger accepted": float((others.max(1) >= confidence).mean()),
        "own profile nearest": float((nearest == whose).mean()),
        "own below confidence": float((own < confidence).mean()),
    }


def equal_error(found: np.ndarray, whose: np.ndarray) -> tuple[float, float]:
    """Equal error rate over pairs, and the confidence at which it is."""
    is_own = np.zeros(found.shape, bool)
    is_own[np.arange(len(whose)), whose] = True
    own, others = np.sort(found[is_own]), np.sort(found[~is_own])
    at = np.unique(own)
    rejected = np.searchsorted(own, at) / len(own)
    accepted = 1 - np.searchsorted(others, at) / len(others)
    best = int(np.abs(rejected - accepted).argmin())
    return float((rejected[best] + accepted[best]) / 2), float(at[best])


def strict(found: np.ndarray, whose: np.ndarray) -> float:
    """The confidence at which so few strangers are accepted."""
    others = found.copy()
    others[np.arange(len(whose)), whose] = -np.inf
    return float(np.quantile(others.max(1), 1 - MOST_STRANGERS))


def measure(system: Any, said: Speech) -> dict[str, Any]:
    """Everything of one recogniser and its people."""
    found, whose = cosines(system, said)
    error, confidence = equal_error(found, whose)
    default, few = ServiceOptions().speaker_confidence, strict(found, whose)
    return {
        "n_people": len(said.names), "n_utterances": len(whose), "equal error rate": error, "its confidence": confidence,
        f"at the default, {default:g}": rates(found, whose, default), "at the confidence of the equal error": rates(found, whose, confidence),
        f"at {few:.4f}, which {MOST_STRANGERS:.0%} of strangers reach": rates(found, whose, few),
    }  # fmt: skip


def markdown(result: dict[str, Any]) -> str:
    """The figures as a list."""
    lines = [f"{result['n_people']} people, {result['n_utterances']} utterances: equal error rate {100 * result['equal error rate']:.1f} % "
             f"at a confidence of {result['its confidence']:.4f}."]  # fmt: skip
    for name, found in result.items():
        if isinstance(found, dict):
            lines.append(f"- {name}: " + ", ".join(f"{what} {100 * share:.1f} %" for what, share in found.items()))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--people_seed", type=int, default=42)
    parser.add_argument("--base")
    parser.add_argument("--recordings", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    if (chosen.model is None) == (chosen.base is None or chosen.recordings is None):
        parser.error("give --model FOLDER, or --base FOLDER and --recordings FOLDER")
    if chosen.model is not None:
        system: Any = load_system(chosen.model)
        said, name = speech(chosen.people_seed, system.record.normaliser), f"voices-{chosen.people_seed}"
    else:
        system, (_, said) = system_of(chosen.base), recorded(chosen.recordings, 10, 10)
        name = f"voices-{chosen.recordings.name}"
    result = measure(system, said)
    print(write_both(chosen.out / name, markdown(result), result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
