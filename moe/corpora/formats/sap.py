"""Speech Accessibility Project: `{Train,Dev}/<contributor>/<contributor>.json` with its wavs, or the release's tars.

The speaker is the contributor, the etiology stands at the contributor, severity is the mean of the sparse `Intelligibility`
ratings. The prompt and its category are kept as further columns: what was asked and what was said differ in four of ten
utterances.
"""

import json
import math
import posixpath
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from moe.audio.containers import is_recording
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Read
from moe.corpora.formats.inventory import Inventory, take_inventory
from moe.corpora.formats.split_names import split_of_folder, split_of_name
from moe.corpora.formats.webdataset import PACKED, packed_tars
from moe.corpora.locations import Root, open_file, read_file
from moe.corpora.names import canonical
from moe.corpora.shards import TAR_ERRORS, TarMember, read_at, tar_members

INTELLIGIBILITY = ("Intelligibility", "Intelligbility")  # the corpus spells it both ways


def read_sap(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read every contributor's JSON, extracted or in tars. A JSON or tar that cannot be read is a fault and stops no other.

    Raises:
        ValueError: there is neither a contributor's JSON nor a tar.
    """
    inventory = take_inventory(root)
    names = [name for name in inventory.ending(".json", ".tar") if name.lower().endswith(".tar") or _is_contributor(name)]
    if not names and not inventory.outside:
        raise ValueError(f"dataset_root={str(root)!r}: holds neither <contributor>/<contributor>.json nor a tar of them")
    yield from inventory.remarks(lambda name: name.lower().endswith((".json", ".tar", *PACKED)))
    yield from packed_tars(inventory)
    n_beside = _recordings_by_folder(inventory)
    yield from _without_json(n_beside, names)
    for name in names:
        yield Read(name)
        try:
            if name.lower().endswith(".tar"):
                yield from _read_tar(root, name)
            else:
                yield from contributor(read_file(root, name), name, n_beside[posixpath.dirname(name)])
        except (OSError, ValueError) as error:
            yield Fault(name, "bad_shard" if name.lower().endswith(".tar") else "bad_metadata", str(error))


def _recordings_by_folder(inventory: Inventory) -> Counter[str]:
    return Counter(posixpath.dirname(name) for name in inventory.files if is_recording(name))


def _without_json(n_beside: Counter[str], names: list[str]) -> Iterator[Fault]:
    """Contributors of whom only recordings are there."""
    known = {posixpath.dirname(name) for name in names}
    for folder, n_recordings in n_beside.items():
        if folder not in known:
            yield Fault(folder or ".", "missing_file", f"{n_recordings} recordings without a contributor's JSON", n_recordings)


def _read_tar(root: Root, tar: str) -> Iterator[FoundUtterance | Fault]:
    with open_file(root, tar) as file:
        for member in tar_members(file):
            place = f"{tar}/{member.name}".rstrip("/")
            if member.damaged:
                yield Fault(place, "bad_shard", member.fault)
            elif member.name.lower().endswith(".json"):
                yield from _read_tar_member(file, tar, member, place)


def _read_tar_member(file: BinaryIO, tar: str, member: TarMember, place: str) -> Iterator[FoundUtterance | Fault]:
    if member.fault:
        yield Fault(place, "outside_root", member.fault)
        return
    try:
        data = read_at(file, member)
    except TAR_ERRORS as error:
        yield Fault(place, "bad_shard", str(error))
        return
    for found in contributor(data, member.name):
        if isinstance(found, Fault):
            yield replace(found, file=f"{tar}/{found.file}")
        else:
            yield replace(found, audio=tar, member=found.audio, split=found.split or split_of_name(place))


def contributor(data: bytes, name: str, n_beside: int = 0) -> Iterator[FoundUtterance | Fault]:
    """The utterances of one contributor's JSON; `name` is its path, the audio, so many recordings, lies beside it."""
    try:
        record = json.loads(data.decode("utf-8-sig"))
        speaker, files = record["Contributor ID"], record["Files"]
        if not isinstance(speaker, str) or not isinstance(files, list):
            raise TypeError("Contributor ID is no text or Files is no list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        n_lost = max(1, n_beside, data.count(b'"Filename"'))
        yield Fault(name, "bad_metadata", f"{type(error).__name__}: {error}", n_lost)
        return
    if not files and n_beside:
        yield Fault(name, "bad_metadata", f"lists none of the {n_beside} recordings beside it", n_beside)
    for index, entry in enumerate(files):
        try:
            yield _utterance(entry, record, name)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            yield Fault(f"{name}#{index}", "bad_metadata", f"{type(error).__name__}: {error}")


def _utterance(entry: dict[str, Any], record: dict[str, Any], name: str) -> FoundUtterance:
    filename, prompt = entry["Filename"], entry.get("Prompt") or {}
    if not isinstance(filename, str) or not filename:
        raise TypeError("Filename is no text")
    folder = posixpath.dirname(name)
    transcript = prompt.get("Transcript")
    return FoundUtterance(
        utterance_id=posixpath.splitext(filename)[0],
        audio=posixpath.join(folder, filename),
        transcript=None if transcript is None else str(transcript),
        speaker=record["Contributor ID"],
        etiology=str(record.get("Etiology") or ""),
        severity=_severity(entry.get("Ratings") or []),
        split=split_of_folder(folder),
        language="en",
        further={
            "prompt_text": str(prompt.get("Prompt Text") or ""),
            "category": str(prompt.get("Category Description") or ""),
            "sub_category": str(prompt.get("Sub Category Description") or ""),
        },
    )


def _severity(ratings: list[dict[str, Any]]) -> float:
    levels = [_level(rating) for rating in ratings if str(rating.get("Dimension Description", "")).strip() in INTELLIGIBILITY]
    known = [level for level in levels if not math.isnan(level)]
    return sum(known) / len(known) if known else math.nan


def _level(rating: dict[str, Any]) -> float:
    try:
        return float(rating.get("Level") or math.nan)
    except (TypeError, ValueError):
        return math.nan


def _is_contributor(name: str) -> bool:
    folder, file = posixpath.split(name)
    return canonical(file).lower() == canonical(f"{posixpath.basename(folder)}.json").lower()
