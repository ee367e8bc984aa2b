"""The corpus of document 003: shards by split and domain, `metadata.json` in both spellings, and speakers that nobody knows."""

import json
from pathlib import Path

import pandas as pd
import pytest
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import BatchSampler, DataLoader

from moe.corpora.listing import list_corpus
from moe.corpora.preparation import PreparationOptions, prepare
from moe.systems.domain_whisper.domains import Domains
from moe.text.normalisers import normalise, own_normaliser
from moe.training.batches import LengthGroupedSampler
from moe.training.dataset import SpeechDataset
from tests.toys.corpora import audio_of, tar_bytes
from tests.toys.models import whisper_inputs

FOLDERS = ("train", "train_normal", "val_small", "val_small_normal")


def write(root: Path, n_shards: int = 2, n_each: int = 3, speakers: bool = False) -> Path:
    """The documented folders; every utterance is its own recording."""
    number = 0
    for folder in FOLDERS:
        for shard in range(n_shards):
            members = {}
            for sample in range(n_each):
                members |= {f"{sample}.flac": audio_of(number), f"{sample}.txt": f"sentence {number}".encode()}
                if speakers:
                    members[f"{sample}.json"] = json.dumps({"speaker": f"{folder}{shard}"}).encode()
                number += 1
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"shard_{shard:06d}.tar").write_bytes(tar_bytes(members))
    return root


def metadata(root: Path, folder: str, key: str, total: int, samples: int = 3, n_shards: int = 2) -> None:
    shards = [{key: f"shard_{number:06d}.tar", "samples": samples} for number in range(n_shards)]
    (root / folder / "metadata.json").write_text(json.dumps({"total_samples": total, "shards": shards}))


def listed(root: Path, **options):
    """The listing of the shards below a root."""
    return list_corpus("webdataset", str(root), PreparationOptions(corpus="webdataset", **options))


def made(root: Path, **options):
    given = {"corpus": "webdataset", "n_workers": 1, "test_share": 0.0} | options
    return prepare(PreparationOptions(**given), root)


def test_a_plain_folder_beside_a_domain_s_is_of_the_domain_that_is_said(tmp_path: Path) -> None:
    root = write(tmp_path)
    plain = listed(root).utterances
    assert set(plain["etiology"]) == {"unknown", "normal"}
    found = listed(root, plain_domain="dyslexic").utterances
    assert found.groupby("etiology").size().to_dict() == {"dyslexic": 12, "normal": 12}


def test_where_no_folder_names_a_domain_none_is_plain(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "0.tar").write_bytes(tar_bytes({"a.flac": audio_of(0), "a.txt": b"one"}))
    assert set(listed(tmp_path, plain_domain="dyslexic").utterances["etiology"]) == {"unknown"}


@pytest.mark.parametrize("key", ["filename", "shard_filename"])
def test_both_spellings_of_metadata_are_read_and_a_wrong_total_is_named(tmp_path: Path, key: str) -> None:
    root = write(tmp_path)
    metadata(root, "train", key, total=6)
    assert not len(listed(root).faults)
    metadata(root, "train", key, total=10_000)
    faults = listed(root).faults
    assert faults[["file", "reason", "n_lost"]].values.tolist() == [["train/metadata.json", "bad_metadata", 9994]]
    assert "total_samples=10000, and its shards list 6" in faults["detail"][0]


def test_without_a_list_of_shards_the_total_is_compared_with_what_is_there(tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / "train" / "metadata.json").write_text(json.dumps({"total_samples": 8, "shards": []}))
    assert "the shards hold 6" in listed(root).faults["detail"][0]


def test_without_speakers_whole_shards_are_held_out_where_that_is_asked_and_said(tmp_path: Path) -> None:
    root = write(tmp_path, n_shards=4)
    with pytest.raises(ValueError):
        made(root, test_share=0.3)
    found = made(root, test_share=0.3, unknown_speakers="shards", plain_domain="dyslexic")
    splits = found.manifest.groupby("speaker")["split"].nunique()
    assert (splits == 1).all() and set(found.manifest["split"]) == {"train", "dev", "test"}
    assert any("whole shards stand for speakers nobody knows" in note for note in found.notes)


def test_a_domain_without_dev_of_its_own_gets_one_by_speaker(tmp_path: Path) -> None:
    """The original held out the last shards, whoever spoke in them."""
    root = write(tmp_path, n_shards=3, speakers=True)
    for path in (root / "val_small_normal").iterdir():
        path.unlink()
    found = made(root, plain_domain="dyslexic", dev_share=0.3, complete_dev=True).manifest
    dev = found[found["split"] == "dev"]
    assert set(dev["etiology"]) == {"dyslexic", "normal"} and (found.groupby("speaker")["split"].nunique() == 1).all()
    kept = made(root, plain_domain="dyslexic", dev_share=0.3).manifest
    assert set(kept.loc[kept["split"] == "dev", "etiology"]) == {"dyslexic"}, "by default a corpus's own split stays as it is"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more workers than cores
