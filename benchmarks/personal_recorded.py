"""What people of a recorded corpus get from an expert of their own above a base model, and which proof (`accept`) serves them best.

    python -m benchmarks.personal_recorded --base BASE --recordings FOLDER [--n_enrolled 10] [--n_tested 10] [--n_people 24]

FOLDER holds a manifest with splits; people of dev and test are enrolled, whom the base was not trained on: all, or as many as are asked
for, in the order of their names' digests. Each is tested on utterances of
other sentences than those that they enrol with. `no proof` learns from all that they enrol with; under a rule 5 of these are held back,
and who is not accepted by it stays as they are.
"""

import argparse
import dataclasses
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import transformers

from analysis.report import markdown_table
from analysis.significance import speaker_difference
from benchmarks.personal.measuring import N_RESAMPLES, tested
from benchmarks.personal.people import Speech, divided, enrolment
from benchmarks.speed.__main__ import RESULTS
from benchmarks.table import write_both
from moe.audio.augmentation import AugmentationOptions
from moe.corpora.preparation import PreparationOptions
from moe.corpora.recordings import ReadRecordings, read_recordings
from moe.experts.people.options import PersonOptions
from moe.experts.people.parts import FEWEST_HELD_BACK
from moe.experts.people.person import Person
from moe.experts.people.training import Learnt, Recordings, learn_people
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper_moe.system import WhisperSystem
from moe.systems.whisper_moe.zero_shot import base_system
from moe.training.dataset import SpeechDataset
from steps.inputs.people import Enrolled
from steps.reports.people import NOT_WORSE, SIGNIFICANT, ProofOptions, judged, prove

AS_THEY_ARE, NO_PROOF = "as it is", "no proof"
UNSEEN = ("dev", "test")


def system_of(base_dir: str) -> WhisperSystem:
    """A base model as a recogniser."""
    return base_system(load_base(base_dir), Path(base_dir), "en", "basic")


def recorded(folder: Path, n_enrolled: int, n_tested: int, n_people: int | None = None) -> tuple[ReadRecordings, Speech]:
    """The unseen speakers of a corpus who have enough utterances, or some of them."""
    read = read_recordings(PreparationOptions(corpus="folder", dataset_root=str(folder), normaliser="basic"))
    manifest = pd.read_csv(folder / "manifest.csv", dtype={"speaker": str})
    unseen = set(manifest.loc[manifest["split"].isin(UNSEEN), "speaker"])
    rows = read.rows[read.rows["speaker"].isin(unseen)]
    enough = rows.groupby("speaker")["reference"].transform("nunique") >= n_enrolled + n_tested
    names = sorted(set(rows.loc[enough, "speaker"]), key=lambda name: hashlib.sha256(name.encode()).digest())[:n_people]
    rows = rows[rows["speaker"].isin(names)].reset_index(drop=True)
    return dataclasses.replace(read, rows=rows), divided(rows, Path(str(read.root)), n_tested, n_enrolled)


def run(system: WhisperSystem, read: ReadRecordings, said: Speech, n_enrolled: int) -> dict[str, Any]:
    """Learn with and without a part held back, judge by both rules, and test everybody."""
    recordings = Recordings(
        SpeechDataset(said.rows, read.root, system.inputs, AugmentationOptions(), 42),
        SpeechDataset(said.rows, read.root, system.inputs),
    )
    started = time.process_time()
    all_of_it = learn(system, recordings, said, n_enrolled, 0)
    seconds = (time.process_time() - started) / len(said.names)
    less = learn(system, recordings, said, n_enrolled, FEWEST_HELD_BACK)
    rules = by_rule(system, read, said, less, n_enrolled)
    before = tested(system, said, [Person(name) for name in said.names])
    ways = {NO_PROOF: [each.person for each in all_of_it]} | rules
    after = {way: tested(system, said, people, before) for way, people in ways.items()}
    return {
        "n_people": len(said.names), "n_enrolled": n_enrolled, "n_tested": len(said.tested[said.names[0]]), "seconds_a_person": seconds,
        AS_THEY_ARE: rates(before),
        "ways": {way: figures(table, before, ways[way]) for way, table in after.items()},
    }  # fmt: skip


