"""OpenSLR 54 (Nepali; 35, 36, 52, 53 alike): `utt_spk_text.tsv`, `data/<first two of FileID>/<FileID>.flac`, no split."""

import posixpath
import re
from collections.abc import Iterator

from moe.corpora.formats.interface import CorpusOptions, Fault, FoundUtterance, Item, Read
from moe.corpora.formats.inventory import take_inventory
from moe.corpora.formats.text_tables import NOT_UTF8, as_text, is_undecodable
from moe.corpora.locations import Root, open_file

TABLE = "utt_spk_text.tsv"
_TABS = re.compile(r"\t+")  # some rows repeat them


def read_openslr(root: Root, options: CorpusOptions) -> Iterator[Item]:
    """Read FileID, UserID and text of every row; the language is `options.language`.

    Raises:
        ValueError: there is no `utt_spk_text.tsv`.
    """
    inventory = take_inventory(root)
    tables = [name for name in inventory.files if posixpath.basename(name) == TABLE]
    if not tables:
        raise ValueError(f"dataset_root={str(root)!r}: holds no {TABLE}")
    yield from inventory.remarks(lambda name: name.endswith(TABLE))
    for table in tables:
        yield Read(table)
        with open_file(root, table) as file:
            for number, line in enumerate(as_text(file), start=1):
                if line.strip():
                    yield _read_row(line, table, f"{table}:{number}")


def _read_row(line: str, table: str, place: str) -> FoundUtterance | Fault:
    if is_undecodable(line):
        return Fault(place, "bad_row", NOT_UTF8)
    fields = _TABS.split(line.strip("\r\n"), maxsplit=2)
    if len(fields) < 2 or not all(fields[:2]):
        return Fault(place, "bad_row", "needs FileID, UserID and text, divided by tabs")
    name, speaker = fields[0].strip(), fields[1].strip()
    audio = posixpath.join(posixpath.dirname(table), "data", name[:2], f"{name}.flac")
    return FoundUtterance(name, audio, transcript=fields[2].strip() if len(fields) > 2 else None, speaker=speaker)
