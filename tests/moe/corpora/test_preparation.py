"""From a corpus to a manifest: the counts add up, options do what they say, what cannot work is refused before decoding."""

from pathlib import Path

import pandas as pd
import pytest

import tests.toys.corpora as toys
from moe.corpora import preparation
from moe.corpora.leaks import LeakError
from moe.corpora.manifest import check_manifest
from moe.corpora.preparation import PreparationOptions, prepare
from moe.options import to_text

N_SPEAKERS = 12


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """12 speakers of 3 etiologies with 4 utterances each; everybody reads `shared` once."""
    root, rows = tmp_path_factory.mktemp("corpus"), []
    (root / "wav").mkdir()
    for number in range(N_SPEAKERS * 4):
        speaker = number // 4
        (root / f"wav/{number}.wav").write_bytes(toys.encode(toys.tone(number, 0.3)))
        transcript = "shared" if number % 4 == 0 else f"sentence {number}"
        etiology = ("als", "cp", "stroke")[speaker % 3]
        rows.append(
            {
                "path": f"wav/{number}.wav",
                "transcript": transcript,
                "speaker": f"s{speaker:02d}",
                "group": etiology,
                "age": speaker,
            }
        )
    toys.write_csv(root / "manifest.csv", rows)
    return root


def prepared(root: Path, **options):
    return prepare(PreparationOptions(dataset_root=str(root), **options))


def test_the_manifest_is_whole_and_the_same_each_time(corpus):
    one, other = prepared(corpus), prepared(corpus)
    assert one.manifest.equals(other.manifest) and one.manifest.equals(check_manifest(one.manifest))
    assert one.counts["n_used"] == 48 and set(one.manifest["split"]) == {"train", "dev", "test"}
    assert one.manifest["etiology"].value_counts().to_dict() == {"als": 16, "cp": 16, "stroke": 16}
    assert "age" in one.manifest.columns and one.normaliser == "basic/1"


def test_shared_sentences_are_in_the_report(corpus):
    report = prepared(corpus).leaks
    assert report.sentences["reference"].tolist() == ["shared"] and not len(report.speakers)


def test_a_leaking_own_split_fails_before_any_audio_is_read(corpus, tmp_path, monkeypatch):
    """Pitfall 4: a planted leak must fail."""
    table = pd.read_csv(corpus / "manifest.csv").assign(split=["train", "dev", "test", "train"] * 12)
    table.to_csv(tmp_path / "manifest.csv", index=False)
    monkeypatch.setattr(preparation, "inspect_all", lambda *_: pytest.fail("audio was read"))
    with pytest.raises(LeakError, match="12 speakers are in more than one split"):
        prepared(tmp_path)


def test_one_speaker_fails_before_any_audio_is_read(corpus, tmp_path, monkeypatch):
    pd.read_csv(corpus / "manifest.csv").head(4).to_csv(tmp_path / "manifest.csv", index=False)
    monkeypatch.setattr(preparation, "inspect_all", lambda *_: pytest.fail("audio was read"))
    with pytest.raises(
        ValueError, match=r"1 speakers \(s00\): a speaker-disjoint split into train, dev and test needs at least 3"
    ):
        prepared(tmp_path)


def test_an_excluded_etiology_is_in_test_only_and_the_rest_is_as_before(corpus):
    whole, without = prepared(corpus, test_share=0.3), prepared(corpus, test_share=0.3, exclude_etiology="cp")
    assert set(without.manifest.loc[without.manifest["etiology"] == "cp", "split"]) == {"test"}
    kept = whole.manifest[(whole.manifest["etiology"] != "cp") | (whole.manifest["split"] == "test")]
    assert without.manifest.equals(kept.reset_index(drop=True))  # the same test set: runs with and without can be compared
    assert without.counts["n_excluded_etiology"] == len(without.left_out) == len(whole.manifest) - len(kept)
    assert set(without.left_out["reason"]) == {"exclude_etiology"}


def test_an_excluded_etiology_must_exist_and_be_tested(corpus):
    with pytest.raises(ValueError, match="exclude_etiology='ms': the corpus has als, cp, stroke"):
        prepared(corpus, exclude_etiology="ms")
    with pytest.raises(ValueError, match="none of its speakers is in test"):
        prepared(corpus, exclude_etiology="cp", split="leave_one_speaker_out", test_speaker="s00")


