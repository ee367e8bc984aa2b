"""A page to listen to: for each expert the utterances that its gate is surest of, audio inside, nothing loaded from elsewhere."""

import html
from collections.abc import Mapping

import pandas as pd

from analysis.pages.clips import Clip

STYLE = (
    "body{font:14px/1.45 system-ui,sans-serif;color:#222;margin:16px;max-width:900px}h1{font-size:18px}h2{font-size:15px;margin:18px 0 4px}"
    "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #e2e2e2;padding:4px 8px;text-align:left;vertical-align:middle}"
    "th{color:#555;font-weight:normal;font-size:12px}.note{color:#777;font-size:12px}audio{height:28px;width:240px}img{height:62px;width:240px}"
)
COLUMNS = {"weight": "gate", "etiology": "etiology", "speaker": "speaker", "duration_s": "length", "reference": "reference"}


def exemplars_html(
    exemplars: pd.DataFrame,
    profiles: pd.DataFrame,
    clips: Mapping[str, Clip] | None,
    title: str = "Utterances of each expert",
    note: str = "",
) -> str:
    """The page as text.

    Args:
        exemplars, profiles: of `analysis.profiles`; an expert without utterances is named and has no table.
        clips: utterance_id → clip, of every exemplar; None shares no audio, and the page says so.

    Raises:
        ValueError: an exemplar has no clip.
    """
    wrong = [name for name in exemplars["utterance_id"] if clips is not None and name not in clips]
    if wrong:
        raise ValueError(f"exemplars without audio: {wrong[:5]}; each needs a clip")
    note = note if clips is not None else " · ".join(filter(None, [note, "without audio: share_audio=false"]))
    parts = [_expert(row, exemplars[exemplars["expert"] == row["expert"]], clips or {}) for row in profiles.to_dict("records")]
    head = f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title><style>{STYLE}</style></head>"
    return f"{head}<body><h1>{html.escape(title)}</h1><p class='note'>{html.escape(note)}</p>{''.join(parts)}</body></html>\n"


def _expert(profile: Mapping[str, object], rows: pd.DataFrame, clips: Mapping[str, Clip]) -> str:
    if rows.empty:
        return f"<h2>Expert {profile['expert']}</h2><p>No utterance goes to it.</p>"
    said = (
        f"{profile['n_utterances']} utterances of {profile['n_speakers']} speakers, {profile['main_share']:.0%} of them "
        f"{html.escape(str(profile['main_group']))}"
    )
    names = [name for name in COLUMNS if name in rows]
    head = "".join(f"<th>{COLUMNS[name]}</th>" for name in names)
    cells = [
        f"<tr><td>{_player(clips.get(row['utterance_id']))}</td>"
        + "".join(f"<td>{html.escape(_text(name, row[name]))}</td>" for name in names)
        + "</tr>"
        for row in rows.to_dict("records")
    ]
    return f"<h2>Expert {profile['expert']}</h2><p>{said}</p><table><tr><th></th>{head}</tr>{''.join(cells)}</table>"


def _player(clip: Clip | None) -> str:
    if clip is None:
        return ""
    picture = f"<br><img alt='waveform above spectrogram' src='{clip.picture}'>"
    return f"<audio controls preload='none' src='{clip.audio}'></audio>{picture}"


def _text(name: str, value: object) -> str:
    return f"{value:.0%}" if name == "weight" else f"{value:.1f} s" if name == "duration_s" else str(value)