@pytest.mark.parametrize("num_workers", [0, 1, 3, 7])
def test_an_epoch_over_shards_gives_every_sample_once_whatever_the_workers(tmp_path: Path, num_workers: int) -> None:
    """More workers than shards hung the original, or left workers with nothing."""
    root = write(tmp_path)
    manifest = made(root, unknown_speakers="shards").manifest
    inputs = whisper_inputs()
    data = SpeechDataset(manifest[manifest["split"] == "train"].reset_index(drop=True), root, inputs)
    for epoch in range(2):
        sampler = LengthGroupedSampler(data.durations, 2, seed=1)
        sampler.set_epoch(epoch)
        loader = DataLoader(data, batch_size=2, sampler=sampler, num_workers=num_workers, collate_fn=list)
        assert sorted(item["utterance_id"] for batch in loader for item in batch) == sorted(data.utterance_ids)


def test_a_broken_shard_and_a_bad_sample_are_listed_and_survived(tmp_path: Path) -> None:
    root = write(tmp_path)
    metadata(root, "train", "filename", total=6)
    whole = (root / "train" / "shard_000001.tar").read_bytes()
    (root / "train" / "shard_000001.tar").write_bytes(whole[: len(whole) // 2])
    bad = {"0.flac": b"no audio", "0.txt": b"one", "1.flac": audio_of(90), "1.txt": b"two"}
    (root / "train" / "shard_000002.tar").write_bytes(tar_bytes(bad))
    found = made(root, unknown_speakers="shards", max_quarantined=0.9)
    assert "train/shard_000001.tar" in set(found.files["file"]) and "train/shard_000002/0" in set(
        found.quarantine["utterance_id"]
    )
    assert "train/shard_000002/1" in set(found.manifest["utterance_id"])


def test_val_small_normal_is_normal(tmp_path: Path) -> None:
    """The original took every path with `val` in it for dyslexic."""
    found = made(write(tmp_path), unknown_speakers="shards", plain_domain="dyslexic").manifest
    numbers = Domains(("normal", "dyslexic"), ("normal",)).numbers(found["etiology"].tolist())
    of_folder = pd.Series(numbers).groupby(found["audio"].str.split("/").str[0].to_numpy()).unique().map(list).to_dict()
    assert of_folder == {"train": [1], "train_normal": [0], "val_small": [1], "val_small_normal": [0]}


def test_another_sample_rate_and_options_of_shards_for_other_corpora_are_refused() -> None:
    with pytest.raises(ValueError, match="target_sr=8000: must be 16000"):
        PreparationOptions(target_sr=8000)
    with pytest.raises(ValueError, match="plain_domain=x: corpus=webdataset alone has it"):
        PreparationOptions(corpus="sap", plain_domain="x")
    with pytest.raises(ValueError, match="unknown_speakers=shards: corpus=webdataset alone has it"):
        PreparationOptions(corpus="sap", unknown_speakers="shards")
    with pytest.raises(ValueError, match="samples_per_shard=9: corpus=webdataset alone has it"):
        PreparationOptions(corpus="sap", samples_per_shard=9)


def test_the_normaliser_is_the_language_s_unless_one_is_named() -> None:
    assert [own_normaliser("auto", language) for language in ("en", "ko", "ne", "xx")] == ["basic", "korean", "nepali", "basic"]
    assert PreparationOptions(language="ko").normaliser_name == "korean"
    assert PreparationOptions(language="ko", normaliser="korean_plain").normaliser_name == "korean_plain"


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("한국어 TEST 3번!", "한국어 3번"),
        ("한국어", "한국어"),  # decomposed
        ("ㅋㅋ 좋아요…", "좋아요"),
        ("３.５ 점", "3 5 점"),
        ("abc", ""),
    ],
)
def test_korean_plain_is_whole_syllables_and_digits(raw: str, plain: str) -> None:
    assert normalise("korean_plain", raw) == plain == normalise("korean_plain", plain)


def test_two_processes_share_an_epoch_and_no_sample_comes_twice(tmp_path: Path) -> None:
    """As accelerate deals the batches; where they do not divide evenly it repeats the first few, so that no process waits for ever."""
    manifest = made(write(tmp_path), unknown_speakers="shards").manifest
    data = SpeechDataset(manifest[manifest["split"] == "train"].reset_index(drop=True), tmp_path, whisper_inputs())
    sampler = LengthGroupedSampler(data.durations, 2, seed=1)
    shares = [BatchSamplerShard(BatchSampler(sampler, 2, drop_last=False), 2, rank) for rank in (0, 1)]
    served = [draw.index for share in shares for batch in share for draw in batch]
    assert set(served) == set(range(len(data))) and len(served) - len(data) <= 2
