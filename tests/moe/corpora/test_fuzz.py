"""Mutated audio, JSONs, tables, tars and Parquet files cause no crash, no hang and no read outside the root.

Ten thousand of them, 700 of each container and 630 of each corpus. Mutations are seeded, so a failure can be repeated.
"""

import builtins
import io
import os
import time
from pathlib import Path

import numpy as np
import pytest

import tests.toys.corpora as toys
from moe.audio.sampling import SAMPLE_RATE
from moe.audio.waveforms import AudioError, load_audio
from moe.corpora.formats.table import CorpusOptions
from moe.corpora.listing import list_corpus
from moe.corpora.quarantine import REASONS, inspect_audio, inspect_bytes

N_AUDIO, N_CORPUS = 700, 630  # mutations of each container and of each corpus
LONGEST_S = 10.0  # of the processor, for one mutated file
AUDIO = ["wav", "flac", "mp3", "ogg", "opus", "m4a", "aac", "aiff", "rf64"]
FILES = {
    "folder": "manifest.csv", "sap": "Train/s0/s0.json", "sap_tars": "SAP_Train.tar", "webdataset": "train/000000.tar",
    "parquet": "data/train-00000-of-00001.parquet", "openslr": "utt_spk_text.tsv",
}  # fmt: skip
HOLD_AUDIO = ("sap_tars", "webdataset", "parquet")  # here the mutated file has the recordings too


def mutate(data: bytes, rng: np.random.Generator, head: int = 400) -> bytes:
    """Flip, overwrite, cut, repeat or insert; half of all changes hit the first bytes, where the headers are."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        if not data:
            break
        place = int(rng.integers(0, min(len(data), head) if rng.random() < 0.5 else len(data)))
        kind = rng.integers(0, 5)
        if kind == 0:
            data[place] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[place : place + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"../."])
        elif kind == 2:
            del data[place : place + int(rng.integers(1, 200))]
        elif kind == 3:
            data[place:place] = data[place : place + int(rng.integers(1, 200))]
        else:
            data[place:place] = rng.bytes(int(rng.integers(1, 20)))
    return bytes(data)


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    return {name: toys.WRITERS[name][1](folder / name) for name in FILES}


@pytest.fixture
def opened(tmp_path, monkeypatch) -> list[str]:
    """Every path that Python code opens during a test."""
    paths: list[str] = []
    real_open, real_os_open = builtins.open, os.open

    def spy(path, *args, **kwargs):
        paths.append(os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else "")
        return real_open(path, *args, **kwargs)

    def spy_os(path, *args, **kwargs):
        paths.append(os.fsdecode(path))
        return real_os_open(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", spy)
    monkeypatch.setattr(io, "open", spy)
    monkeypatch.setattr(os, "open", spy_os)
    return paths


def fuzz_audio(container: str, n: int) -> int:
    """Decode n mutations; how many were still readable."""
    whole, n_readable = toys.encode(toys.tone(1, 0.25), container), 0
    for number in range(n):
        start = time.process_time()
        inspected = inspect_bytes(mutate(whole, np.random.default_rng([number, len(container)])), 0.1, 30.0)
        assert inspected.reason is None or inspected.reason in REASONS
        assert time.process_time() - start < LONGEST_S, f"{container} mutation {number} took too long"
        n_readable += inspected.reason is None
    return n_readable


def fuzz_corpus(name: str, source: Path, root: Path, n: int) -> int:
    """List n mutations of a corpus's file and inspect what they list; how many utterances were still readable."""
    corpus, n_readable = toys.WRITERS[name][0], 0
    whole = (source / FILES[name]).read_bytes()
    for number in range(n):
        variant = root / f"{name}{number}"  # a folder of its own: shards are indexed once per path
        (variant / FILES[name]).parent.mkdir(parents=True)
        (variant / FILES[name]).write_bytes(mutate(whole, np.random.default_rng([number, 7])))
        start = time.process_time()
        try:
            utterances = list_corpus(corpus, str(variant), CorpusOptions()).utterances
        except ValueError:
            continue  # one clear error: the corpus has no utterance, or its table no columns
        for row in utterances[utterances["reason"].isna()].to_dict("records"):
            member = row["member"] if isinstance(row["member"], str) else None
            inspected = inspect_audio(str(variant), row["audio"], member, 0.1, 30.0)
            assert inspected.reason is None or inspected.reason in REASONS
            n_readable += inspected.reason is None
        assert time.process_time() - start < LONGEST_S, f"{name} mutation {number} took too long"
    return n_readable


