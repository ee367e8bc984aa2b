"""Rows of a table (CSV, Parquet, Arrow) as utterances: which column means what, and every other column kept."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from moe.corpora.formats.interface import CorpusOptions, FoundUtterance

NAMES = {
    "audio": ("path", "file_name", "audio"),
    "transcript": ("transcript", "transcription", "text", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id"),
    "etiology": ("etiology", "group", "domain"),
    "severity": ("severity",),
    "split": ("split",),
    "language": ("language", "locale"),
    "utterance_id": ("utterance_id", "id"),
}
REQUIRED = ("audio", "transcript")
OURS = ("utterance_id", "audio", "member", "transcript", "reference", "speaker", "etiology", "severity", "split", "language",
        "duration_s", "audio_digest")  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Which column of a table plays which role (None where there is none), and the names behind the numbers of a class column."""

    roles: dict[str, str | None]
    classes: dict[str, list[str]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, columns: Iterable[str], options: CorpusOptions, table: str, classes: dict[str, list[str]] | None = None
    ) -> "Columns":
        """Find the roles among the columns of a table.

        Raises:
            ValueError: a column named by an option is not there, or no column holds the audio or the transcript.
        """
        columns = list(columns)
        roles = {role: _column(role, columns, options, table) for role in NAMES}
        for role in REQUIRED:
            if roles[role] is None:
                raise ValueError(f"{table}: no column for the {role} ({_choice(role)}; there are {', '.join(columns) or 'none'})")
        return cls(roles, classes or {})

    def found(
        self,
        row: Mapping[str, Any],
        audio: str,
        member: str | None,
        utterance_id: str,
        split: str = "",
        fault: tuple[str, str] | None = None,
    ) -> FoundUtterance:
        """One row as an utterance; `utterance_id` and `split` stand where the row has none."""
        if self.classes:
            row = {name: _class_name(value, self.classes.get(name)) for name, value in row.items()}
        own = {role: row.get(column) if column else None for role, column in self.roles.items()}
        used = set(self.roles.values())
        return FoundUtterance(
            utterance_id=_text(own["utterance_id"]) or utterance_id,
            audio=audio,
            member=member,
            transcript=None if own["transcript"] is None else _text(own["transcript"]),
            speaker=_text(own["speaker"]).strip(),
            etiology=_text(own["etiology"]).strip(),
            severity=_number(own["severity"]),
            split=_text(own["split"]).strip() or split,
            language=_text(own["language"]).strip(),
            further={_further(name): value for name, value in row.items() if name not in used},
            fault=fault,
        )


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of every `ClassLabel` column, from what `datasets` writes into a schema's metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _class_name(value: Any, names: list[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _column(role: str, columns: list[str], options: CorpusOptions, table: str) -> str | None:
    asked = getattr(options, f"{role}_column", None)
    if asked is not None and asked not in columns:
        raise ValueError(f"{role}_column={asked!r}: {table} has no such column (there are {', '.join(columns) or 'none'})")
    return asked or next((name for name in NAMES[role] if name in columns), None)


def _choice(role: str) -> str:
    return f"one of {', '.join(NAMES[role])}, or {role}_column"


def _further(name: str) -> str:
    return f"corpus_{name}" if name in OURS else name  # what the corpus says of it is kept beside what is measured


def _text(value: Any) -> str:
    return "" if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan
