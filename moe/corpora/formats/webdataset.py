"""WebDataset: `<root>/<split>/*.tar` with `<key>.wav|flac|mp3|m4a|…`, `<key>.txt`, maybe `<key>.domain` and `<key>.json`.

Shards are walked by their headers, audio is not read. A key ends at the last dot that leaves a known suffix. The domain of an utterance
(its own file, else the suffix of the split folder) is its etiology; `<key>.json` may give transcript, `speaker`, `severity` and further
columns. `metadata.json` is checked against what the shards hold.
"""

import functools
import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from moe.audio.containers import is_recording
from moe.corpora.formats.columns import as_text, further_name, role_of
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Note, Read
from moe.corpora.formats.inventory import Inventory, is_hidden, take_inventory
from moe.corpora.formats.split_names import split_and_domain, split_of_folder
from moe.corpora.locations import Root, open_file, read_file
from moe.corpora.names import canonical
from moe.corpora.shards import TAR_ERRORS, TarMember, read_at, tar_members
from moe.progress import progress

TEXTS = ("txt", "domain", "json")
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_TEXT_BYTES = 1 << 20
MANY_SHARDS = 20  # from so many on, listing shows its progress


@dataclass
class _Sample:
    """The members of one key."""

    audio: TarMember | None = None
    texts: dict[str, str] = field(default_factory=dict)
    fault: tuple[str, str] | None = None