def learn(system: WhisperSystem, recordings: Recordings, said: Speech, size: int, n_held_back: int) -> list[Learnt]:
    """What everybody learns with the default options."""
    return learn_people(
        system, recordings, [enrolment(said, name, size, n_held_back) for name in said.names], PersonOptions(), 42
    )


def by_rule(
    system: WhisperSystem, read: ReadRecordings, said: Speech, learnt: Sequence[Learnt], size: int
) -> dict[str, list[Person]]:
    """Everybody as they are served under each rule."""
    people = [enrolment(said, name, size, FEWEST_HELD_BACK) for name in said.names]
    enrolled = Enrolled(Path(), "", "", system.record, read, people, frozenset())
    proofs = prove(system, enrolled, learnt, ProofOptions(accept=NOT_WORSE))
    strict = ProofOptions(accept=SIGNIFICANT)
    accepted = {
        NOT_WORSE: [proof.accepted for proof in proofs],
        SIGNIFICANT: [
            proof.accepted and judged(each, proof.before, proof.after, True, strict).accepted
            for each, proof in zip(learnt, proofs, strict=True)
        ],
    }
    return {
        rule: [each.person if does else Person(each.person.name) for each, does in zip(learnt, found, strict=True)]
        for rule, found in accepted.items()
    }


def groups(counted: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Everybody, and each group of the corpus."""
    return {"all": counted} | {str(name): part for name, part in counted.groupby("etiology")}


def rates(counted: pd.DataFrame) -> dict[str, float]:
    """Word error rate of each group."""
    return {name: float(part["word_errors"].sum() / part["n_words"].sum()) for name, part in groups(counted).items()}


def figures(after: pd.DataFrame, before: pd.DataFrame, people: Sequence[Person]) -> dict[str, Any]:
    """Rates, their difference to the base as it is with interval and p over people, and how many have something of their own."""
    differences, theirs = {}, groups(before)
    for name, part in groups(after).items():
        found = speaker_difference(part, theirs[name], N_RESAMPLES, 0)
        differences[name] = [found.value, found.low, found.high, found.p_value]
    errors = [table.groupby("speaker")["word_errors"].sum() for table in (after, before)]
    return {
        "wer": rates(after), "difference": differences, "changed": sum(each.n_numbers > 0 for each in people),
        "better": int((errors[0] < errors[1]).sum()), "worse": int((errors[0] > errors[1]).sum()),
    }  # fmt: skip


def markdown(result: Mapping[str, Any]) -> str:
    """A row for each way."""
    rows = []
    for way, found in result["ways"].items():
        row: dict[str, Any] = {"way": way}
        for group, start in result[AS_THEY_ARE].items():
            value, low, high, p_value = found["difference"][group]
            row[f"WER, {group}"] = (
                f"{100 * start:.1f} → {100 * found['wer'][group]:.1f} ({100 * value:+.1f}; {100 * low:+.1f} to {100 * high:+.1f}; p {p_value:.3f})"
            )
        rows.append(
            row | {"changed": f"{found['changed']} of {result['n_people']}", "better": found["better"], "worse": found["worse"]}
        )
    return markdown_table(pd.DataFrame(rows))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--recordings", type=Path, required=True)
    parser.add_argument("--n_enrolled", type=int, default=10)
    parser.add_argument("--n_tested", type=int, default=10)
    parser.add_argument("--n_people", type=int, help="all where it is not given")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    read, said = recorded(chosen.recordings, chosen.n_enrolled, chosen.n_tested, chosen.n_people)
    result = run(system_of(chosen.base), read, said, chosen.n_enrolled)
    print(write_both(chosen.out / "personal-recorded", markdown(result), result))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
