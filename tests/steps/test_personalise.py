"""People above a registered recogniser, from recordings to a served answer and back to nothing."""

import dataclasses
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
from mlflow import MlflowClient

from moe.experts.people.folders import (
    PROFILE_FILE,
    OtherRecogniser,
    PersonRecord,
    read_person_record,
    read_profile,
    save_person,
)
from moe.experts.people.person import Person
from moe.experts.people.training import Learnt, agreement
from moe.files import folder_digest
from moe.serving.people import PROFILE_TAG, ServedPeople, UnknownPerson
from moe.synthesis.corpus import synthesize
from moe.synthesis.planning import SynthesisOptions
from moe.systems.table import load_system
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper_moe.zero_shot import base_system
from moe.training.dataset import SpeechDataset
from steps import forget, personalise, transcribe
from steps.inputs.people import _seen, read_people
from steps.pretrain import SHIPPED
from steps.registry import people
from steps.reports import people as people_proof
from steps.tracking.store import connect
from tests.toys.corpora import RATE
from tests.toys.models import WORDS, toy_wave
from tests.toys.registry import log_toy_asr, toy_store, write_toy_model

SPEAKERS, N_EACH = ("ann_q1", "bob_q2", "zoe_q3"), 12
FAST = {
    "person_passes": 2,
    "person_r": 2,
    "n_resamples": 100,
    "max_tokens_per_s": 6.0,
    "learn": "both",
    "n_masks": 0,
    "n_workers": 1,
}


def write_recordings(
    folder: Path, speakers: tuple[str, ...] = SPEAKERS, n_each: int = N_EACH, sentence: str | None = None
) -> Path:
    """Every speaker says every one of the first sentences of two words."""
    folder.mkdir(parents=True)
    rows = []
    for place, speaker in enumerate(speakers):
        for number in range(n_each):
            soundfile.write(folder / f"{place}_{number}.wav", toy_wave(100 * place + number, 0.5 + 0.05 * number), RATE)
            said = sentence or f"{WORDS[number % 5]} {WORDS[number // 5]}"
            rows.append({"path": f"{place}_{number}.wav", "transcript": said, "speaker": speaker})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


@dataclasses.dataclass(frozen=True)
class World:
    """A store with a recogniser and the recordings of three people."""

    store: Path
    asr: str
    recordings: Path
    runs: dict[str, str]

    def options(self, **changes) -> personalise.StepOptions:
        return personalise.StepOptions(**{"asr_run_id": self.asr, "dataset_root": str(self.recordings), **FAST, **changes})

    def holds(self, text: str) -> list[str]:
        """Files below the store that hold the bytes of a text, its log of writes among them."""
        return [
            str(path.relative_to(self.store))
            for path in self.store.rglob("*")
            if path.is_file() and text.encode() in path.read_bytes()
        ]


