"""Transcripts beside the recordings: plain texts, label files and TextGrids of Praat."""

from pathlib import Path

import pytest
from praatio.utilities import textgrid_io

import tests.toys.corpora as toys
from moe.corpora.formats.table import CorpusOptions
from moe.corpora.formats.textgrid import transcript_of_textgrid
from moe.corpora.listing import Listing, list_corpus
from moe.corpora.preparation import PreparationOptions, prepare


def textgrid(kind: str = "long_textgrid", **tiers: list[str]) -> str:
    """A TextGrid with so many labels a second; written by the library."""
    made = [
        {
            "class": "IntervalTier",
            "name": name,
            "xmin": 0,
            "xmax": len(labels),
            "entries": [(k, k + 1, text) for k, text in enumerate(labels)],
        }
        for name, labels in tiers.items()
    ]
    longest = max(map(len, tiers.values()))
    return textgrid_io.getTextgridAsStr({"xmin": 0, "xmax": longest, "tiers": made}, kind, True)


TEXTS = {
    "txt": b"hello there\n", "lab": "hello there".encode("utf-8-sig"), "TextGrid": textgrid(words=["hello", "", "there"]).encode(),
    "textgrid": textgrid("short_textgrid", only=["hello", "there"]).encode("utf-16"), "TXT": b"0 46797 hello there\n",
}  # fmt: skip


def listed(root: Path, corpus: str = "folder", **options) -> Listing:
    return list_corpus(corpus, str(root), CorpusOptions(**options))


@pytest.mark.parametrize("ending", TEXTS)
@pytest.mark.parametrize("corpus", ["folder", "sidecars"])
def test_a_text_beside_a_recording_is_its_transcript(ending: str, corpus: str, tmp_path: Path) -> None:
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1/a.WAV").write_bytes(toys.encode(toys.tone(1)))
    (tmp_path / f"s1/a.{ending}").write_bytes(TEXTS[ending])
    (found,) = listed(tmp_path, corpus, speaker_pattern="^[^/]+").utterances.to_dict("records")
    assert (found["utterance_id"], found["audio"], found["transcript"], found["speaker"]) == (
        "s1/a",
        "s1/a.WAV",
        "hello there",
        "s1",
    )


def test_what_has_no_partner_is_named(tmp_path: Path) -> None:
    for name in ("a.wav", "a.txt", "b.wav", "c.lab", "README.txt", "d.wav", "d.lab", "e.wav"):
        (tmp_path / name).write_bytes(b"0 100 sil\n100 200 hh\n" if name == "d.lab" else b"one")
    listing = listed(tmp_path)
    reasons = listing.utterances.set_index("utterance_id")
    assert reasons["transcript"].dropna().to_dict() == {"a": "one"}
    assert "times and labels" in reasons.loc["d", "detail"]
    assert listing.faults[["file", "reason"]].values.tolist() == [["c.lab", "missing_file"]]


def test_splits_are_folders_and_counts_add_up(tmp_path: Path) -> None:
    for number, row in toys.UTTERANCES.iterrows():
        (tmp_path / row["split"] / row["speaker"]).mkdir(parents=True, exist_ok=True)
        (tmp_path / row["split"] / row["speaker"] / f"{row['id']}.flac").write_bytes(toys.audio_of(number))
        (tmp_path / row["split"] / row["speaker"] / f"{row['id']}.lab").write_text(row["transcript"])
    found = prepare(PreparationOptions(dataset_root=str(tmp_path), speaker_pattern=r"/([^/]+)/"))
    assert found.counts["n_used"] == 8 and found.manifest["split"].value_counts().to_dict() == {"train": 4, "dev": 2, "test": 2}


def test_a_table_without_transcripts_takes_those_beside_the_recordings(tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav/a.txt").write_text("hello")
    toys.write_csv(tmp_path / "manifest.csv", [{"path": "wav/a.wav", "speaker": "s1"}, {"path": "wav/b.wav", "speaker": "s2"}])
    listing = listed(tmp_path)
    assert listing.utterances.set_index("audio")["transcript"].dropna().to_dict() == {"wav/a.wav": "hello"}
    assert any("no column of transcripts" in note for note in listing.notes)


def test_tiers_that_leave_a_choice_are_named() -> None:
    assert transcript_of_textgrid(textgrid(phones=["h", "i"], words=["hi", "sil"])) == "hi"
    with pytest.raises(ValueError, match="its tiers are 'left', 'right': one must be called transcript"):
        transcript_of_textgrid(textgrid(left=["a"], right=["b"]))
    with pytest.raises(ValueError, match="no TextGrid"):
        transcript_of_textgrid("once upon a time")


def test_of_several_texts_the_plain_one_is_taken_and_said(tmp_path: Path) -> None:
    for name, text in (("a.wav", "x"), ("a.txt", "plain"), ("a.TextGrid", textgrid(words=["other"]))):
        (tmp_path / name).write_text(text)
    listing = listed(tmp_path)
    assert list(listing.utterances["transcript"]) == ["plain"] and any("the .txt is taken" in note for note in listing.notes)


def test_a_folder_with_nothing_says_what_it_could_be(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"x")
    (tmp_path / "validated.tsv").write_text("path\tsentence\n")
    with pytest.raises(ValueError, match=r"holds none of manifest.csv.*there is validated.tsv: name it manifest.tsv;"):
        listed(tmp_path)


@pytest.mark.parametrize("name", ["manifest.xlsx", "list.ods", "manifest.csv.gz", "rows.json"])
def test_a_table_that_is_not_read_is_to_be_saved_as_one_that_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"there is {name}: save it as manifest.csv"):
        listed(tmp_path)
