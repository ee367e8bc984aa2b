"""OpenSLR 54 (Nepali; 35, 36, 52, 53 alike): `utt_spk_text.tsv`, `data/<first two of FileID>/<FileID>.flac`, no split."""

import posixpath
import re
from collections.abc import Iterator

from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance
from moe.corpora.locations import find_files, open_file

TABLE = "utt_spk_text.tsv"
_TABS = re.compile(r"\t+")  # some rows repeat them


def read_openslr(root: str, options: CorpusOptions) -> Iterator[FoundUtterance | Fault]:
    """Read FileID, UserID and text of every row; the language is `options.language`.

    Raises:
        ValueError: there is no `utt_spk_text.tsv`.
    """
    tables = [name for name in find_files(root, TABLE) if posixpath.basename(name) == TABLE]
    if not tables:
        raise ValueError(f"dataset_root={root!r}: holds no {TABLE}")
    for table in tables:
        with open_file(root, table) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _read_row(line, table, f"{table}:{number}")


def _read_row(line: bytes, table: str, place: str) -> FoundUtterance | Fault:
    try:
        fields = _TABS.split(line.decode("utf-8-sig").strip("\r\n"), maxsplit=2)
    except UnicodeDecodeError as error:
        return Fault(place, "bad_row", f"is not UTF-8: {error}")
    if len(fields) < 2 or not all(fields[:2]):
        return Fault(place, "bad_row", "needs FileID, UserID and text, divided by tabs")
    name, speaker = fields[0].strip(), fields[1].strip()
    audio = posixpath.join(posixpath.dirname(table), "data", name[:2], f"{name}.flac")
    return FoundUtterance(name, audio, transcript=fields[2].strip() if len(fields) > 2 else None, speaker=speaker)
