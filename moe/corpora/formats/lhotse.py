"""lhotse manifests: `*recordings*.jsonl[.gz]` with `*supervisions*.jsonl[.gz]`, or `*cuts*.jsonl[.gz]`; https://lhotse.readthedocs.io.

They are lines of JSON and read as such, so the library is not needed. What only the library could do (features, mixtures, perturbed
recordings, commands as sources) is a fault with its name.
"""

import gzip
import json
import posixpath
from collections.abc import Iterator
from typing import Any

from moe.audio.parts import Part
from moe.corpora.formats.columns import as_text, further_name
from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Read
from moe.corpora.formats.inventory import take_inventory
from moe.corpora.formats.split_names import split_of_name
from moe.corpora.locations import Root, inside, open_file

MANIFESTS = tuple(f"{kind}.jsonl{packed}" for kind in ("recordings", "supervisions", "cuts") for packed in ("", ".gz"))
WHOLE_S = 0.005  # a part that reaches so near to both ends is the recording
Record = dict[str, Any]


def read_lhotse(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read every manifest below the root; supervisions and cuts find recordings of any of them by id.

    Raises:
        ValueError: there is no manifest.
    """
    inventory = take_inventory(root)
    kinds = {kind: [name for name in inventory.files if kind in _base(name)] for kind in ("recordings", "supervisions", "cuts")}
    if not any(kinds.values()):
        raise ValueError(f"dataset_root={str(root)!r}: holds no manifest of lhotse (*cuts*.jsonl.gz, *recordings*.jsonl.gz)")
    yield from inventory.remarks(lambda name: bool(_base(name)))
    recordings: dict[str, Record] = {}
    for name in kinds["recordings"]:
        yield Read(name)
        for _, record in _records(root, name):
            if isinstance(record, Fault):
                yield record
            else:
                recordings[as_text(record.get("id"))] = record
    for name in [*kinds["supervisions"], *kinds["cuts"]]:
        yield Read(name)
        for place, record in _records(root, name):
            yield record if isinstance(record, Fault) else _utterance(root, name, place, record, recordings)


def _base(name: str) -> str:
    """The name of a file that may be a manifest, else nothing."""
    base = posixpath.basename(name).lower()
    return base if base.endswith((".jsonl", ".jsonl.gz")) else ""


def _records(root: Root, name: str) -> Iterator[tuple[str, Record | Fault]]:
    """Place and content of every line."""
    number = 0
    try:
        with open_file(root, name) as file:
            for number, line in enumerate(gzip.open(file) if name.lower().endswith(".gz") else file, start=1):
                if line.strip():
                    yield f"{name}:{number}", _record(line, f"{name}:{number}")
    except (OSError, EOFError, ValueError) as error:
        yield name, Fault(name, "bad_metadata", f"breaks off after line {number}: {error}")


def _record(line: bytes, place: str) -> Record | Fault:
    try:
        record = json.loads(line)
        return record if isinstance(record, dict) else Fault(place, "bad_row", "no JSON object")
    except (ValueError, RecursionError) as error:
        return Fault(place, "bad_row", f"no JSON: {error}")


def _utterance(root: Root, name: str, place: str, record: Record, recordings: dict[str, Record]) -> FoundUtterance | Fault:
    """A supervision, or a cut with the one supervision in it."""
    try:
        supervision, recording = (
            _supervision(record),
            record.get("recording") or recordings.get(as_text(record.get("recording_id"))),
        )
        custom = {**(record.get("custom") or {}), **(supervision.get("custom") or {})}
        audio, member, fault = _place(root, record, recording)
        return FoundUtterance(
            utterance_id=as_text(record["id"]),
            audio=audio,
            member=member,
            transcript=supervision.get("text"),
            speaker=as_text(supervision.get("speaker")),
            etiology=as_text(custom.pop("etiology", None)),
            severity=float(custom.pop("severity", None) or "nan"),
            split=split_of_name(name),
            language=as_text(supervision.get("language")),
            further={
                further_name(key): value
                for key, value in (custom | {"gender": supervision.get("gender")}).items()
                if value is not None
            },
            fault=fault,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Fault(place, "bad_row", f"{type(error).__name__}: {error}")


def _supervision(record: Record) -> Record:
    if "supervisions" not in record:
        return record
    if len(record["supervisions"]) != 1:
        raise ValueError(
            f"a cut with {len(record['supervisions'])} supervisions: trim it to them (lhotse cut trim-to-supervisions)"
        )
    return record["supervisions"][0]


def _place(root: Root, record: Record, recording: Record | None) -> tuple[str, str | None, tuple[str, str] | None]:
    """File and part, or why lhotse itself would be needed."""
    if "tracks" in record:
        return "", None, ("missing_file", "a mixed cut: write its audio with lhotse first")
    if recording is None:
        return "", None, ("missing_file", f"no recording {record.get('recording_id')!r} in a manifest of recordings")
    if recording.get("transforms"):
        return (
            "",
            None,
            ("missing_file", f"a recording with transforms ({recording['transforms']}): write its audio with lhotse first"),
        )
    (source,) = recording["sources"]
    if source["type"] != "file":
        return "", None, ("missing_file", f"the source is a {source['type']}, not a file")
    whole_s = float(recording["duration"])
    start, duration = float(record.get("start") or 0.0), float(record.get("duration") or whole_s)
    whole = start < WHOLE_S and abs(duration - whole_s) < WHOLE_S
    channel = record.get("channel", 0)
    several = len(source.get("channels", [0])) > 1 and isinstance(channel, int)
    part = Part(
        0.0 if whole else start, None if whole else start + duration, source["channels"].index(channel) if several else None
    )
    return inside(root, source["source"]), None if part == Part() else str(part), None
