"""What people get from an expert and weights of their own: 20 who speak as nobody in training does, and the demo's 30 test speakers.

    python -m benchmarks.personal --demo                                           with the demo's recognisers; the table
    python -m benchmarks.personal --model FOLDER [--name NAME] [--sizes 20,40]     learn, test, write a result for each size
    python -m benchmarks.personal --table                                          the table of all results

FOLDER holds a recogniser (the artifact `model` of a run). Each person enrols with so many utterances and is tested on 20 others of other
sentences. A result that is there is not made again; the corpus of 50 people with 60 utterances each is made once.
"""

import argparse
import dataclasses
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers

from analysis.error_rates import count_errors
from analysis.report import markdown_table
from analysis.significance import speaker_difference
from benchmarks.speed.__main__ import RESULTS
from moe.audio.augmentation import AugmentationOptions
from moe.experts.people.options import AS_IT_IS, AUTO, EXPERT, OF_EXPERT, WEIGHTS, PersonOptions
from moe.experts.people.parts import Parts, divide
from moe.experts.people.person import Person
from moe.experts.people.training import Enrolment, Recordings, learn_people
from moe.files import read_json, write_json
from moe.recognition.decoding import decode
from moe.synthesis.corpus import synthesize
from moe.synthesis.enrolment import ENROLMENT
from moe.synthesis.planning import SynthesisOptions
from moe.synthesis.voices import OWN_WAYS
from moe.system import DecodingOptions, read_record
from moe.systems.table import load_system
from moe.text.normalisers import normalise, references
from moe.training.dataset import SpeechDataset
from steps.tracking import artifacts
from steps.tracking.names import STEP_TAG
from steps.tracking.store import connect

FOLDER = RESULTS / "personal"
SPOKEN: dict[str, Any] = {
    "own_ways": True, "n_test_utterances": 20, "n_enrolment_utterances": 40, "n_train_speakers": 1, "n_utterances": 2, "n_dev_speakers": 0, "seen_share": 0.0,
}  # fmt: skip
N_TESTED, MOST_ENROLLED = 20, 40
SIZES = (5, 10, 20, 40)
COHORTS = {"own ways": "20 of own ways", "demo": "30 of the demo", "all": "50"}
N_RESAMPLES = 10_000
COMMON = "weights common to all"


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


def run(
    system: Any, said: Speech, before: pd.DataFrame, size: int, options: PersonOptions, augment: bool = True
) -> dict[str, Any]:
    """Learn of `size` utterances each and test; figures for each way and cohort."""
    recordings = Recordings(
        SpeechDataset(said.rows, said.root, system.inputs, AugmentationOptions() if augment else None, 42),
        SpeechDataset(said.rows, said.root, system.inputs),
    )
    started = time.process_time()
    learnt = learn_people(system, recordings, [enrolment(said, name, size) for name in said.names], options, 42)
    seconds = (time.process_time() - started) / len(learnt)
    ways = [way for way in learnt[0].candidates if way != AS_IT_IS]
    after = {way: [each.candidates[way] for each in learnt] for way in ways} if len(ways) > 1 else {}
    after[AUTO] = [each.person for each in learnt]
    for way in [way for way in (WEIGHTS, EXPERT) if way in after] or [AUTO]:
        others = after[way][1:] + after[way][:1]
        after[f"another person's {EXPERT if way == AUTO else way}"] = [
            dataclasses.replace(each, name=name) for each, name in zip(others, said.names, strict=True)
        ]
    if WEIGHTS in after:
        after[COMMON] = common_weights(system, recordings, said, size, options)
    found = {way: figures(tested(system, said, people, before), before, people) for way, people in after.items()}
    return {"n_people": len(learnt), "seconds_a_person": seconds, "as it is": wers(before), "ways": found}


def common_weights(system: Any, recordings: Recordings, said: Speech, size: int, options: PersonOptions) -> list[Person]:
    """One set of weights, learnt of everybody together."""
    each = [enrolment(said, name, size).parts for name in said.names]
    parts = Parts(*(np.concatenate(part) for part in zip(*((p.learn, p.choose, p.held_back) for p in each), strict=True)))
    read = {field.name: getattr(options, field.name) for field in dataclasses.fields(options) if field.name not in OF_EXPERT}
    (learnt,) = learn_people(system, recordings, [Enrolment("all", parts)], PersonOptions(**read | {"learn": WEIGHTS}), 42)
    return [dataclasses.replace(learnt.person, name=name) for name in said.names]


def tested(system: Any, said: Speech, people: Sequence[Person], before: pd.DataFrame | None = None) -> pd.DataFrame:
    """Counted hypotheses of what everybody is tested on, each by their own; of who has nothing of their own those of `before`."""
    numbers = np.concatenate([said.tested[name] for name in said.names])
    whose = np.repeat(np.arange(len(people)), [len(said.tested[name]) for name in said.names])
    rows = said.rows.iloc[numbers].reset_index(drop=True)
    changed = np.array([before is None or each.n_numbers > 0 for each in people])[whose]
    texts = np.full(len(rows), "", dtype=object) if before is None else before["hypothesis"].to_numpy(copy=True)
    if changed.any():
        texts[changed] = _texts(system, said.root, rows[changed], whose[changed], people)
    columns = rows[["utterance_id", "speaker", "etiology", "duration_s", "reference"]]
    return count_errors(columns.assign(hypothesis=texts, error=None))


