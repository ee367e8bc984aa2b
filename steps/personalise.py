"""Entry point `personalise`: an expert and weights of their own for people, above a finished recogniser; nothing changes for anybody else.

Reads a recogniser and a corpus of recordings; each person is a registered model of their own, and is served by `speaker`. No audio, words
or names go into this run: a person's own run has their figures. Example:
    mlflow run . --env-manager local -e personalise -P model_uri=models:/whisper-moe@champion -P dataset_root=PATH
"""

import dataclasses
import hashlib
import secrets
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities import Metric, RunTag

from analysis.comparison import compare
from analysis.error_rates import count_errors
from analysis.intervals import Difference
from analysis.significance import speaker_difference
from analysis.systems import SystemScores
from moe.audio.augmentation import AugmentationOptions
from moe.experts.people.folders import PersonRecord, load_person, read_person_record, save_person
from moe.experts.people.options import AS_IT_IS, PersonOptions
from moe.experts.people.person import Layout, Person
from moe.experts.people.training import Learnt, PersonalSystem, Recordings, agreement, learn_people
from moe.options import names_of, option
from moe.recognition.decoding import decode
from moe.system import DecodingOptions
from moe.systems.table import load_system
from moe.text.normalisers import normalise
from moe.training.dataset import SpeechDataset
from steps.inputs.people import Enrolled, PeopleOptions, read_people
from steps.options.step_options import SeedOptions
from steps.registry import people as registry
from steps.tracking import artifacts, runs
from steps.tracking.names import STEP_TAG
from steps.tracking.resuming import PARENT_TAG
from steps.tracking.step_run import StepRun

NOT_WORSE, SIGNIFICANT = "not_worse", "significant"
LEARNT = "learnt"  # folder of unfinished work
AT_ONCE = 32  # people who learn together
MOST_AGREEMENT = 0.85  # reference loss by that of another sentence; above it a transcript is no more likely than any other
WITHOUT, WITH = "as it is", "with their own"
PRIVATE = ("person", "dataset_root", "trusted_root", "speaker_pattern")  # options whose values may tell who somebody is


@dataclasses.dataclass(frozen=True)
class StepOptions(PersonOptions, PeopleOptions, AugmentationOptions, DecodingOptions, SeedOptions):
    """Enrol people above a recogniser."""

    augment: bool = option(True, "change what is learnt from a little in every pass")
    accept: str = option(NOT_WORSE, "what the held-back part must show, by person", choices=(NOT_WORSE, SIGNIFICANT), common=True)
    keep_hypotheses: bool = option(False, "log what was recognised in the held-back part, words and all")
    n_resamples: int = option(10_000, "bootstrap resamples over people", low=100)

    def idle(self) -> dict[str, str]:
        """Augmentation where there is none."""
        return {} if self.augment else dict.fromkeys(names_of(AugmentationOptions), "needs augment=true")

    def as_parameters(self) -> dict[str, str]:
        """As logged: of what may tell who somebody is, a digest."""
        shown = super().as_parameters()
        return {name: _digest(value) if name in PRIVATE and value != "none" else value for name, value in shown.items()}


@dataclasses.dataclass(frozen=True)
class Proof:
    """What a person's held-back part shows.

    Attributes:
        before, after: counted hypotheses of the part, as it is and with their own.
        losses: mean reference loss of the part, before and after.
        accepted: whether they get what they learnt; `why` in words.
    """

    before: pd.DataFrame
    after: pd.DataFrame
    losses: tuple[float, float]
    accepted: bool
    why: str

    @property
    def rates(self) -> tuple[float, float]:
        """Word error rates, before and after."""
        return _wer(self.before), _wer(self.after)


def run(options: StepOptions) -> str:
    """Enrol everybody in the corpus, register them, and return the run id."""
    enrolled = read_people(options)
    _refuse_taken(enrolled, options)
    with runs.step_run("personalise", options, f"personalise · {len(enrolled.people)} people") as step:
        system: Any = load_system(enrolled.folder)
        started = time.process_time()
        learnt = _learn(system, enrolled, options, runs.work_dir(step) / LEARNT)
        proofs = _prove(system, enrolled, learnt, options)
        for each, proof in zip(learnt, proofs, strict=True):
            _log_person(step, enrolled, options, each, proof)
        _log(step, enrolled, options, learnt, proofs, time.process_time() - started)
    return step.run_id


def _refuse_taken(enrolled: Enrolled, options: StepOptions) -> None:
    """A name that another recogniser's person has.

    Raises:
        ValueError: naming it.
    """
    held = {each.name: registry.above_of(enrolled.registered, each.name) for each in enrolled.people}
    source = _source(options)
    taken = [name for name, above in held.items() if above is not None and above != source]
    if taken:
        raise ValueError(
            f"person={taken[0]}: the name is taken by somebody above {held[taken[0]]}; choose another, or `forget` that person first"
        )


