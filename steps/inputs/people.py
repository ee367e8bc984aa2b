"""Who is to be enrolled above which recogniser: everything that can be refused is refused here, before a model is loaded or a run is opened."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd

from moe.corpora.formats.table import FORMATS, CorpusOptions
from moe.corpora.preparation import PreparationOptions
from moe.corpora.recordings import ReadRecordings, read_recordings
from moe.experts.people.options import BOTH, EXPERT, WEIGHTS, PartOptions, PersonOptions
from moe.experts.people.parts import Parts, divide, too_few
from moe.experts.people.person import name_faults
from moe.experts.people.training import Enrolment
from moe.files import folder_digest
from moe.options import option
from moe.system import Record, read_record
from moe.systems.whisper.base_source import base_window_s
from moe.systems.whisper_moe.folder import BASE_DIR, person_faults
from steps.inputs.corpus import read_prepared
from steps.registry import versions
from steps.registry.people import registered_of
from steps.tracking.artifacts import NONE_GIVEN
from steps.tracking.store import connect

SPEAKER, GROUP = "speaker", "group"
PERSONAL = ("whisper_moe", "single_lora", "zero_shot")


@dataclasses.dataclass(frozen=True)
class PeopleOptions(PersonOptions, CorpusOptions, PartOptions):
    """Whose recordings, above which recogniser, and what is learnt of them."""

    group = "person"

    model_uri: str | None = option(None, "the recogniser: models:/NAME@ALIAS, models:/NAME/VERSION, or its folder", common=True)
    asr_run_id: str | None = option(None, "the recogniser: an asr run")
    baseline_run_id: str | None = option(None, "the recogniser: a baseline run")
    corpus: str = option("folder", "format of the corpus", choices=tuple(FORMATS), common=True)
    unit: str = option(
        SPEAKER, "every speaker becomes a person, or all together one (person)", choices=(SPEAKER, GROUP), common=True
    )
    person: str | None = option(None, "name of the one person of unit=group", common=True)
    max_quarantined: float = option(0.05, "share of the recordings that may be unusable before the step fails", low=0, high=1)
    n_workers: int = option(0, "processes that decode (0: one per core)", low=0)

    def faults(self) -> list[str]:
        """One recogniser, a corpus, and a name where one is asked for."""
        found = []
        named = [name for name in ("model_uri", "asr_run_id", "baseline_run_id") if getattr(self, name) is not None]
        if len(named) != 1:
            found.append(f"name one recogniser, by model_uri, asr_run_id or baseline_run_id, not {' and '.join(named) or 'none'}")
        if self.dataset_root is None:
            found.append("dataset_root is missing: the folder or address of the recordings")
        if self.unit == GROUP:
            found += name_faults([self.person]) if self.person else ["person is missing: unit=group needs a name"]
        elif self.person is not None:
            found.append(
                f"person={self.person}: unit=speaker takes the names of the corpus; unit=group makes all of it one person"
            )
        return found

    @property
    def recogniser(self) -> str:
        """What names the recogniser."""
        return self.model_uri or self.asr_run_id or self.baseline_run_id or ""


@dataclasses.dataclass(frozen=True)
class Enrolled:
    """People to enrol, and the recogniser.

    Attributes:
        folder: of the recogniser; `digest` its content, `registered` the name that its people go by.
        people: with the numbers of their rows, by part.
        seen: names of those who are in the recogniser's train split.
    """

    folder: Path
    digest: str
    registered: str
    record: Record
    recordings: ReadRecordings
    people: list[Enrolment]
    seen: frozenset[str]


def read_people(options: PeopleOptions) -> Enrolled:
    """Read recogniser and recordings, and divide what everybody said.

    Raises:
        ValueError: everything that stands against it, in one message.
        RuntimeError: no such run, or it holds no model.
    """
    folder = versions.recognizer_dir(options.recogniser)
    record = read_record(folder)
    if record.system not in PERSONAL:
        raise ValueError(
            f"{options.recogniser} is of the system {record.system}: people are enrolled above {', '.join(PERSONAL)}"
        )
    if options.learn in (WEIGHTS, BOTH) and not record.shape["n_experts"]:
        raise ValueError(
            f"learn={options.learn}: {options.recogniser} has no routed experts, so nobody can have weights of them; learn={EXPERT}"
        )
    if faults := person_faults(folder, options.targets, options.person_r):
        raise ValueError("; ".join(faults))
    wanted = PreparationOptions(
        **{field.name: getattr(options, field.name) for field in dataclasses.fields(CorpusOptions)},
        corpus=options.corpus,
        normaliser=record.normaliser,
        max_quarantined=options.max_quarantined,
        n_workers=options.n_workers,
    )
    recordings = read_recordings(wanted)
    people = _people(recordings.rows, options)
    faults = (
        _language_faults(recordings.rows, record)
        + _window_faults(recordings.rows, folder)
        + name_faults([each.name for each in people])
    )
    faults += [fault for each in people if (fault := too_few(each.name, each.parts)) is not None]
    if faults:
        raise ValueError("; ".join(faults))
    return Enrolled(
        folder,
        folder_digest(folder),
        registered_of(options.recogniser, record),
        record,
        recordings,
        people,
        _seen(options, people),
    )


def person_name(speaker: str) -> str:
    """A speaker's name as that of a person: small letters, `_` for spaces."""
    return "_".join(speaker.lower().split())


def _people(rows: pd.DataFrame, options: PeopleOptions) -> list[Enrolment]:
    names = pd.Series([options.person] * len(rows)) if options.unit == GROUP else rows["speaker"].map(person_name)
    return [_enrolment(str(name), rows, part.index.to_numpy(), options) for name, part in rows.groupby(names.to_numpy())]


def _enrolment(name: str, rows: pd.DataFrame, numbers: np.ndarray, options: PeopleOptions) -> Enrolment:
    parts = divide(rows["reference"].iloc[numbers].tolist(), options.choose_share, options.held_back_share)
    return Enrolment(name, Parts(numbers[parts.learn], numbers[parts.choose], numbers[parts.held_back]))


def _language_faults(rows: pd.DataFrame, record: Record) -> list[str]:
    others = sorted(set(rows["language"]) - {record.language})
    return [f"language={others[0]}: the recogniser was trained for {record.language}"] if others else []


def _window_faults(rows: pd.DataFrame, folder: Path) -> list[str]:
    window = base_window_s(str(folder / BASE_DIR))
    long = rows.loc[rows["duration_s"] > (math.inf if window is None else window), "utterance_id"]
    if not len(long):
        return []
    return [f"{len(long)} recordings are longer than the recogniser's window of {window:g} s: cut or leave them out"]


def _seen(options: PeopleOptions, people: list[Enrolment]) -> frozenset[str]:
    """People whose names are those of speakers that the recogniser was trained on, where its runs are known."""
    run_id = options.asr_run_id or options.baseline_run_id or versions.model_run_of(options.recogniser)
    made_from = connect().client.get_run(run_id).data.params.get("prepare_run_id") if run_id else None
    if made_from in (None, *NONE_GIVEN):
        return frozenset()
    trained = {person_name(name) for name in read_prepared(made_from).rows("train")["speaker"]}
    return frozenset(each.name for each in people if each.name in trained)
