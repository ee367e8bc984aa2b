"""The error explorer: one self-contained HTML page of utterances, reference over hypothesis, to filter, sort and listen to.

Data of the hypotheses table go into `analysis.pages.explorer_page` as JSON; the alignment of each utterance is one letter per position.
"""

import html
import json
from collections.abc import Mapping, Sequence

import jiwer
import pandas as pd

from analysis.flags import FLAGS, flag_hypotheses, flag_name
from analysis.groups import EVERY_GROUP, with_groups
from analysis.hypotheses import groups_of
from analysis.pages.explorer_page import PAGE
from analysis.routing import chosen_experts, routing_weights

LETTERS = {"equal": "=", "substitute": "S", "delete": "D", "insert": "I"}
ALLOWED_LINKS = ("data:audio/", "https://", "http://")


def explorer_html(
    counted: pd.DataFrame,
    title: str = "Utterances and their errors",
    audio: Mapping[str, str] | None = None,
    pictures: Mapping[str, str] | None = None,
    group_columns: Sequence[str] = EVERY_GROUP,
    note: str = "",
) -> str:
    """The page as text.

    Args:
        counted: counted hypotheses table; routing weights, `error` and group columns are used where present.
        audio: utterance_id → relative link, http(s) address or `data:audio/` URI (see `analysis.pages.clips`); without one there is
            no player.
        pictures: utterance_id → data URI of its waveform and spectrogram, shown beside the player.
        group_columns: columns offered for filtering; absent ones are left out.

    Raises:
        ValueError: an audio link of another kind, or for an utterance that is not in the table.
    """
    table = flag_hypotheses(with_groups(counted.sort_values("utterance_id", ignore_index=True)))
    data = {**_texts(table), **_groups(table, group_columns), **_routing(table), "audio": _links(table, audio or {})}
    data["pictures"] = [(pictures or {}).get(utterance_id, "") for utterance_id in table["utterance_id"]]
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = PAGE.replace("__TITLE__", html.escape(title)).replace("__NOTE__", html.escape(note))
    return page.replace("__DATA__", text)


def alignment_letters(references: Sequence[str], hypotheses: Sequence[str]) -> list[str]:
    """One letter per aligned position: `=` right, S substituted, D deleted, I inserted."""
    output = jiwer.process_words(list(references), list(hypotheses))
    return ["".join(LETTERS[chunk.type] * _length(chunk) for chunk in chunks) for chunks in output.alignments]


def _texts(table: pd.DataFrame) -> dict[str, list]:
    error = table["error"] if "error" in table else pd.Series(None, index=table.index, dtype=object)
    duration = table["duration_s"].fillna(0.0) if "duration_s" in table else pd.Series(0.0, index=table.index)
    return {
        "utterance_id": table["utterance_id"].tolist(),
        "reference": table["reference"].tolist(),
        "hypothesis": table["hypothesis"].tolist(),
        "ops": alignment_letters(table["reference"].tolist(), table["hypothesis"].tolist()),
        "duration_s": duration.round(2).tolist(),
        "error": [value if isinstance(value, str) else "" for value in error],
        "flags": _flags(table),
    }


def _flags(table: pd.DataFrame) -> list[list[str]]:
    names = [flag_name(flag) for flag in FLAGS]
    return [[name for name, here in zip(names, row, strict=True) if here] for row in table[list(FLAGS)].to_numpy(bool)]


def _groups(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, object]:
    """Group of each utterance by column, the groups in their order, and the captions shown on each card."""
    found = {column: groups_of(table, column) for column in columns if column in table}
    groups = {column: values.astype(str).tolist() for column, values in found.items()}
    captions = [groups[column] for column in ("etiology", "speaker") if column in groups]
    if "severity_group" in groups:
        captions.append([group if "severity" in group else f"severity {group}" for group in groups["severity_group"]])
    if "duration_s" in table:
        captions.append([f"{value:.1f} s" for value in table["duration_s"]])
    if "sentence_seen" in table:
        captions.append([f"sentence {'' if seen == 'yes' else 'not '}in train" for seen in groups_of(table, "sentence_seen")])
    return {
        "groups": groups,
        "categories": {column: values.cat.categories.tolist() for column, values in found.items()},
        "captions": [list(row) for row in zip(*captions, strict=True)] if captions else [[] for _ in range(len(table))],
    }


def _routing(table: pd.DataFrame) -> dict[str, list]:
    if "weight_0" not in table:
        return {"weights": [], "expert": []}
    return {"weights": routing_weights(table).round(3).tolist(), "expert": chosen_experts(table).tolist()}


def _links(table: pd.DataFrame, audio: Mapping[str, str]) -> list[str]:
    strangers = sorted(set(audio) - set(table["utterance_id"]))
    if strangers:
        raise ValueError(
            f"audio given for {len(strangers)} utterance(s) that are not in the table, the first is {strangers[0]!r}"
        )
    for utterance_id, link in audio.items():
        if ":" in link.split("/")[0] and not link.startswith(ALLOWED_LINKS):
            raise ValueError(f"audio of {utterance_id!r} is {link[:40]!r}: must be a relative link, http(s) or data:audio/")
    return [audio.get(utterance_id, "") for utterance_id in table["utterance_id"]]


def _length(chunk: jiwer.AlignmentChunk) -> int:
    return max(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx)
