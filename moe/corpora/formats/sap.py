"""Speech Accessibility Project: `{Train,Dev}/<contributor>/<contributor>.json` with its wavs, or the release's tars.

The speaker is the contributor, the etiology stands at the contributor, severity is the mean of the sparse `Intelligibility`
ratings. The prompt and its category are kept as further columns: what was asked and what was said differ in four of ten
utterances.
"""

import json
import math
import posixpath
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance
from moe.corpora.formats.links import linked_away
from moe.corpora.formats.split_names import split_of_folder, split_of_name
from moe.corpora.locations import find_files, open_file, read_file
from moe.corpora.shards import TAR_ERRORS, TarMember, read_at, tar_members

INTELLIGIBILITY = ("Intelligibility", "Intelligbility")  # the corpus spells it both ways


def read_sap(root: str, options: CorpusOptions) -> Iterator[FoundUtterance | Fault]:
    """Read every contributor's JSON, extracted or in tars. A JSON or tar that cannot be read is a fault and stops no other.

    Raises:
        ValueError: there is neither a contributor's JSON nor a tar.
    """
    names = [name for name in find_files(root, (".json", ".tar")) if name.lower().endswith(".tar") or _is_contributor(name)]
    if not names:
        raise ValueError(f"dataset_root={root!r}: holds neither <contributor>/<contributor>.json nor a tar of them")
    yield from linked_away(root)
    for name in names:
        try:
            if name.lower().endswith(".tar"):
                yield from _read_tar(root, name)
            else:
                yield from contributor(read_file(root, name), name)
        except (OSError, ValueError) as error:
            yield Fault(name, "bad_shard" if name.lower().endswith(".tar") else "bad_metadata", str(error))


def _read_tar(root: str, tar: str) -> Iterator[FoundUtterance | Fault]:
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


def contributor(data: bytes, name: str) -> Iterator[FoundUtterance | Fault]:
    """The utterances of one contributor's JSON; `name` is its path, the audio lies beside it."""
    try:
        record = json.loads(data.decode("utf-8-sig"))
        speaker, files = record["Contributor ID"], record["Files"]
        if not isinstance(speaker, str) or not isinstance(files, list):
            raise TypeError("Contributor ID is no text or Files is no list")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        yield Fault(name, "bad_metadata", f"{type(error).__name__}: {error}")
        return
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
            "prompt": str(prompt.get("Prompt Text") or ""),
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
    return file.lower() == f"{posixpath.basename(folder)}.json".lower()
