"""WebDataset: `<root>/<split>/*.tar` with `<key>.wav|flac|mp3|m4a|…`, `<key>.txt`, maybe `<key>.domain` and `<key>.json`.

Shards are walked by their headers, audio is not read. The domain of an utterance (its own file, else the suffix of the split
folder) is its etiology; `<key>.json` may give `speaker`, `severity` and further columns. `metadata.json` is checked against what
the shards hold.
"""

import json
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from moe.corpora.formats.columns import OURS
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance
from moe.corpora.formats.links import linked_away
from moe.corpora.formats.split_names import split_and_domain
from moe.corpora.locations import find_files, open_file, read_file
from moe.corpora.shards import TAR_ERRORS, TarMember, read_at, tar_members

AUDIO = ("wav", "flac", "mp3", "m4a", "aac", "mp4", "ogg", "opus", "webm")
TEXTS = ("txt", "domain", "json")
MAX_TEXT_BYTES = 1 << 20


@dataclass
class _Sample:
    """The members of one key."""

    audio: TarMember | None = None
    texts: dict[str, str] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


def read_webdataset(root: str, options: CorpusOptions) -> Iterator[FoundUtterance | Fault]:
    """Read every shard. A shard that is damaged is a fault, and its utterances before the damage are used.

    Raises:
        ValueError: there is no shard.
    """
    shards = find_files(root, ".tar")
    if not shards:
        raise ValueError(f"dataset_root={root!r}: holds no *.tar")
    yield from linked_away(root)
    counts: Counter[str] = Counter()
    for shard in shards:
        try:
            with open_file(root, shard) as file:
                for found in _read_shard(file, shard):
                    counts[shard] += isinstance(found, FoundUtterance)
                    yield found
        except (OSError, ValueError) as error:
            yield Fault(shard, "bad_shard", str(error))
    for name in find_files(root, "metadata.json"):
        yield from _check_metadata(root, name, counts)


def _read_shard(file: BinaryIO, shard: str) -> Iterator[FoundUtterance | Fault]:
    samples: dict[str, _Sample] = {}  # by key: members of a key need not be neighbours
    for member in tar_members(file):
        if member.damaged:
            yield Fault(shard, "bad_shard", member.fault)
            continue
        key, suffix = _key(member.name)
        if suffix not in AUDIO + TEXTS:
            continue
        if _has(samples.get(key), suffix):  # the key comes again: an utterance of its own, with the same id
            yield _utterance(shard, key, samples.pop(key))
        _add(samples.setdefault(key, _Sample()), suffix, member, file)
    for key, sample in samples.items():
        yield _utterance(shard, key, sample)


def _has(sample: _Sample | None, suffix: str) -> bool:
    return sample is not None and (sample.audio is not None if suffix in AUDIO else suffix in sample.texts)


def _key(name: str) -> tuple[str, str]:
    folder, base = posixpath.split(name.removeprefix("./"))
    key, _, suffix = base.partition(".")
    return posixpath.join(folder, key), suffix.lower()


def _add(sample: _Sample, suffix: str, member: TarMember, file: BinaryIO) -> None:
    if member.fault:
        sample.fault = ("outside_root", f"{member.name}: {member.fault}")
    elif suffix in AUDIO:
        sample.audio = member
    else:
        try:
            sample.texts[suffix] = _text(member, file)
        except TAR_ERRORS as error:
            sample.fault = sample.fault or ("missing_transcript", f"{member.name}: {error}")


def _text(member: TarMember, file: BinaryIO) -> str:
    if member.n_bytes > MAX_TEXT_BYTES:
        raise ValueError(f"a text of {member.n_bytes} bytes")
    return read_at(file, member).decode("utf-8-sig")


def _utterance(shard: str, key: str, sample: _Sample) -> FoundUtterance:
    split, domain = split_and_domain(posixpath.basename(posixpath.dirname(shard)))
    further, fault = _json(sample)
    return FoundUtterance(
        utterance_id=f"{shard.removesuffix('.tar')}/{key}",
        audio=shard,
        member=sample.audio.name if sample.audio else None,
        transcript=sample.texts.get("txt"),
        speaker=str(further.pop("speaker", "")),
        etiology=sample.texts.get("domain", "").strip() or str(further.pop("etiology", "")) or domain,
        severity=_severity(further.pop("severity", None)),
        split=split,
        language=str(further.pop("language", "")),
        further={f"corpus_{name}" if name in OURS else name: value for name, value in further.items()},
        fault=sample.fault or fault or (None if sample.audio else ("missing_file", "the key has no audio member")),
    )


def _json(sample: _Sample) -> tuple[dict[str, Any], tuple[str, str] | None]:
    try:
        record = json.loads(sample.texts.get("json", "{}"))
    except (ValueError, RecursionError) as error:
        return {}, ("bad_metadata", f"json: {error}")
    if not isinstance(record, dict):
        return {}, ("bad_metadata", "json: not an object")
    return {name: value for name, value in record.items() if isinstance(value, (str, int, float))}, None


def _severity(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def _check_metadata(root: str, name: str, counts: Counter[str]) -> Iterator[Fault]:
    try:
        shards = json.loads(read_file(root, name).decode("utf-8-sig"))["shards"]
        stated = [(posixpath.join(posixpath.dirname(name), str(_shard_name(entry))), int(entry["samples"])) for entry in shards]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        yield Fault(name, "bad_metadata", f"{type(error).__name__}: {error}")
        return
    for shard, n_samples in stated:
        if shard not in counts:
            yield Fault(shard, "missing_file", f"{name} lists it with {n_samples} samples; it is not there or holds none")
        elif counts[shard] != n_samples:
            yield Fault(shard, "bad_shard", f"{counts[shard]} of the {n_samples} samples that {name} lists")


def _shard_name(entry: dict[str, Any]) -> str:
    return entry["filename"] if "filename" in entry else entry["shard_filename"]