def _texts(system: Any, root: Path, rows: pd.DataFrame, whose: np.ndarray, people: Sequence[Person]) -> list[str]:
    system.people = list(people)
    dataset = SpeechDataset(rows.reset_index(drop=True), root, system.inputs, extras={"person": whose})
    found = decode(system, dataset, DecodingOptions())
    system.people = []
    return [normalise(system.record.normaliser, each.text) for each in found]


def cohort(counted: pd.DataFrame, name: str) -> pd.DataFrame:
    """The people of a cohort."""
    own = counted["etiology"] == OWN_WAYS
    return counted[{"own ways": own, "demo": ~own}.get(name, own | ~own)]


def wers(counted: pd.DataFrame) -> dict[str, float]:
    """Word error rate of each cohort."""
    parts = {name: cohort(counted, name) for name in COHORTS}
    return {name: float(part["word_errors"].sum() / part["n_words"].sum()) for name, part in parts.items()}


def figures(after: pd.DataFrame, before: pd.DataFrame, people: Sequence[Person]) -> dict[str, Any]:
    """WER, difference to the recogniser as it is with interval and p over people, and how many have something of their own."""
    differences = {}
    for name in COHORTS:
        found = speaker_difference(cohort(after, name), cohort(before, name), N_RESAMPLES, 0)
        differences[name] = [found.value, found.low, found.high, found.p_value]
    errors = [table.groupby("speaker")["word_errors"].sum() for table in (after, before)]
    return {
        "wer": wers(after),
        "difference": differences,
        "changed": sum(each.n_numbers > 0 for each in people),
        "not_worse": int((errors[0] <= errors[1]).sum()),
    }


def table(folder: Path, seed: int) -> str:
    """Every result that is there of the people of a seed, a row for each way, as Markdown."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        result = read_json(path)
        if result["people_seed"] != seed:
            continue
        for way, found in result["ways"].items():
            cells = {"recogniser": result["name"], "utterances": result["size"], "options": result["changed"], "way": way}
            for name, title in COHORTS.items():
                value, low, high, p_value = found["difference"][name]
                cells[f"WER, {title}"] = (
                    f"{100 * result['as it is'][name]:.1f} → {100 * found['wer'][name]:.1f} "
                    f"({100 * value:+.1f}; {100 * low:+.1f} to {100 * high:+.1f}; p {p_value:.3f})"
                )
            cells["changed"], cells["CPU s a person"] = (
                f"{found['changed']} of {result['n_people']}",
                f"{result['seconds_a_person']:.1f}",
            )
            rows.append(cells)
    return markdown_table(pd.DataFrame(rows).sort_values(["recogniser", "options", "utterances"], kind="stable"))


def demo() -> None:
    """Every recogniser of the newest chain in the store, a process each."""
    models: dict[str, Path] = {}
    store = connect()
    wanted = "attributes.status = 'FINISHED' and tags.`{}` = '{}'"
    for step in ("asr", "baseline"):
        found = store.client.search_runs(
            [store.experiment_id], wanted.format(STEP_TAG, step), order_by=["start_time DESC"], max_results=20
        )
        for each in found:
            folder = artifacts.upstream(each.info.run_id, artifacts.MODEL)
            models.setdefault(read_record(folder).system, folder)
    if not models:
        raise SystemExit("there is no finished recogniser in the store: `make demo` trains three")
    command = [sys.executable, "-m", "benchmarks.personal", "--model"]
    running = [
        subprocess.Popen(
            [*command, str(folder), "--name", name], stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        for name, folder in models.items()
    ]
    if any([process.wait() for process in running]):
        raise SystemExit("a recogniser failed; its message is above")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--sizes", type=numbers, default=SIZES, help="utterances of each person")
    parser.add_argument("--people_seed", type=int, default=42, help="options were chosen on the people of seed 7")
    for field in dataclasses.fields(PersonOptions):
        parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--demo", action="store_true")
    parser.add_argument("--out", type=Path, default=FOLDER)
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    if chosen.demo:
        demo()
    if chosen.demo or chosen.table:
        print(table(chosen.out, chosen.people_seed))
        return 0
    if chosen.model is None:
        parser.error("--model names the folder of a recogniser")
    options = PersonOptions(**{field.name: getattr(chosen, field.name) for field in dataclasses.fields(PersonOptions)})
    for path in measure(chosen.model, chosen.name, chosen.sizes, options, chosen.people_seed, chosen.out):
        print(path.read_text(encoding="utf-8"))
    return 0


def measure(model: Path, name: str | None, sizes: Sequence[int], options: PersonOptions, seed: int, out: Path) -> list[Path]:
    """The results of a recogniser for each number of utterances, made where they are not there."""
    name = name or read_record(model).system
    changed = "".join(
        f"-{field.name}={getattr(options, field.name)}" for field in dataclasses.fields(options) if options.is_changed(field.name)
    )
    paths = {size: out / f"{name}-{size}-{seed}{changed}.json" for size in sizes}
    if wanted := [size for size in sizes if not paths[size].exists()]:
        out.mkdir(parents=True, exist_ok=True)
        system = load_system(model)
        said = speech(seed, system.record.normaliser)
        before = tested(system, said, [Person(each) for each in said.names])
        for size in wanted:
            facts = {"name": name, "size": size, "people_seed": seed, "changed": changed.strip("-")}
            write_json(paths[size], {**facts, **run(system, said, before, size, options)})
    return list(paths.values())


def numbers(text: str) -> list[int]:
    """Numbers of utterances that there are, separated by commas."""
    found = [int(part) for part in text.split(",")]
    if unknown := set(found) - set(SIZES):
        raise argparse.ArgumentTypeError(f"{sorted(unknown)} are not of {SIZES}")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