@pytest.fixture(scope="module")
def world(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("people")
    with toy_store(empty_store, folder / "store"):
        made = World(folder / "store", log_toy_asr(folder), write_recordings(folder / "recordings"), {})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(people_proof, "MOST_AGREEMENT", 10.0)  # the toy has learnt nothing, so no transcript fits
            made.runs["personalise"] = personalise.run(made.options())
        yield made


def test_everybody_is_registered_with_their_figures_and_nobody_is_named_elsewhere(world: World) -> None:
    client = connect().client
    for name in SPEAKERS:
        folder = people.person_folder("whisper-moe", name)
        record = read_person_record(folder)
        assert (
            record.name == name and record.n_utterances == (5, 2, 5) and set(record.figures) >= {"test/wer", "test/wer_as_it_is"}
        )
        assert record.kept in ("as it is", "both") and (record.kept == "both") == (folder / "expert").is_dir()
    run = client.get_run(world.runs["personalise"])
    assert run.data.metrics["n_people"] == 3 and run.data.params["dataset_root"] != str(world.recordings)
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    texts = "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())
    assert not any(name in texts + str(run.data.tags) + str(run.data.params) for name in SPEAKERS)
    assert f"{WORDS[1]} {WORDS[0]}" not in texts and "| with their own |" in texts.replace("  ", " ")


def test_a_person_is_served_above_their_recogniser_and_above_no_other(world: World) -> None:
    folder = people.artifacts.upstream(world.asr, "model")
    system = load_system(folder)
    served = ServedPeople(system, folder_digest(folder), lambda name: people.person_folder("whisper-moe", name))
    found = served.of("ann_q1")
    assert found.person.name == "ann_q1" and served.n_held == 1
    for name, words in (
        ("nobody", "nobody of that name"),
        ("../ann", "a name is 1 to 64"),
        ("auto", "nobody is recognised by their voice"),
    ):
        with pytest.raises(UnknownPerson, match=words) as fault:
            served.of(name)
        assert not any(other in str(fault.value) for other in SPEAKERS)
    with pytest.raises(OtherRecogniser, match="enrol them again"):  # another one is promoted
        ServedPeople(system, "another", lambda name: people.person_folder("whisper-moe", name)).of("ann_q1")
    again = ServedPeople(system, folder_digest(folder), lambda name: people.person_folder("whisper-moe", name))  # and rolled back
    assert again.of("ann_q1").folder == found.folder
    digests = (folder_digest(folder), "another")
    assert [people.left_without("whisper-moe", digest) for digest in digests] == [0, len(list(people.people_of("whisper-moe")))]


def test_more_people_than_a_page_of_the_registry_are_all_found(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    search = MlflowClient.search_registered_models

    def one_by_one(self: MlflowClient, *given: Any, max_results: int, **how: Any) -> Any:
        return search(self, *given, max_results=1, **how)

    monkeypatch.setattr(MlflowClient, "search_registered_models", one_by_one)
    assert set(SPEAKERS) <= {record.name for record in people.people_of("whisper-moe")}


def test_at_most_so_many_people_are_in_memory_and_the_gone_are_dropped(world: World) -> None:
    folder = people.artifacts.upstream(world.asr, "model")
    there = {name: people.person_folder("whisper-moe", name) for name in SPEAKERS}
    served = ServedPeople(load_system(folder), folder_digest(folder), there.get, most=2, refresh_s=0.0)
    for name in SPEAKERS:
        served.of(name)
    assert served.n_held == 2
    there.pop("zoe_q3")
    with pytest.raises(UnknownPerson):
        served.of("zoe_q3")
    served.of("bob_q2")
    assert served.n_held == 1


@pytest.mark.parametrize(
    ("speaker", "words"),
    [("someone", "nobody of that name is enrolled"), ("a/b", "a name is 1 to 64"), ("old", "enrolled with another recogniser")],
)
def test_a_speaker_who_cannot_be_served_is_refused_before_a_model_is_loaded(
    speaker: str, words: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = tmp_path / "old"
    save_person(old, Person("old"), PersonRecord("old", "another", "as it is", ("q_proj",), 2, (3, 2, 5)))
    find = people.person_folder
    monkeypatch.setattr(people, "person_folder", lambda above, name: old if name == "old" else find(above, name))
    monkeypatch.setattr(transcribe, "load_system", lambda _: pytest.fail("a model is loaded"))
    options = {"audio": str(world.recordings), "model": world.asr, "output_dir": str(tmp_path / "x")}
    with pytest.raises((ValueError, OtherRecogniser), match=words):
        transcribe.run(transcribe.StepOptions(**options, speaker=speaker))
    with pytest.raises(ValueError, match="speaker=auto: a server recognises voices"):
        transcribe.StepOptions(**options, speaker="auto")


def test_transcribe_takes_a_speaker_or_a_table_of_them(world: World, tmp_path: Path) -> None:
    recordings = world.recordings
    pd.DataFrame({"audio": ["0_0.wav", "1_0.wav"], "speaker": ["ann_q1", "bob_q2"]}).to_csv(tmp_path / "who.csv", index=False)
    given = {"audio": str(recordings), "model": world.asr, "speech_threshold": 0.0, "max_tokens_per_s": 6.0}
    transcribe.run(transcribe.StepOptions(**given, output_dir=str(tmp_path / "table"), speakers_file=str(tmp_path / "who.csv")))
    asked = transcribe.run(transcribe.StepOptions(**given, output_dir=str(tmp_path / "ann_q1"), speaker="ann_q1"))
    assert "ann_q1" not in connect().client.get_run(asked).data.params["speaker"]
    transcribe.run(transcribe.StepOptions(**given, output_dir=str(tmp_path / "nobody")))
    texts = {
        kind: {path.stem: json.loads(path.read_text())["confidence"] for path in (tmp_path / kind).glob("*.json")}
        for kind in ("table", "ann_q1", "nobody")
    }
    assert texts["table"]["0_0"] == pytest.approx(texts["ann_q1"]["0_0"], abs=1e-4)
    assert texts["table"]["2_3"] == pytest.approx(texts["nobody"]["2_3"], abs=1e-4)
    with pytest.raises(ValueError, match="nobody of that name is enrolled"):
        transcribe.run(transcribe.StepOptions(**given, output_dir=str(tmp_path / "x"), speaker="someone"))
    (tmp_path / "who.csv").write_text("audio,speaker\n0_0.wav,ann_q1\n1_0.wav,someone\n")
    with pytest.raises(ValueError, match="nobody of that name is enrolled"):  # before anybody's recording is transcribed
        transcribe.run(transcribe.StepOptions(**given, output_dir=str(tmp_path / "z"), speakers_file=str(tmp_path / "who.csv")))
    assert not (tmp_path / "z").exists()
    (tmp_path / "who.csv").write_text("audio,speaker\nno.wav,ann_q1\n")
    with pytest.raises(ValueError, match=r"no recording 'no.wav' below"):
        transcribe.run(transcribe.StepOptions(**given, output_dir=str(tmp_path / "y"), speakers_file=str(tmp_path / "who.csv")))


REFUSED = {
    "too few": ({"n_each": 6}, {}, "ann_q1 has 6 utterances: .* held back, by whole sentences; at least 3, 2 and 5"),
    "one sentence": ({"sentence": "oak oak"}, {}, "of different sentences"),
    "a slash": ({"speakers": ("a/b",)}, {}, "person='a/b': a name is 1 to 64"),
    "auto": ({"speakers": ("auto",)}, {}, "person='auto': .* and not auto"),
    "too long": ({"speakers": ("x" * 65,)}, {}, "a name is 1 to 64"),
    "language": ({}, {"language": "ko"}, "language=ko: the recogniser was trained for en"),
    "rank": ({}, {"person_r": 33}, "person_r=33: .* is only 32 wide"),
    "targets": ({}, {"person_targets": "nonsense"}, "person_targets=nonsense: no Linear is called nonsense"),
}  # fmt: skip


@pytest.mark.parametrize(("corpus", "changes", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_enrolled_is_refused_by_name(
    corpus: dict, changes: dict, words: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(personalise, "load_system", lambda _: pytest.fail("a model is loaded"))
    folder = write_recordings(tmp_path / "r", **corpus)
    with pytest.raises(ValueError, match=words):
        personalise.run(world.options(dataset_root=str(folder), **changes))


@pytest.mark.parametrize("learn", ["weights", "both"])
def test_weights_of_experts_that_a_recogniser_has_not_are_refused_before_a_recording_is_read(
    learn: str, world: World, tmp_path: Path
) -> None:
    write_toy_model(tmp_path / "m", 0)
    options = personalise.StepOptions(model_uri=str(tmp_path / "m"), dataset_root=str(tmp_path / "gone"), learn=learn)
    with pytest.raises(ValueError, match=f"learn={learn}: .* has no routed experts, .*; learn=expert"):
        read_people(options)


def test_silent_recordings_are_in_quarantine_and_said(world: World, tmp_path: Path) -> None:
    folder = write_recordings(tmp_path / "r", ("ann_q1",))
    for path in folder.glob("*.wav"):
        soundfile.write(path, np.zeros(8000), RATE)
    with pytest.raises(ValueError, match="12 of 12 utterances cannot be used .12 silent"):
        read_people(world.options(dataset_root=str(folder)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"unit": "group"}, "person is missing: unit=group needs a name"),
        ({"unit": "group", "person": ""}, "person is missing: unit=group needs a name"),
        ({"unit": "group", "person": "../x"}, "a name is 1 to 64"),
        ({"person": "ann_q1"}, "unit=speaker takes the names of the corpus"),
        ({"model_uri": "models:/a@champion"}, "name one recogniser"),
        ({"choose_share": 0.6, "held_back_share": 0.5}, "must leave a tenth to learn from"),
    ],
)
def test_options_that_contradict_each_other(changes: dict, words: str, world: World) -> None:
    with pytest.raises(ValueError, match=words):
        world.options(**changes)


def test_a_name_that_somebody_above_another_recogniser_has_is_taken(world: World, tmp_path: Path) -> None:
    other = log_toy_asr(tmp_path)
    with pytest.raises(ValueError, match="person=ann_q1: the name is taken by somebody above run"):
        personalise.run(world.options(asr_run_id=other))


def enrol_until_killed(options: personalise.StepOptions) -> None:
    """In a process of its own, which ends as by `kill -9` where the second person is to be written."""
    save, written = personalise.save_person, list[Path]()

    def killed(folder: Path, *rest: object) -> None:
        written.append(folder)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder, *rest)

    personalise.save_person, personalise.AT_ONCE = killed, 1
    personalise.run(options)


def test_a_call_that_was_killed_goes_on_with_the_same_bits(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who had learnt before does not learn again; whoever had not learns as in a call that nothing stopped."""
    recordings = write_recordings(tmp_path / "r", ("p_1", "p_2", "p_3"))
    options = world.options(dataset_root=str(recordings))
    child = multiprocessing.get_context("spawn").Process(target=enrol_until_killed, args=(options,))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    monkeypatch.setattr(personalise, "AT_ONCE", 1)
    monkeypatch.setattr(people_proof, "MOST_AGREEMENT", 10.0)
    learn, calls = personalise.learn_people, list[str]()

    def counted(system: object, said: object, people: list, *rest: object) -> object:
        calls.append(people[0].name)
        return learn(system, said, people, *rest)

    monkeypatch.setattr(personalise, "learn_people", counted)
    personalise.run(options)
    assert calls == ["p_2", "p_3"]
    first = {name: folder_digest(people.person_folder("whisper-moe", name)) for name in ("p_1", "p_2", "p_3")}
    personalise.run(options)
    assert {name: folder_digest(people.person_folder("whisper-moe", name)) for name in first} == first


@pytest.mark.parametrize("n_turned", [0, 3])
def test_transcripts_that_belong_to_other_recordings_are_seen(n_turned: int, tmp_path: Path) -> None:
    """With the shipped base and synthetic speech: turned by three utterances, nobody's transcript is their own."""
    options = SynthesisOptions(
        styles="typical",
        n_train_speakers=1,
        n_utterances=1,
        n_dev_speakers=0,
        n_test_speakers=1,
        n_test_utterances=9,
        seen_share=0.0,
    )
    synthesize(options, tmp_path / "c")
    rows = pd.read_csv(tmp_path / "c" / "manifest.csv").query("split == 'test'").reset_index(drop=True)
    rows = rows.assign(audio=rows["path"], member=None, reference=np.roll(rows["transcript"], n_turned))
    system = base_system(load_base(SHIPPED), Path(SHIPPED), "en", "basic")
    dataset = SpeechDataset(rows, tmp_path / "c", system.inputs)
    agrees = agreement(system, dataset, np.arange(9)) <= people_proof.MOST_AGREEMENT
    assert agrees == (n_turned == 0)
    before, after = (pd.DataFrame({"word_errors": [errors], "n_words": [9], "loss": [float(errors)]}) for errors in (5, 1))
    proof = people_proof.judged(Learnt(Person("ann"), "expert"), before, after, agrees, people_proof.ProofOptions())
    assert proof.accepted == (n_turned == 0)  # however much better it looks


def test_a_profile_is_kept_only_of_who_agreed_and_goes_with_them(world: World, tmp_path: Path) -> None:
    """Also where nothing learnt was accepted: recognising a voice and changing the recogniser for it are two things."""
    name, recordings = "quentin_66", write_recordings(tmp_path / "r", n_each=10)
    given = {"unit": "group", "person": name, "dataset_root": str(recordings)}
    tagged = f"tags.`{PROFILE_TAG}` = 'true'"
    client = connect().client
    for keeps in (True, False):
        personalise.run(world.options(**given, keep_profile=keeps))
        profile = read_profile(people.person_folder("whisper-moe", name))
        assert (profile is not None) == keeps == (name in str(client.search_registered_models(tagged)))
        if profile is not None:
            assert profile.shape == (2 * 32,) and float(profile.norm()) == pytest.approx(1, abs=1e-5)
    assert any(path.name == PROFILE_FILE for path in world.store.rglob("*"))
    forget.run(forget.StepOptions(person=name))
    assert world.holds(name) == [] and not any(path.name == PROFILE_FILE for path in world.store.rglob("*"))


def test_who_is_in_the_train_split_is_enrolled_and_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = SimpleNamespace(
        rows=lambda split: pd.DataFrame({"speaker": ["Ann Q1", "else"]} if split == "train" else {"speaker": []})
    )
    run = SimpleNamespace(data=SimpleNamespace(params={"prepare_run_id": "p"}))
    monkeypatch.setattr("steps.inputs.people.connect", lambda: SimpleNamespace(client=SimpleNamespace(get_run=lambda _: run)))
    monkeypatch.setattr("steps.inputs.people.read_prepared", lambda _: prepared)
    assert _seen(world.options(), [SimpleNamespace(name="ann_q1"), SimpleNamespace(name="bob_q2")]) == {"ann_q1"}


def test_forget_leaves_no_trace_and_a_second_call_says_so(world: World, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name = "quentin_77"
    recordings = write_recordings(tmp_path / "r")
    personalise.run(world.options(unit="group", person=name, dataset_root=str(recordings)))
    assert people.person_folder("whisper-moe", name) is not None and world.holds(name)
    others = {each: folder_digest(people.person_folder("whisper-moe", each)) for each in SPEAKERS}
    forget.run(forget.StepOptions(person=name))
    assert "2 runs and registered models are deleted" in capsys.readouterr().out
    assert world.holds(name) == [] and people.person_folder("whisper-moe", name) is None
    assert {each: folder_digest(people.person_folder("whisper-moe", each)) for each in SPEAKERS} == others
    forget.run(forget.StepOptions(person=name))
    assert "there is nothing of that person" in capsys.readouterr().out


def test_forget_finds_a_person_of_another_experiment(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "quentin_99"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    personalise.run(world.options(unit="group", person=name, dataset_root=str(write_recordings(tmp_path / "r"))))
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    forget.run(forget.StepOptions(person=name))
    assert world.holds(name) == []


def test_forget_takes_no_parameter_that_names_nobody(world: World) -> None:
    client, store = connect().client, connect()
    run_id = client.create_run(store.experiment_id).info.run_id
    for parameter in ("seed", "person", "speaker"):
        client.log_param(run_id, parameter, "42")  # of the last two what `mlflow run` logs
    forget.run(forget.StepOptions(person="42"))
    assert client.get_run(run_id).data.params == {"seed": "42"}


def test_forget_goes_on_where_a_crash_left_it(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "quentin_88"
    personalise.run(world.options(unit="group", person=name, dataset_root=str(write_recordings(tmp_path / "r"))))

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(people, "_erase", crash)
        with pytest.raises(KeyboardInterrupt):
            forget.run(forget.StepOptions(person=name))
    forget.run(forget.StepOptions(person=name))
    assert world.holds(name) == []


def test_names_that_a_pattern_would_confuse_are_kept_apart(world: World) -> None:
    """`_` stands for any character in a search of the registry."""
    people.connect().client.create_registered_model("whisper-moe.person.a_b")
    people.connect().client.create_registered_model("whisper-moe.person.axb")
    forget.run(forget.StepOptions(person="a_b"))
    assert people.above_of("whisper-moe", "axb") is None
    assert [model.name for model in connect().client.search_registered_models("name LIKE '%.person.a%b'")] == [
        "whisper-moe.person.axb"
    ]
