"""A bucket that lets nobody in, one that is not there, and shards that are gone are said in one line before any work."""

from pathlib import Path

import pandas as pd
import pytest

import tests.toys.addresses  # noqa: F401  # registers closed://
from moe.corpora.formats.interface import CorpusOptions
from moe.corpora.listing import list_corpus
from moe.corpora.locations import address_fault, open_file
from moe.corpora.presence import refuse_missing, refuse_unsharded
from moe.corpora.shard_cache import stated
from tests.toys.corpora import ROW


def rows(*shards: str) -> pd.DataFrame:
    return pd.DataFrame([ROW | {"utterance_id": shard, "audio": shard, "member": "a.wav"} for shard in shards])


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_shards_that_are_gone_are_counted_and_the_first_is_named(scheme: str, tmp_path: Path) -> None:
    stated.cache_clear()
    (tmp_path / "a.tar").write_bytes(b"x")
    refuse_missing(rows("a.tar"), f"{scheme}{tmp_path}")
    with pytest.raises(
        ValueError, match=r"^the corpus at \S+: 2 of the 3 shards .* e\.g\. b\.tar \(.*\): bring them back, or run prepare"
    ) as told:
        refuse_missing(rows("a.tar", "c.tar", "b.tar"), f"{scheme}{tmp_path}")
    assert "\n" not in str(told.value)


def test_recordings_that_are_files_of_their_own_are_not_asked_for(tmp_path: Path) -> None:
    refuse_missing(rows("a.wav").assign(member=None), tmp_path)


def test_shards_are_taken_together_only_where_all_recordings_lie_in_shards() -> None:
    refuse_unsharded(rows("a.tar", "b.tar"), 2)
    refuse_unsharded(rows("a.wav").assign(member=None), None)
    with pytest.raises(
        ValueError, match="^shards_together=2: recordings of this corpus are files of their own, not in shards; leave it out$"
    ):
        refuse_unsharded(rows("a.tar", "b.wav").assign(member=["a.wav", None]), 2)


def test_a_bucket_that_lets_nobody_in_says_which_credentials_it_may_want() -> None:
    fault = address_fault("closed://bucket")
    assert (
        fault is not None
        and fault.startswith("no credentials that may read it (PermissionError: Forbidden")
        and "AWS_PROFILE" in fault
    )
    with pytest.raises(ValueError, match=r"^dataset_root=closed://bucket: no credentials"):
        list_corpus("webdataset", "closed://bucket", CorpusOptions())
    with pytest.raises(OSError, match=r"^closed://bucket/a\.tar: no credentials"):
        open_file("closed://bucket", "a.tar").read()
    with pytest.raises(ValueError, match=r"1 of the 1 shards .* a\.tar \(no credentials"):
        refuse_missing(rows("a.tar"), "closed://bucket")


def test_an_address_where_nothing_is_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset_root=file://\S+: there is no such bucket, folder or file"):
        list_corpus("webdataset", f"file://{tmp_path}/none", CorpusOptions())
