"""One recogniser: what people learn above it from so many utterances each, and their tests without and with it."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.error_rates import count_errors
from analysis.significance import speaker_difference
from benchmarks.personal.people import Speech, enrolment, speech
from moe.audio.augmentation import AugmentationOptions
from moe.experts.people.options import AS_IT_IS, AUTO, EXPERT, OF_EXPERT, WEIGHTS, PersonOptions
from moe.experts.people.parts import Parts
from moe.experts.people.person import Person
from moe.experts.people.training import Enrolment, Recordings, learn_people
from moe.files import write_json
from moe.recognition.decoding import decode
from moe.synthesis.voices import OWN_WAYS
from moe.system import DecodingOptions, read_record
from moe.systems.table import load_system
from moe.text.normalisers import normalise
from moe.training.dataset import SpeechDataset

COHORTS = {"own ways": "20 of own ways", "demo": "30 of the demo", "all": "50"}
N_RESAMPLES = 10_000
COMMON = "weights common to all"


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