def assert_inside(opened: list[str], *allowed: Path) -> None:
    roots = tuple(os.path.realpath(path) for path in allowed) + (
        os.path.realpath(os.path.dirname(np.__path__[0])),
        "/usr/lib/python",
        "/proc/self",
    )
    outside = [path for path in {*opened} if path and not os.path.realpath(path).startswith(roots)]
    assert not outside, outside[:3]


def test_there_are_ten_thousand_mutations():
    """Issue 4: 10 000 mutated headers, JSONs and tars; 6 300 of audio, 3 780 of corpora."""
    assert N_AUDIO * len(AUDIO) + N_CORPUS * len(FILES) >= 10_000


@pytest.mark.slow
@pytest.mark.parametrize("container", AUDIO)
def test_mutated_audio(container, opened, tmp_path):
    n_readable = fuzz_audio(container, N_AUDIO)
    assert 0 < n_readable < N_AUDIO
    assert_inside(opened, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_mutated_corpora(name, corpora, tmp_path, opened):
    n_readable = fuzz_corpus(name, corpora[name], tmp_path, N_CORPUS)
    assert n_readable > 0 or name not in HOLD_AUDIO
    assert_inside(opened, tmp_path, corpora[name])


def test_the_unmutated_are_all_readable(corpora):
    """The oracle of the above: it is the mutations that are refused."""
    for container in AUDIO:
        assert inspect_bytes(toys.encode(toys.tone(1, 0.25), container), 0.1, 30.0).reason is None
    for name, root in corpora.items():
        for row in list_corpus(toys.WRITERS[name][0], str(root), CorpusOptions()).utterances.to_dict("records"):
            member = row["member"] if isinstance(row["member"], str) else None
            assert inspect_audio(str(root), row["audio"], member, 0.1, 30.0).reason is None


@pytest.mark.parametrize(
    "rewrite", ["../../../../etc/hostname", "/etc/hostname", "/proc/self/environ", "..\\..\\x", "s3://bucket/x"]
)
def test_hostile_paths_open_nothing(rewrite, tmp_path, opened):
    for name, write in {"a": toys.write_folder, "b": toys.write_openslr, "c": toys.write_sap}.items():
        root = write(tmp_path / name)
        for path in [*root.rglob("*.csv"), *root.rglob("*.tsv"), *root.rglob("*.json")]:
            path.write_text(
                path.read_text().replace("wav/u1.flac", rewrite).replace("u1\t", f"{rewrite}\t").replace("u1.flac", rewrite)
            )
    opened.clear()
    for name, corpus in {"a": "folder", "b": "openslr", "c": "sap"}.items():
        for row in list_corpus(corpus, str(tmp_path / name), CorpusOptions()).utterances.to_dict("records"):
            inspected = inspect_audio(str(tmp_path / name), row["audio"], None, 0.1, 30.0)
            assert (inspected.reason is None) == (rewrite not in row["audio"])
    assert_inside(opened, tmp_path)


@pytest.mark.parametrize("seed", range(20))
def test_what_loads_is_finite_and_sized_as_it_says(seed):
    try:
        wave = load_audio(mutate(toys.audio_of(1), np.random.default_rng(seed)))
    except AudioError:
        return
    assert wave.dtype == np.float32 and np.isfinite(wave).all() and len(wave) < 60 * SAMPLE_RATE