def _source(options: StepOptions) -> str:
    """The recogniser as people are tagged with it: a registered model by its name, whichever version."""
    return options.recogniser.partition("@")[0] if options.model_uri else f"run {options.recogniser}"


def _learn(system: PersonalSystem, enrolled: Enrolled, options: StepOptions, folder: Path) -> list[Learnt]:
    """What everybody has learnt; those who learnt together before an interruption do not learn again."""
    rows, root = enrolled.recordings.rows, enrolled.recordings.root
    augmentation = options.part(AugmentationOptions) if options.augment else None
    recordings = Recordings(
        SpeechDataset(rows, root, system.inputs, augmentation, options.seed, trains=True),
        SpeechDataset(rows, root, system.inputs),
    )
    layout = system.layout(options.targets, options.person_r)
    found = []
    for start in range(0, len(enrolled.people), AT_ONCE):
        together = enrolled.people[start : start + AT_ONCE]
        places = [folder / _digest(each.name) for each in together]  # a folder that is left behind names nobody
        if not all(place.is_dir() for place in places):
            learnt = learn_people(system, recordings, together, options.part(PersonOptions), options.seed)
            for each, place in zip(learnt, places, strict=True):
                save_person(
                    place,
                    each.person,
                    PersonRecord(place.name, enrolled.digest, each.kept, options.targets, options.person_r, (0, 0, 0)),
                )
        found += [_read(place, each.name, layout, enrolled.digest) for place, each in zip(places, together, strict=True)]
    return found


def _read(folder: Path, name: str, layout: Layout, recogniser: str) -> Learnt:
    person = dataclasses.replace(load_person(folder, layout, recogniser), name=name)
    return Learnt(person, read_person_record(folder).kept)


def _prove(system: Any, enrolled: Enrolled, learnt: Sequence[Learnt], options: StepOptions) -> list[Proof]:
    """The held-back parts decoded without and with what everybody has learnt."""
    numbers = [each.parts.held_back for each in enrolled.people]
    without = [Person(each.person.name) for each in learnt]
    tables = [_decoded(system, enrolled, people, options) for people in (without, [each.person for each in learnt])]
    plain = SpeechDataset(enrolled.recordings.rows, enrolled.recordings.root, system.inputs)

    def agrees(part: np.ndarray) -> bool:
        return agreement(system, plain, part) <= MOST_AGREEMENT

    proofs = []
    for each, part in zip(learnt, numbers, strict=True):
        ids = set(enrolled.recordings.rows["utterance_id"].iloc[part])
        before, after = (table[table["utterance_id"].isin(ids)].reset_index(drop=True) for table in tables)
        proofs.append(_judged(each, before, after, agrees(part), options))
    return proofs


def _decoded(system: Any, enrolled: Enrolled, people: Sequence[Person], options: StepOptions) -> pd.DataFrame:
    numbers = np.concatenate([each.parts.held_back for each in enrolled.people])
    whose = np.repeat(np.arange(len(people)), [len(each.parts.held_back) for each in enrolled.people])
    rows = enrolled.recordings.rows.iloc[numbers].reset_index(drop=True)
    dataset = SpeechDataset(rows, enrolled.recordings.root, system.inputs, extras={"person": whose})
    system.people = list(people)
    found = decode(system, dataset, options.part(DecodingOptions), with_loss=True, title="held back")
    system.people = []
    table = rows[["utterance_id", "duration_s", "reference"]].assign(
        speaker=[people[number].name for number in whose.tolist()],
        etiology="unknown",
        hypothesis=[normalise(system.record.normaliser, each.text) for each in found],
        error=None,
        loss=[each.utterance_loss for each in found],
    )
    return count_errors(table)


def _judged(learnt: Learnt, before: pd.DataFrame, after: pd.DataFrame, agrees: bool, options: StepOptions) -> Proof:
    losses = float(before["loss"].mean()), float(after["loss"].mean())
    rates = _wer(before), _wer(after)
    if not agrees:
        return Proof(before, after, losses, False, "the transcripts do not fit the recordings")
    if learnt.kept == AS_IT_IS:
        return Proof(before, after, losses, False, "no pass was better on the choosing part")
    if rates[1] > rates[0] or losses[1] > losses[0]:
        return Proof(before, after, losses, False, "worse on the held-back part")
    if options.accept == SIGNIFICANT:
        found = _over_utterances(after, before, options)
        if not (found.value < 0 and found.p_value < 0.05):
            return Proof(before, after, losses, False, f"not significantly better on the held-back part (p {found.p_value:.2f})")
    return Proof(
        before, after, losses, True, "no worse on the held-back part" if options.accept == NOT_WORSE else "significantly better"
    )


def _over_utterances(after: pd.DataFrame, before: pd.DataFrame, options: StepOptions) -> Difference:
    """The difference of one person, resampled over their utterances."""
    ours, theirs = (table.assign(speaker=table["utterance_id"]) for table in (after, before))
    return speaker_difference(ours, theirs, options.n_resamples, options.seed)


