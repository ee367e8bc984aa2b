"""`speaker=auto`: the nearest profile of those who agreed to one, nobody below the confidence, and nobody who is gone."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from moe.experts.people.folders import PROFILE_FILE, RECORD, PersonRecord, load_person, read_profile, save_person
from moe.experts.people.options import AS_IT_IS
from moe.experts.people.person import Layout, Person, name_faults
from moe.experts.people.profiles import likeness, profile_of
from moe.serving.people import ServedPeople, UnknownPerson
from moe.serving.voices import ServedVoices

VOICES = {"ann": torch.tensor([1.0, 0.0, 0.0]), "bob": torch.tensor([0.0, 1.0, 0.0]), "old": torch.tensor([0.0, 0.0, 1.0])}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Ann and Bob have profiles, Cyd has not agreed to one, and Old was enrolled with another recogniser."""
    for name in ("ann", "bob", "cyd", "old"):
        record = PersonRecord(name, "other" if name == "old" else "digest", AS_IT_IS, ("q_proj",), 2, (3, 2, 5))
        save_person(tmp_path / name, Person(name, profile=VOICES.get(name)), record)
    return {name: tmp_path / name for name in ("ann", "bob", "cyd", "old")}


def voices_of(folders: dict[str, Path], confidence: float = 0.9) -> ServedVoices:
    people = ServedPeople(None, "digest", folders.get, refresh_s=0.0)
    return ServedVoices(people, lambda: list(folders), confidence)


def test_the_nearest_profile_is_whose_voice_it_is_and_below_the_confidence_nobodys(folders: dict[str, Path]) -> None:
    voices = voices_of(folders)
    for voice, name in (([9.0, 1.0, 0.0], "ann"), ([0.1, 0.5, 0.0], "bob"), ([1.0, 0.9, 0.0], None), ([0.0, 0.0, 1.0], None)):
        found = voices.whose(torch.tensor(voice))
        assert (None if found is None else found.person.name) == name
    assert voices.n_held == 2


def test_who_is_gone_is_nobody_and_leaves_memory(folders: dict[str, Path]) -> None:
    voices = voices_of(folders)
    assert voices.whose(VOICES["ann"]) is not None
    folders.pop("ann")
    assert voices.whose(VOICES["ann"]) is None and voices.n_held == 1
    folders.clear()
    voices.refresh(), voices.people.refresh()
    assert (voices.n_held, voices.people.n_held) == (0, 0)


@pytest.mark.parametrize("damaged", [RECORD, PROFILE_FILE])
def test_a_person_whose_files_are_damaged_keeps_nobody_else_from_being_recognised(folders: dict[str, Path], damaged: str) -> None:
    (folders["bob"] / damaged).write_bytes(b"torn")
    voices = voices_of(folders)
    found = voices.whose(VOICES["ann"])
    assert found is not None and found.person.name == "ann"
    assert voices.whose(VOICES["bob"]) is None and voices.n_held == 1


def test_who_was_given_another_name_in_the_registry_is_served_by_it(folders: dict[str, Path]) -> None:
    people = ServedPeople(None, "digest", {"anna": folders["ann"]}.get, refresh_s=0.0)
    assert people.of("anna").folder == people.of("anna").folder == folders["ann"]


def test_where_nobody_has_a_profile_it_is_refused(folders: dict[str, Path]) -> None:
    voices = voices_of({"cyd": folders["cyd"]})
    for ask in (voices.check, lambda: voices.whose(VOICES["ann"])):
        with pytest.raises(UnknownPerson, match="speaker=auto: nobody has a profile here") as fault:
            ask()
        assert "cyd" not in str(fault.value)


def test_a_profile_is_written_with_its_person_and_only_where_there_is_one(folders: dict[str, Path]) -> None:
    assert torch.equal(read_profile(folders["ann"]), VOICES["ann"]) and read_profile(folders["cyd"]) is None
    assert torch.equal(load_person(folders["ann"], Layout((), 2), "digest").profile, VOICES["ann"])


def test_auto_is_nobodys_name() -> None:
    assert name_faults(["auto"]) == ["person='auto': a name is 1 to 64 of the characters a-z, 0-9, _ and -, and not auto"]


def test_likeness_is_the_cosine_to_the_mean() -> None:
    rows = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    profile = profile_of(rows)
    torch.testing.assert_close(profile, torch.tensor([0.5**0.5, 0.5**0.5]))
    torch.testing.assert_close(likeness(rows * 7, profile[None])[:, 0], F.cosine_similarity(rows, profile[None]))
