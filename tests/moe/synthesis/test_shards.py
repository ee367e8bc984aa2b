"""Shards hold what the folder holds, in the layout of document 003, and read back as the same corpus."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from moe.corpora.manifest import read_utterance
from moe.corpora.preparation import PreparationOptions, prepare
from moe.files import folder_digest
from moe.synthesis.corpus import synthesize
from moe.synthesis.grammar import grammars
from moe.synthesis.planning import SynthesisOptions
from moe.synthesis.shards import pack

SMALL = {
    "synthetic_language": "ko", "styles": "typical,als", "n_train_speakers": 2, "n_dev_speakers": 1, "n_test_speakers": 1, "n_utterances": 3,
    "n_dev_utterances": 2, "n_test_utterances": 2, "n_workers": 1,
}  # fmt: skip


def manifest_of(root: Path) -> pd.DataFrame:
    options = PreparationOptions(corpus="synthetic", language="ko", n_workers=1)
    return prepare(options, root).manifest.sort_values("speaker", kind="stable", ignore_index=True)


def test_shards_read_back_as_the_folder_does(tmp_path: Path) -> None:
    synthesize(SynthesisOptions(**SMALL), tmp_path / "folder")
    synthesize(SynthesisOptions(**SMALL, format="webdataset"), tmp_path / "shards")
    plain, packed = manifest_of(tmp_path / "folder"), manifest_of(tmp_path / "shards")
    columns = ["speaker", "etiology", "severity", "split", "language", "reference", "audio_digest"]
    pd.testing.assert_frame_equal(
        plain.sort_values("audio_digest")[columns].reset_index(drop=True),
        packed.sort_values("audio_digest")[columns].reset_index(drop=True),
    )
    row = packed.iloc[0]
    np.testing.assert_array_equal(
        read_utterance(tmp_path / "shards", row),
        read_utterance(tmp_path / "folder", plain[plain["audio_digest"] == row["audio_digest"]].iloc[0]),
    )
    folders = {path.parent.name for path in (tmp_path / "shards").rglob("*.tar")}
    assert folders == {"train", "train_normal", "val_small", "val_small_normal", "test", "test_normal"}
    record = json.loads((tmp_path / "shards" / "train" / "metadata.json").read_text())
    assert record["total_samples"] == 6 == sum(shard["samples"] for shard in record["shards"])


def test_the_same_corpus_is_the_same_bytes_and_as_many_shards_as_it_needs(tmp_path: Path) -> None:
    for name in ("one", "two"):
        synthesize(SynthesisOptions(**SMALL), tmp_path / name)
        pack(tmp_path / name, samples_per_shard=2)
    assert folder_digest(tmp_path / "one") == folder_digest(tmp_path / "two")
    assert len(list((tmp_path / "one" / "train").glob("*.tar"))) == 3


def test_the_korean_grammar_has_about_two_hundred_words() -> None:
    assert 180 <= len(grammars()["ko"].words) <= 230