def _log_person(step: StepRun, enrolled: Enrolled, options: StepOptions, learnt: Learnt, proof: Proof) -> None:
    """A run of the person's own, and a version in the registry."""
    person = learnt.person if proof.accepted else Person(learnt.person.name)
    number = [each.name for each in enrolled.people].index(person.name)
    figures = {"test/wer_as_it_is": proof.rates[0], "test/wer": proof.rates[1] if proof.accepted else proof.rates[0]}
    figures |= {"test/loss_as_it_is": proof.losses[0], "test/loss_learnt": proof.losses[1], "test/wer_learnt": proof.rates[1]}
    record = PersonRecord(
        person.name,
        enrolled.digest,
        learnt.kept if proof.accepted else AS_IT_IS,
        options.targets,
        options.person_r,
        enrolled.people[number].parts.counts,
        figures,
    )
    tags = {STEP_TAG: registry.STEP, registry.PERSON_TAG: person.name, PARENT_TAG: step.run_id, "mlflow.runName": "a person"}
    run = step.client.create_run(step.client.get_run(step.run_id).info.experiment_id, tags=tags)
    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, 0) for name, value in figures.items() if np.isfinite(value)]
    said = f"## {record.kept}\n{proof.why}. {'' if proof.accepted else 'Served as before.'}"
    step.client.log_batch(
        run.info.run_id, metrics=metrics, tags=[RunTag("mlflow.note.content", said), RunTag("moe.kept", record.kept)]
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / registry.FOLDER
        save_person(folder, person, record)
        step.client.log_artifacts(run.info.run_id, str(folder), registry.FOLDER)
        if options.keep_hypotheses:
            proof.after.drop(columns="speaker").to_parquet(Path(temporary) / artifacts.HYPOTHESES)
            step.client.log_artifact(run.info.run_id, str(Path(temporary) / artifacts.HYPOTHESES))
    step.client.set_terminated(run.info.run_id, "FINISHED")
    registry.register_person(enrolled.registered, _source(options), run.info.run_id, record)
    print(
        f"{person.name}: {record.kept}, {proof.why}; WER {100 * proof.rates[0]:.1f} → {100 * figures['test/wer']:.1f} %",
        flush=True,
    )


def _log(
    step: StepRun, enrolled: Enrolled, options: StepOptions, learnt: Sequence[Learnt], proofs: Sequence[Proof], seconds: float
) -> None:
    """Everybody together: a table and a verdict, without names."""
    served = [proof.after if proof.accepted else proof.before for proof in proofs]
    n_accepted = sum(proof.accepted for proof in proofs)
    step.log_metrics(
        {
            "n_people": len(learnt),
            "n_accepted": n_accepted,
            "n_utterances": len(enrolled.recordings.rows),
            "n_quarantined": len(enrolled.recordings.quarantine),
            "seconds_a_person": seconds / len(learnt),
            **{
                f"kept/{kept.replace(' ', '_')}": sum(each.kept == kept for each in learnt)
                for kept in {each.kept for each in learnt}
            },
        }
    )
    report = _report(pd.concat([proof.before for proof in proofs]), pd.concat(served), options)
    salt = secrets.token_hex(8)
    rows = enrolled.recordings.rows[["utterance_id", "reference", "audio_digest"]].to_csv(index=False)
    step.set_tags({"moe.salt": salt, "moe.recordings_digest": hashlib.sha256((salt + rows).encode()).hexdigest()})
    step.log_text(report, "comparison.md")
    warned = (
        f" {len(enrolled.seen)} of them are in the recogniser's train split: for them this is no test of unseen people."
        * bool(enrolled.seen)
    )
    if warned:
        print(f"warning:{warned}", flush=True)
    step.describe(
        f"{n_accepted} of {len(learnt)} people above {enrolled.registered} get what they have learnt (accept={options.accept}), the others are "
        f"served as before.{warned} {seconds / len(learnt):.1f} CPU seconds a person.\n\n{report}"
    )


def _report(before: pd.DataFrame, served: pd.DataFrame, options: StepOptions) -> str:
    """A comparison of before and after over people, or over the utterances of one."""
    tables = [table.reset_index(drop=True) for table in (before, served)]
    if before["speaker"].nunique() < 2:
        tables = [table.assign(speaker=table["utterance_id"]) for table in tables]
    systems = [
        SystemScores(name, "", name, role, table, metadata={"normaliser": "", "test_set_digest": "", "note": ""})
        for name, role, table in zip((WITHOUT, WITH), ("base", "candidate"), tables, strict=True)
    ]
    return compare(systems, WITHOUT, [], options.n_resamples, options.seed, plots=False).markdown()


def _wer(counted: pd.DataFrame) -> float:
    return float(counted["word_errors"].sum() / max(1, counted["n_words"].sum()))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
