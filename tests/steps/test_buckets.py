"""A corpus in a bucket behind S3's own API is what it is in a folder; what stands in the way is said in one line before any work."""

import re
import uuid
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from torch.utils.data import DataLoader

from moe.corpora.locations import CorpusRoot
from moe.corpora.manifest import read_manifest
from moe.corpora.preparation import PreparationOptions
from moe.corpora.shard_cache import ShardCacheOptions
from moe.training.batches import LengthGroupedSampler, Shares
from moe.training.dataset import SpeechDataset
from moe.training.read_ahead import ReadAhead, read_ahead
from steps import main, prepare
from steps.chain.remote_checks import remote_faults
from steps.inputs.corpus import read_prepared
from steps.tracking.artifacts import MANIFEST, upstream
from tests.toys import buckets
from tests.toys import corpora as toys
from tests.toys.bucket_training import Loudness
from tests.toys.buckets import Bucket

FORMATS = {"webdataset": toys.write_webdataset, "parquet": toys.write_parquet}
ODD = "part 1 %20 é #+&=.tar"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    with buckets.bucket() as found:
        yield found


@pytest.fixture(autouse=True)
def asked_anew(bucket: Bucket) -> None:
    buckets.ask_anew()


def write(corpus: str, folder: Path) -> Path:
    """A small corpus; one of the shards of a WebDataset has a name that an address has to encode."""
    FORMATS[corpus](folder)
    if corpus == "webdataset":
        (folder / "metadata.json").unlink()
        (folder / "train/000000.tar").rename(folder / "train" / ODD)
    return folder


def prepared_at(corpus: str, root: str) -> str:
    return prepare.run(prepare.StepOptions(corpus=corpus, dataset_root=root, no_plot=True))


def heard(manifest: pd.DataFrame, root: CorpusRoot | str, n_workers: int = 0) -> dict[str, float]:
    """How loud each utterance is, as a training's loader reads it."""
    data = SpeechDataset(manifest, root, Loudness())
    batches = read_ahead(Shares(LengthGroupedSampler(data.durations, 3, 0), 3), data, 1)
    assert isinstance(batches, ReadAhead) == (isinstance(root, CorpusRoot) and root.cache is not None)
    loader = DataLoader(data, batch_sampler=batches, num_workers=n_workers, collate_fn=list)
    return {each["utterance_id"]: float(each["loudness"]) for batch in loader for each in batch}


@pytest.mark.slow
@pytest.mark.parametrize("corpus", FORMATS)
def test_a_corpus_in_a_bucket_is_that_of_the_folder(corpus: str, bucket: Bucket, store: Path, tmp_path: Path) -> None:
    folder = write(corpus, tmp_path / "corpus")
    address = bucket.upload(folder, corpus)
    assert remote_faults(main.StepOptions(corpus=corpus, dataset_root=address)) == []
    run_id, own = prepared_at(corpus, f"{address}/"), prepared_at(corpus, str(folder))
    manifest = read_manifest(upstream(run_id, MANIFEST))
    pd.testing.assert_frame_equal(manifest, read_manifest(upstream(own, MANIFEST)))
    expected = heard(manifest, str(folder))
    assert len(expected) == 8 and len(set(expected.values())) == 8
    for room_gb, n_workers in ((0.0, 0), (0.0, 2), (1.0, 2), (1.0, 0)):
        cache = ShardCacheOptions(shard_cache_gb=room_gb, shard_cache_dir=str(tmp_path / "cache"))
        found = read_prepared(run_id, cache)
        found.refuse_missing(manifest)
        assert heard(manifest, found.root, n_workers) == expected
    assert len([path for path in (tmp_path / "cache").iterdir() if not path.name.endswith(".lock")]) == 3
    bucket.delete(f"{address}/{manifest['audio'].iloc[0]}")
    with pytest.raises(
        ValueError,
        match=r"^the corpus at s3://corpora/\S+: 1 of the 3 shards .* \(there is no such bucket, folder or file\): [^\n]*$",
    ):
        found.refuse_missing(manifest)


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "FSSPEC_S3_ENDPOINT_URL"])
def test_each_variable_leads_to_another_server_than_aws(
    variable: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = bucket.upload(write("webdataset", tmp_path / "corpus"), uuid.uuid4().hex)
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv(variable, bucket.endpoint)
    if variable.startswith("FSSPEC"):
        buckets.endpoint_by_fsspec(monkeypatch, variable, bucket.endpoint)
    assert remote_faults(main.StepOptions(corpus="webdataset", dataset_root=address)) == []


NO_RIGHT = "no credentials that may read it .*AWS_PROFILE or AWS_ACCESS_KEY_ID"
NOTHING = "there is no such bucket, folder or file"
REFUSED = {
    "no credentials": ({buckets.KEY: None, buckets.SECRET: None}, "corpus", NO_RIGHT),
    "a wrong key": ({buckets.KEY: "AKIANOBODY"}, "corpus", NO_RIGHT),
    "a wrong secret": ({buckets.SECRET: "guessed"}, "corpus", NO_RIGHT),
    "a missing key": ({}, "corpus/none", NOTHING),
    "a missing bucket": ({}, "../none/corpus", NOTHING),
    "nobody listens": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "corpus", "does not answer .*127.0.0.1:9"),
}


@pytest.mark.parametrize(("changes", "name", "said"), REFUSED.values(), ids=REFUSED)
def test_what_stands_in_the_way_is_one_line_before_any_work(
    changes: dict[str, str | None], name: str, said: str, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.upload(write("webdataset", tmp_path / "corpus"), "corpus")
    address = f"s3://{name.removeprefix('../')}" if name.startswith("../") else f"s3://{buckets.NAME}/{name}"
    for variable, value in (bucket.new_keys(buckets.ALLOWED) | changes).items():
        monkeypatch.delenv(variable) if value is None else monkeypatch.setenv(variable, value)
    options = main.StepOptions(corpus="webdataset", dataset_root=address)
    with buckets.asking_for_keys():
        (fault,) = remote_faults(options)
        with pytest.raises(ValueError) as told:
            prepare.prepare(options.part(PreparationOptions))
    for line in (fault, str(told.value)):
        assert re.fullmatch(f"dataset_root={re.escape(address)}: {said}.*", line)
