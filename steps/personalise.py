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
from mlflow.entities import Metric, RunTag
from torch import Tensor

from moe.audio.augmentation import AugmentationOptions
from moe.experts.people.folders import PersonRecord, load_person, read_person_record, save_person
from moe.experts.people.options import AS_IT_IS, PersonOptions
from moe.experts.people.person import Layout, Person
from moe.experts.people.profiles import embeddings_of, profile_of
from moe.experts.people.training import Learnt, PersonalSystem, Recordings, learn_people
from moe.options import names_of, option
from moe.systems.table import load_system
from moe.training.dataset import SpeechDataset
from steps.inputs.people import Enrolled, PeopleOptions, read_people
from steps.registry import people as registry
from steps.reports.people import Proof, ProofOptions, prove, report
from steps.tracking import artifacts, runs
from steps.tracking.names import STEP_TAG
from steps.tracking.resuming import PARENT_TAG
from steps.tracking.step_run import StepRun

LEARNT = "learnt"  # folder of unfinished work
AT_ONCE = 32  # people who learn together
PRIVATE = ("person", "dataset_root", "trusted_root", "speaker_pattern")  # options whose values may tell who somebody is


@dataclasses.dataclass(frozen=True)
class StepOptions(PeopleOptions, AugmentationOptions, ProofOptions):
    """Enrol people above a recogniser."""

    augment: bool = option(True, "change what is learnt from a little in every pass")
    keep_profile: bool = option(
        False, "keep a profile of each voice, by which speaker=auto recognises it; it is biometric: only for who agreed"
    )

    def idle(self) -> dict[str, str]:
        """Augmentation where there is none."""
        return {} if self.augment else dict.fromkeys(names_of(AugmentationOptions), "needs augment=true")

    def as_parameters(self) -> dict[str, str]:
        """As logged: of what may tell who somebody is, a digest."""
        return registry.without_names(super().as_parameters(), PRIVATE)


def run(options: StepOptions) -> str:
    """Enrol everybody in the corpus, register them, and return the run id."""
    enrolled = read_people(options)
    _refuse_taken(enrolled, options)
    with runs.step_run("personalise", options, f"personalise · {len(enrolled.people)} people") as step:
        system: Any = load_system(enrolled.folder)
        started = time.process_time()
        learnt = _learn(system, enrolled, options, runs.work_dir(step) / LEARNT)
        proofs = prove(system, enrolled, learnt, options)
        profiles = _profiles(system, enrolled, options)
        for each, proof, profile in zip(learnt, proofs, profiles, strict=True):
            _log_person(step, enrolled, options, each, proof, profile)
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
        places = [folder / registry.digest_of(each.name) for each in together]  # a folder that is left behind names nobody
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


def _profiles(system: PersonalSystem, enrolled: Enrolled, options: StepOptions) -> list[Tensor | None]:
    """The profile of each person's voice, (D,), of what is not held back; None where nobody agreed to one."""
    if not options.keep_profile:
        return [None] * len(enrolled.people)
    dataset = SpeechDataset(enrolled.recordings.rows, enrolled.recordings.root, system.inputs)
    used = [np.concatenate([each.parts.learn, each.parts.choose]) for each in enrolled.people]
    return [profile_of(embeddings_of(system, dataset, numbers)) for numbers in used]


def _log_person(
    step: StepRun, enrolled: Enrolled, options: StepOptions, learnt: Learnt, proof: Proof, profile: Tensor | None
) -> None:
    """A run of the person's own, and a version in the registry."""
    person = learnt.person if proof.accepted else Person(learnt.person.name)
    person = dataclasses.replace(person, profile=profile)
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
    said = f"Kept: {record.kept}. {proof.why[0].upper()}{proof.why[1:]}. {'' if proof.accepted else 'Served as before.'}"
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
    registry.register_person(enrolled.registered, _source(options), run.info.run_id, record, profile is not None)
    print(
        f"{person.name}: {record.kept}, {proof.why}; WER {100 * proof.rates[0]:.1f} → {100 * figures['test/wer']:.1f} %",
        flush=True,
    )


def _log(
    step: StepRun, enrolled: Enrolled, options: StepOptions, learnt: Sequence[Learnt], proofs: Sequence[Proof], seconds: float
) -> None:
    """Everybody together: a table and a verdict, without names."""
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
    compared = report(proofs, options)
    salt = secrets.token_hex(8)
    rows = enrolled.recordings.rows[["utterance_id", "reference", "audio_digest"]].to_csv(index=False)
    step.set_tags({"moe.salt": salt, "moe.recordings_digest": hashlib.sha256((salt + rows).encode()).hexdigest()})
    step.log_text(compared, "comparison.md")
    warned = (
        f" {len(enrolled.seen)} of them are in the recogniser's train split: for them this is no test of unseen people."
        * bool(enrolled.seen)
    )
    if warned:
        print(f"warning:{warned}", flush=True)
    step.describe(
        f"{n_accepted} of {len(learnt)} people above {enrolled.registered} get what they have learnt (accept={options.accept}), the others are "
        f"served as before.{warned} {seconds / len(learnt):.1f} CPU seconds a person.\n\n{compared}"
    )


def main() -> None:
    """Command line."""
    runs.command(run, StepOptions)


if __name__ == "__main__":
    main()