def read_webdataset(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read every shard. A shard that is damaged is a fault, and its utterances before the damage are used.

    Raises:
        ValueError: there is no shard.
    """
    inventory = take_inventory(root)
    shards = inventory.ending(".tar")
    yield from inventory.remarks(lambda name: name.lower().endswith((".tar", *PACKED)))
    yield from packed_tars(inventory)
    if not shards and not inventory.outside:
        raise ValueError(f"dataset_root={str(root)!r}: holds no *.tar")
    stated: dict[str, int] = {}
    totals: dict[str, int] = {}
    for name in inventory.ending("metadata.json"):
        yield Read(name)
        yield from _read_metadata(root, name, stated, totals)
    plain = options.plain_domain if any(_split_and_domain(shard)[1] for shard in shards) else None
    counts = Counted(stated, totals)
    with progress("list", options.samples_per_shard * len(shards), "utterances", shown=len(shards) > MANY_SHARDS) as bar:
        for shard in shards:
            for item in counts.of(shard, _whole_shard(root, shard, stated.pop(shard, None))):
                yield _in_domain(item, plain)
            bar.update(options.samples_per_shard)
    for shard, n_samples in stated.items():
        yield Fault(shard, "missing_file", f"metadata.json lists it with {n_samples} samples; it is not there", n_samples)
    yield from counts.faults()


class Counted:
    """Utterances found and lost below each `metadata.json` that says how many there are in all.

    Args:
        stated: samples by shard. totals: `total_samples` by the metadata's name.
    """

    def __init__(self, stated: Mapping[str, int], totals: Mapping[str, int]) -> None:
        self.totals, self.n_found = totals, dict.fromkeys(totals, 0)
        self.n_stated = {name: sum(n for shard, n in stated.items() if _is_below(shard, name)) for name in totals}

    def of(self, shard: str, items: Iterator[Item]) -> Iterator[Item]:
        """The items of a shard, counted."""
        for item in items:
            for name in self.totals:
                self.n_found[name] += isinstance(item, FoundUtterance) and _is_below(shard, name)
            yield item

    def faults(self) -> Iterator[Fault]:
        """A total that neither the listed shards add up to, nor what was found; what the list lacks is lost once."""
        for name, total in self.totals.items():
            n_known = self.n_stated[name] or self.n_found[name]
            if total != n_known:
                known = f"its shards list {n_known}" if self.n_stated[name] else f"the shards hold {n_known}"
                yield Fault(name, "bad_metadata", f"total_samples={total}, and {known}", max(0, total - n_known))


def _is_below(shard: str, metadata: str) -> bool:
    folder = posixpath.dirname(metadata)
    return not folder or shard.startswith(f"{folder}/")


def _in_domain(item: Item, plain: str | None) -> Item:
    """An utterance whose folder names no domain, beside folders that do, in the one that the options say."""
    if plain is None or not isinstance(item, FoundUtterance) or item.etiology:
        return item
    return replace(item, etiology=plain)


def packed_tars(inventory: Inventory) -> Iterator[Fault]:
    """Compressed tars, whose members cannot be sought."""
    for name in inventory.ending(*PACKED):
        yield Fault(name, "bad_shard", "a compressed tar is not read: decompress it, since members are found by their place")


def _whole_shard(root: Root, shard: str, n_stated: int | None) -> Iterator[Item]:
    """What a shard holds; what it lacks is counted by `metadata.json` where that lists it, else once for each damage."""
    yield Read(shard)
    n_found, n_lost, damage = 0, 1 if n_stated is None else 0, False
    try:
        with open_file(root, shard) as file:
            for item in _read_shard(file, shard):
                n_found += isinstance(item, FoundUtterance)
                damage |= isinstance(item, Fault)
                yield replace(item, n_lost=n_lost) if isinstance(item, Fault) else item
    except (OSError, ValueError) as error:
        damage = True
        yield Fault(shard, "bad_shard", str(error), n_lost)
    if n_stated is not None and n_found != n_stated:
        detail = f"{n_found} of the {n_stated} samples that metadata.json lists"
        yield Fault(shard, "bad_shard", detail, max(0, n_stated - n_found))
    elif not n_found and not damage:
        yield Fault(shard, "bad_shard", "holds no utterance")


def _read_shard(file: BinaryIO, shard: str) -> Iterator[Item]:
    samples: dict[str, _Sample] = {}  # by key: members of a key need not be neighbours
    for member in tar_members(file):
        if member.damaged:
            yield Fault(shard, "bad_shard", member.fault)
            continue
        key, suffix = _key(member.name)
        if not suffix or is_hidden(posixpath.basename(member.name)):
            kind = "a hidden member" if suffix else f"a member that ends in .{member.name.rpartition('.')[2]}"
            yield Note(f"{kind} is taken for nothing", f"{shard}/{member.name}")
            continue
        if _has(samples.get(key), suffix):  # the key comes again: an utterance of its own, with the same id
            yield _utterance(shard, key, samples.pop(key))
        _add(samples.setdefault(key, _Sample()), suffix, member, file)
    for key, sample in samples.items():
        yield _utterance(shard, key, sample)


def _has(sample: _Sample | None, suffix: str) -> bool:
    return sample is not None and (suffix in sample.texts if suffix in TEXTS else sample.audio is not None)


def _key(name: str) -> tuple[str, str]:
    """Key and suffix of a member; no suffix where it is none that is known."""
    key, _, suffix = canonical(name.removeprefix("./")).rpartition(".")
    suffix = suffix.lower()
    return key, suffix if suffix in TEXTS or is_recording(name) else ""


def _add(sample: _Sample, suffix: str, member: TarMember, file: BinaryIO) -> None:
    if member.fault:
        sample.fault = ("outside_root", f"{member.name}: {member.fault}")
    elif suffix not in TEXTS:
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
    split, domain = _split_and_domain(shard)
    record, fault = _json(sample)
    roles = {role: name for name in reversed(record) if (role := role_of(name))}
    own = {role: as_text(record.pop(name)) for role, name in roles.items()}
    return FoundUtterance(
        utterance_id=f"{shard.removesuffix('.tar')}/{key}",
        audio=shard,
        member=sample.audio.name if sample.audio else None,
        transcript=sample.texts.get("txt", own.get("transcript")),
        speaker=own.get("speaker", ""),
        etiology=sample.texts.get("domain", "").strip() or own.get("etiology", "") or domain,
        severity=_severity(own.get("severity")),
        split=split,
        language=own.get("language", ""),
        further={further_name(name): value for name, value in record.items()},
        fault=sample.fault or fault or (None if sample.audio else ("missing_file", "the key has no audio member")),
    )


@functools.lru_cache(maxsize=256)
def _split_and_domain(shard: str) -> tuple[str, str]:
    """By the innermost folder that names a split, else by the shard's own name."""
    folder = posixpath.dirname(shard)
    named = next((found for part in reversed(folder.split("/")) if (found := split_and_domain(part))[0]), None)
    return named or (split_of_folder(posixpath.basename(shard)), "")


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


def _read_metadata(root: Root, name: str, stated: dict[str, int], totals: dict[str, int]) -> Iterator[Fault]:
    try:
        record = json.loads(read_file(root, name).decode("utf-8-sig"))
        if "total_samples" in record:
            totals[name] = int(record["total_samples"])
        for entry in record["shards"]:
            shard = entry["filename"] if "filename" in entry else entry["shard_filename"]
            stated[posixpath.join(posixpath.dirname(name), str(shard))] = int(entry["samples"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        yield Fault(name, "bad_metadata", f"{type(error).__name__}: {error}", 0)
