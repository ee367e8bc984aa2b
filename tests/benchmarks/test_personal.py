"""Benchmarks of people, on a few of them; error rates of voices by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import personal_recorded, voices
from benchmarks.personal import measuring, people
from benchmarks.personal_recorded import NO_PROOF, recorded
from moe.experts.people.options import PersonOptions
from moe.experts.people.person import Person
from moe.experts.routed_lora import AdapterOptions
from moe.files import read_json
from moe.routing.options import RoutingOptions
from moe.synthesis.corpus import synthesize
from moe.synthesis.enrolment import ENROLMENT
from moe.synthesis.planning import SynthesisOptions
from moe.systems.table import load_system
from moe.systems.whisper.base_model import load_base
from moe.systems.whisper.features import AudioContextOptions
from moe.systems.whisper_moe.building import wrap
from moe.systems.whisper_moe.folder import MIXTURE, WhisperShape, new_record
from moe.systems.whisper_moe.model import WhisperMoE
from steps.pretrain import SHIPPED
from steps.reports.people import NOT_WORSE, SIGNIFICANT
from tests.toys.models import toy_gate

FEW = {
    "styles": "typical,als,down", "own_ways": True, "n_test_speakers": 1, "n_test_utterances": 3, "n_enrolment_utterances": 5,
    "n_train_speakers": 1, "n_utterances": 1, "n_dev_speakers": 0, "seen_share": 0.0, "n_workers": 1,
}  # fmt: skip


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Five people instead of fifty."""
    for name, value in {"SPOKEN": FEW, "N_TESTED": 3, "MOST_ENROLLED": 5, "FOLDER": tmp_path / "results"}.items():
        monkeypatch.setattr(people, name, value)
    return tmp_path


def write_mixture(folder: Path) -> Path:
    """Two experts above the shipped base, which takes whole sentences at once."""
    base = load_base(SHIPPED)
    shape = WhisperShape(2, AdapterOptions(lora_r=2, shared_r=None), RoutingOptions(), AudioContextOptions())
    gate = toy_gate(2 * base.model.config.d_model, 2)
    model = WhisperMoE(base.model, 2, shape.adapters, shape.routing, gate).eval()
    wrap(model, base, Path(SHIPPED), new_record(MIXTURE, shape, "en", "basic", {})).save(folder)
    return folder


def test_people_are_tested_on_what_the_corpus_keeps_for_it(few: Path) -> None:
    said = people.speech(1, "basic")
    assert len(said.names) == 5
    for name in said.names:
        paths = [set(said.rows["path"].iloc[numbers]) for numbers in (said.enrolled[name], said.tested[name])]
        assert all(path.startswith(ENROLMENT) for path in paths[0]) and not any(path.startswith(ENROLMENT) for path in paths[1])
        assert list(map(len, paths)) == [5, 3]


def test_everything_that_the_table_compares_is_measured(few: Path) -> None:
    model = write_mixture(few / "model")
    (path,) = measuring.measure(model, "mixture", [5], PersonOptions(person_passes=1, person_r=2), 1, few)
    result = read_json(path)
    assert (path.name, result["changed"]) == ("mixture-5-1-person_r=2-person_passes=1.json", "person_r=2-person_passes=1")
    assert set(result["ways"]) == {
        "weights", "expert", "both", "auto", "another person's weights", "another person's expert", "weights common to all"
    }  # fmt: skip
    assert result["n_people"] == 5 and set(result["as it is"]) == {"own ways", "demo", "all"}
    measured = voices.measure(load_system(model), people.speech(1, "basic"))
    assert measured["n_people"] == 5 and 0 <= measured["equal error rate"] <= 1


def test_who_has_nothing_of_their_own_keeps_what_was_said_before(few: Path) -> None:
    """And is not decoded again; whose weights change everything has other words."""
    system = load_system(write_mixture(few / "model"))
    said = people.speech(1, "basic")
    nobody = [Person(name) for name in said.names]
    before = measuring.tested(system, said, nobody).assign(hypothesis="as before")
    one = [dataclasses.replace(nobody[0], weights=torch.tensor([60.0, -60.0])), *nobody[1:]]
    after = measuring.tested(system, said, one, before)
    assert (after["hypothesis"] == "as before").tolist() == (after["speaker"] != said.names[0]).tolist()


def test_recorded_people_are_judged_by_both_rules(tmp_path: Path) -> None:
    options = FEW | {"own_ways": False, "n_test_utterances": 13, "n_enrolment_utterances": 0}
    synthesize(SynthesisOptions(**options), tmp_path / "c")
    read, said = recorded(tmp_path / "c", 10, 3)
    train = pd.read_csv(tmp_path / "c" / "manifest.csv").query("split == 'train'")["speaker"]
    assert set(recorded(tmp_path / "c", 10, 3, n_people=2)[1].names) < set(said.names) and len(said.names) == 3
    assert not set(said.names) & set(train)
    result = personal_recorded.run(personal_recorded.system_of(SHIPPED), read, said, 10)
    assert set(result["ways"]) == {NO_PROOF, NOT_WORSE, SIGNIFICANT} and result["n_people"] == 3
    assert result["ways"][SIGNIFICANT]["changed"] <= result["ways"][NOT_WORSE]["changed"]
    assert "WER, all" in personal_recorded.markdown(result)


def test_error_rates_of_voices_by_hand() -> None:
    """Two people; the second of the first one's utterances is nearer to the other, and one of the second's is near to nobody."""
    found = np.array([[0.9, 0.1], [0.6, 0.8], [0.2, 0.7], [0.3, 0.4]])
    whose = np.array([0, 0, 1, 1])
    rates = voices.rates(found, whose, 0.5)
    assert rates == {
        "recognised": 0.5, "taken for another": 0.25, "not recognised": 0.25, "stranger accepted": 0.25, "own profile nearest": 0.75,
        "own below confidence": 0.25,
    }  # fmt: skip
    error, confidence = voices.equal_error(found, whose)  # own 0.4 0.6 0.7 0.9, others 0.1 0.2 0.3 0.8
    assert (error, confidence) == (0.25, 0.6)
