"""What any system may be asked, as options of the steps that decode: one for each name, refused where the system does not take it.

The language is no option here: the corpus says it to `evaluate`, and `transcribe` has it as an option of its own.
"""

import dataclasses
from typing import Any

import pandas as pd

from moe.options import Options, to_text
from moe.system import Ask, DecodingOptions, Record
from moe.systems.table import SYSTEMS, beam_fault, row_of

LANGUAGE = "language"
STEP_NAMES = {"top_k": "decoding_top_k"}  # `top_k` is joint training's on `main`


def _fields() -> list[tuple[str, Any, dataclasses.Field[Any]]]:
    found: dict[str, tuple[str, Any, dataclasses.Field[Any]]] = {}
    for row in SYSTEMS.values():
        for field in dataclasses.fields(row.ask_type):
            name = STEP_NAMES.get(field.name, field.name)
            if name != LANGUAGE:
                found.setdefault(name, (name, field.type, dataclasses.field(default=field.default, metadata=field.metadata)))
    return list(found.values())


AskOptions = dataclasses.make_dataclass("AskOptions", _fields(), bases=(Options,), frozen=True)
AskOptions.__module__, AskOptions.__doc__ = __name__, "What a recogniser is asked in decoding."
NAMES = (*(field.name for field in dataclasses.fields(AskOptions)), LANGUAGE)


def ask_of(options: Options, record: Record, rows: pd.DataFrame | None = None) -> Ask:
    """What a step's options ask of a recogniser with this record, which need not be loaded yet.

    Args:
        rows: of the manifest that it is to decode; None where there is none.

    Raises:
        ValueError: an option that is set and that the system does not take, a value that it cannot meet, or beams without their extra.
    """
    row = row_of(record)
    ours = {STEP_NAMES.get(field.name, field.name): field.name for field in dataclasses.fields(row.ask_type)}
    given = {name: getattr(options, name) for name in NAMES if hasattr(options, name)}
    strange = [name for name, value in given.items() if name not in ours and options.is_changed(name)]
    if strange:
        takes = ", ".join(ours) or "nothing"
        raise ValueError(f"{strange[0]}={to_text(given[strange[0]])}: {record.title} does not take it; it takes {takes}")
    ask = row.ask_type(**{ours[name]: value for name, value in given.items() if name in ours})
    row.refuse(record, ask, rows)
    if fault := beam_fault(record.system, options.part(DecodingOptions).beam_size):
        raise ValueError(fault)
    return ask
