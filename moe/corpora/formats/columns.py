"""Rows of a table (CSV, Parquet, Arrow) as utterances: which column means what, and every other column kept."""

import functools
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from moe.corpora.formats.interface import CorpusOptions, FoundUtterance
from moe.corpora.names import canonical

NAMES = {
    "audio": ("path", "file_name", "audio", "audio_path", "audio_file", "audio_filepath", "file_path", "file", "wav"),
    "transcript": ("transcript", "transcription", "text", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id", "spk", "spk_id"),
    "etiology": ("etiology", "aetiology", "group", "domain"),
    "severity": ("severity",),
    "split": ("split",),
    "language": ("language", "locale"),
    "id": ("utterance_id", "id", "utt_id"),
}
REQUIRED = ("audio", "transcript")
OURS = ("utterance_id", "audio", "member", "transcript", "reference", "speaker", "etiology", "severity", "split", "language",
        "duration_s", "audio_digest", "channel")  # fmt: skip


@dataclass(frozen=True)
class Columns:
    """Which column of a table plays which role (None where there is none).

    Attributes:
        roles: role → column.
        classes: the names behind the numbers of a class column.
        notes: what was decided where a name left a choice.
        id_is_asked: whether the user named the column of the id, so that it is one whatever it holds.
    """

    roles: dict[str, str | None]
    classes: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    id_is_asked: bool = False

    @classmethod
    def of(
        cls,
        columns: Iterable[str],
        options: CorpusOptions,
        table: str,
        classes: dict[str, list[str]] | None = None,
        holds_audio: Collection[str] = (),
        required: tuple[str, ...] = REQUIRED,
    ) -> "Columns":
        """Find the roles among the columns of a table; names are equal whatever their case, spaces and underscores.

        Args:
            holds_audio: columns that hold recordings; one of them is the audio rather than a column of paths.

        Raises:
            ValueError: a column named by an option is not there, no column holds the audio or the transcript, or two could.
        """
        columns, notes = list(columns), list[str]()
        roles: dict[str, str | None] = {}
        for role in NAMES:
            asked = getattr(options, f"{role}_column", None)
            among = (
                [name for name in columns if name in holds_audio]
                if role == "audio" and holds_audio and asked is None
                else columns
            )
            roles[role], said = _column(role, asked, among, table)
            notes += said
        if roles["audio"] is None and len(holds_audio) == 1:
            roles["audio"] = next(iter(holds_audio))
        for role in required:
            if roles[role] is None:
                raise ValueError(f"{table}: no column for the {role} ({_choice(role)}; there are {', '.join(columns) or 'none'})")
        return cls(roles, classes or {}, tuple(notes), options.id_column is not None)

    @property
    def audio(self) -> str:
        """The column of the recordings or of their paths."""
        return self.roles["audio"] or ""

    def found(
        self,
        row: Mapping[str, Any],
        audio: str,
        member: str | None,
        place_id: str,
        split: str = "",
        fault: tuple[str, str] | None = None,
    ) -> FoundUtterance:
        """One row as an utterance; `place_id` and `split` stand where the row has none."""
        if self.classes:
            row = {name: _class_name(value, self.classes.get(name)) for name, value in row.items()}
        own = {role: row.get(column) if column else None for role, column in self.roles.items()}
        used, own_id = set(self.roles.values()), as_text(own["id"])
        return FoundUtterance(
            utterance_id=own_id or place_id,
            audio=audio,
            member=member,
            transcript=None if own["transcript"] is None else as_text(own["transcript"]),
            speaker=as_text(own["speaker"]),
            etiology=as_text(own["etiology"]),
            severity=_number(own["severity"]),
            split=as_text(own["split"]).strip() or split,
            language=as_text(own["language"]).strip(),
            further={further_name(name): value for name, value in row.items() if name not in used},
            place_id=place_id if own_id and not self.id_is_asked else "",
            fault=fault,
        )


def class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """The names of the classes of every `ClassLabel` column, from what `datasets` writes into a schema's metadata."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {name: feature["names"] for name, feature in features.items() if feature.get("_type") == "ClassLabel"}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


@functools.lru_cache(maxsize=1024)
def role_of(name: str) -> str | None:
    """The role that a column or key of this name plays, whatever its case, spaces and underscores; `audio` and `id` excepted."""
    return next(
        (role for role, known in NAMES.items() if role not in ("audio", "id") and _folded(name) in map(_folded, known)), None
    )


def further_name(name: str) -> str:
    """The name under which a column that plays no role is kept: what the corpus says stands beside what is measured."""
    return f"corpus_{name}" if name in OURS else name


def as_text(value: Any) -> str:
    """A cell as text; a whole number is one however the table holds it, since a column with gaps holds 7 as 7.0."""
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _class_name(value: Any, names: list[str] | None) -> Any:
    return names[value] if names and isinstance(value, int) and 0 <= value < len(names) else value


def _column(role: str, asked: str | None, columns: list[str], table: str) -> tuple[str | None, list[str]]:
    """The column of a role and what is to be said about the choice."""
    if asked is not None:
        alike = [name for name in columns if name == asked] or [name for name in columns if _folded(name) == _folded(asked)]
        if len(alike) != 1:
            raise ValueError(
                f"{role}_column={asked!r}: {table} has {_how_many(alike)} (there are {', '.join(columns) or 'none'})"
            )
        return alike[0], []
    candidates = [name for known in NAMES[role] for name in columns if _folded(name) == _folded(known)]
    if not candidates:
        return None, []
    same = [name for name in candidates if _folded(name) == _folded(candidates[0])]
    chosen = next((name for name in NAMES[role] if name in same), same[0])
    if len(same) > 1 and (chosen not in NAMES[role] or same.count(chosen) > 1):
        raise ValueError(
            f"{table}: {' and '.join(map(repr, same))} may both be the {role}; rename one, or name it by {role}_column"
        )
    return chosen, _said(role, chosen, [name for name in candidates if name != chosen])


def _said(role: str, chosen: str, others: list[str]) -> list[str]:
    notes = [f"column {chosen!r} is taken for the {role}"] if chosen not in NAMES[role] else []
    return notes + (
        [f"the {role} is column {chosen!r}, not {', '.join(map(repr, others))} ({role}_column names another)"] if others else []
    )


def _how_many(alike: list[str]) -> str:
    return f"columns {' and '.join(map(repr, alike))} of that name" if alike else "no such column"


def _folded(name: str) -> str:
    return canonical(name).casefold().replace("_", "").replace(" ", "").replace("-", "")


def _choice(role: str) -> str:
    return f"one of {', '.join(NAMES[role])}, or {role}_column"


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan
