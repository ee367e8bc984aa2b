"""Names that are canonically the same text are one name; case alone is reported and not merged."""

import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tests.toys.corpora as toys
from moe.corpora.formats.table import CorpusOptions
from moe.corpora.leaks import LeakError
from moe.corpora.listing import list_corpus
from moe.corpora.manifest import read_bytes
from moe.corpora.names import canonical
from moe.corpora.naming import merge_forms
from moe.corpora.preparation import PreparationOptions, prepare

ZOE = [unicodedata.normalize("NFC", "Zoë"), unicodedata.normalize("NFD", "Zoë")]
FORMS = {
    "composed": ZOE,
    "apostrophe": ["O'Neil", "O’Neil"],
    "space": ["ann", " ann\u00a0"],
    "modifier": ["K'o", "Kʼo"],
    "mark": ["bo", "\ufeffbo"],
}


@given(st.text())
def test_canonical_forms_of_a_text_are_one(text: str) -> None:
    form = canonical(text)
    assert {canonical(unicodedata.normalize(kind, text)) for kind in ("NFC", "NFD")} == {form}
    assert canonical(form) == form == canonical(f" {form}\u2003") == canonical(form.replace("'", "’"))


def test_case_is_kept() -> None:
    assert canonical("Ann") != canonical("ann") and canonical("ALS") == "ALS"


def corpus(root: Path, names: list[str], column: str = "speaker") -> Path:
    """Six utterances of `names` in train and test by turns, and others in dev."""
    rows = []
    for number in range(8):
        (root / f"{number}.wav").write_bytes(toys.encode(toys.tone(number)))
        split = "dev" if number > 5 else ("train", "test")[number % 2]
        name = f"d{number}" if number > 5 else names[number % len(names)]
        facts = {"speaker": f"s{number % 2}{split}", "etiology": "als"} | {column: name}
        rows.append({"path": f"{number}.wav", "transcript": f"word {number}", "split": split} | facts)
    toys.write_csv(root / "manifest.csv", rows)
    return root


@pytest.mark.parametrize("form", FORMS)
def test_two_forms_of_a_speaker_in_two_splits_are_a_leak(form: str, tmp_path: Path) -> None:
    with pytest.raises(LeakError, match="1 speakers are in more than one split"):
        prepare(PreparationOptions(dataset_root=str(corpus(tmp_path, FORMS[form])), split="own"))


@pytest.mark.parametrize("form", FORMS)
def test_two_forms_of_an_etiology_are_one_and_both_stay(form: str, tmp_path: Path) -> None:
    found = prepare(PreparationOptions(dataset_root=str(corpus(tmp_path, FORMS[form], "etiology")), split="own"))
    of_it = found.manifest[found.manifest["etiology"] == canonical(FORMS[form][0])]
    assert len(of_it) == 6 and any("one etiology in several forms" in note for note in found.notes)
    assert set(of_it["corpus_etiology"]) == set(FORMS[form])


def test_case_alone_is_reported_and_kept_apart() -> None:
    table, notes = pd.DataFrame({"speaker": ["ann", "Ann", "bo"]}, dtype="str"), []
    merge_forms(table, ["speaker"], notes)
    assert list(table["speaker"]) == ["ann", "Ann", "bo"] and "corpus_speaker" not in table
    assert notes == ["each speaker that differs from another in case, spaces or width alone is kept apart: 'Ann' and 'ann'"]


@pytest.mark.parametrize("other", ["Ann  Lee", "Ann\u00a0Lee", "Ａnn Lee", "ann lee"])
def test_what_may_be_one_name_by_mistake_is_reported_and_kept_apart(other: str) -> None:
    table, notes = pd.DataFrame({"speaker": ["Ann Lee", other, "bo"]}, dtype="str"), []
    merge_forms(table, ["speaker"], notes)
    assert list(table["speaker"]) == ["Ann Lee", other, "bo"] and len(notes) == 1 and repr(other) in notes[0]


@pytest.mark.parametrize(("on_disk", "in_table"), [ZOE, ("it’s", "it's")])
def test_a_file_that_is_read_under_another_form_is_not_called_unread(on_disk: str, in_table: str, tmp_path: Path) -> None:
    (tmp_path / f"{on_disk}.flac").write_bytes(toys.audio_of(1))
    (tmp_path / "extra.flac").write_bytes(toys.audio_of(2))
    toys.write_csv(tmp_path / "manifest.csv", [{"path": f"{in_table}.flac", "transcript": "one"}])
    notes = list_corpus("folder", str(tmp_path), CorpusOptions()).notes
    assert [note for note in notes if "not read" in note] == ["not read: 1 files *.flac (first extra.flac)"]


@pytest.mark.parametrize("spelling", ["./x/a.flac", "x//a.flac", "x/./a.flac", ".//x/a.flac", "x\\a.flac"])
def test_one_file_has_one_path_however_it_is_spelt(spelling: str, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.flac").write_bytes(toys.audio_of(1))
    rows = [{"path": path, "transcript": "one"} for path in (spelling, "x/a.flac")]
    toys.write_csv(tmp_path / "manifest.csv", rows)
    listing = list_corpus("folder", str(tmp_path), CorpusOptions())
    assert listing.utterances["audio"].tolist() == ["x/a.flac"] * 2 and not any("not read" in note for note in listing.notes)
    assert listing.utterances["utterance_id"].nunique() == 1  # one of the two rows is a duplicate


@pytest.mark.parametrize(("on_disk", "in_table"), [ZOE, ZOE[::-1], ("it’s", "it's"), ("x/" + ZOE[0], "x/" + ZOE[1])])
def test_a_file_is_found_by_any_form_of_its_name(on_disk: str, in_table: str, tmp_path: Path) -> None:
    path = tmp_path / f"{on_disk}.flac"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(toys.audio_of(1))
    assert read_bytes(tmp_path, {"audio": f"{in_table}.flac", "member": None}) == toys.audio_of(1)


def test_a_file_that_differs_in_case_alone_is_named_and_not_taken(tmp_path: Path) -> None:
    (tmp_path / "A.wav").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match="'A.wav' differs from it in case alone"):
        read_bytes(tmp_path, {"audio": "a.wav", "member": None})


def test_a_member_of_a_tar_is_found_by_any_form_of_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(toys.tar_bytes({f"{ZOE[1]}.wav": b"abc"}))
    assert read_bytes(tmp_path, {"audio": "a.tar", "member": f"{ZOE[0]}.wav"}) == b"abc"