def test_max_samples_counts_what_it_leaves_out(corpus):
    found = prepared(corpus, max_samples=20)
    assert found.counts["n_used"] == 20 and found.counts["n_beyond_max_samples"] == 28 == len(found.left_out)
    assert found.manifest.groupby(["split", "etiology"]).ngroups == 9


def test_statistics_add_up(corpus):
    found = prepared(corpus)
    utterances, minutes = found.statistics["utterances"], found.statistics["minutes"]
    assert utterances[["train", "dev", "test"]].sum().sum() == utterances["total"].sum() == 48
    assert minutes["total"].sum() == pytest.approx(48 * 0.3 / 60)
    assert found.statistics["speakers"]["total"].tolist() == [4, 4, 4]
    assert found.statistics["words"].set_index("etiology").loc["als", ["n", "min", "median", "max"]].tolist() == [16, 1, 2, 2]
    assert found.statistics["durations"]["mean"].tolist() == pytest.approx([0.3] * 3)


def test_sap_references_come_in_two_forms(tmp_path):
    """Pitfall 6: marks were trained on and scored."""
    rows = [{"path": f"{n}.wav", "text": text} for n, text in enumerate(["(go) go* home", "[where?] here"])]
    for number, row in enumerate(rows):
        (tmp_path / row["path"]).write_bytes(toys.encode(toys.tone(number)))
    toys.write_csv(tmp_path / "manifest.csv", rows)
    found = prepared(tmp_path, normaliser="sap", dev_share=0.0, test_share=0.0)
    assert found.manifest[["reference", "reference_fluent"]].values.tolist() == [["go go home", "go home"], ["here", "here"]]
    assert found.manifest["transcript"].tolist() == ["(go) go* home", "[where?] here"]


def test_utterances_without_a_speaker_among_others_are_said(corpus, tmp_path):
    table = pd.read_csv(corpus / "manifest.csv")
    table["path"] = [str(corpus / path) for path in table["path"]]
    table.loc[[3, 5], "speaker"] = None
    table.to_csv(tmp_path / "manifest.csv", index=False)
    notes = prepared(tmp_path, trusted_root=str(corpus)).notes
    assert [note for note in notes if note.startswith("2 utterances name no speaker (first ")]
    assert not [note for note in prepared(corpus).notes if "name no speaker" in note]


def test_a_split_that_loses_all_its_audio_is_named(corpus, tmp_path):
    table = pd.read_csv(corpus / "manifest.csv")
    table["split"] = table["speaker"].map(lambda name: {"s00": "dev", "s01": "test"}.get(name, "train"))
    table.loc[table["speaker"] == "s01", "path"] = [f"gone{k}.wav" for k in range(4)]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    (tmp_path / "wav").mkdir()
    for path in (corpus / "wav").iterdir():
        (tmp_path / "wav" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="split test: all of its utterances are quarantined or left out"):
        prepared(tmp_path, max_quarantined=0.2)


def test_options_that_contradict_each_other_are_refused_together():
    with pytest.raises(ValueError) as caught:
        PreparationOptions(dev_share=0.6, test_share=0.6, min_duration_s=9.0, max_duration_s=3.0, split="leave_one_speaker_out")
    for part in ("must leave a tenth for train", "min_duration_s=9 must be below max_duration_s=3", "test_speaker is missing"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "split"),
    [("fold", 1, "k_fold"), ("n_folds", 3, "k_fold"), ("test_speaker", "s1", "leave_one_speaker_out"), ("complete_dev", True, "own or auto")],
)  # fmt: skip
def test_what_another_kind_of_split_reads_is_refused(name: str, value: object, split: str) -> None:
    with pytest.raises(ValueError, match=f"{name}={to_text(value)}: needs split={split}"):
        PreparationOptions(split="by_speaker", **{name: value})


def test_no_corpus_is_one_clear_line():
    with pytest.raises(ValueError, match="dataset_root is missing"):
        prepare(PreparationOptions())
    with pytest.raises(ValueError, match="corpus='wav': must be one of folder, synthetic, sap"):
        PreparationOptions(corpus="wav")
