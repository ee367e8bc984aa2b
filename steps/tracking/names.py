"""Names for the store out of any text: two texts never share a name, and a name can be read back.

MLflow takes letters, digits and `_-. :/` of any script as names of metrics, parameters, tags and artifacts. What else a text holds (a
bracket in an etiology) is written as its UTF-8 bytes, `:28` for `(`, as URLs do with `%`. Without what MLflow refuses, a name is the
text itself.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

STEP_TAG, FINGERPRINT_TAG = "moe.step", "moe.fingerprint"
RUN_IDS = ("_run_id", "_run_ids")  # parameters that name runs end so
MAX_NAME, MAX_FILE_NAME = 250, 200  # characters of a key in the store, bytes of a file name
REFUSED = re.compile(r"[^\w\-. ]|^[. ]| $")  # of one part; a leading dot could make it `..`, spaces at the ends are not seen
CASED = re.compile(r"[^a-z0-9_\-. ]|^[. ]| $")  # what a store that is blind to case and accents may take for another character
EMPTY, CUT = ":", ":_"  # neither is the beginning of an escape
N_DIGITS = 32
ESCAPES = re.compile(r"(?::[0-9a-f]{2})+")


class MetricNames:
    """Names of the metrics of one run, told apart also by a store that is blind to case and accents, as MySQL is by default.

    The first of several texts that differ by nothing else keeps its plain name; of the others all but small letters is spelled out.
    """

    def __init__(self, held: Iterable[str] = ()) -> None:
        self._plain = {_as_if_blind(name): name for name in held}

    def of(self, text: str) -> str:
        """The name of a metric, at most 250 characters."""
        name = store_name(text)
        return name if self._plain.setdefault(_as_if_blind(name), name) == name else _name(text, CASED)


def is_by_group(name: str) -> bool:
    """Whether a metric is that of one expert, layer, etiology or domain, as `dev/load/als/expert_0`: a run keeps those in tables."""
    return name.count("/") > 1


def store_name(text: str) -> str:
    """The name of a metric, parameter or tag, at most 250 characters; `/` stays and groups metrics in the UI."""
    return _name(text, REFUSED)


def file_name(text: str) -> str:
    """The name of one file or folder, at most 200 bytes."""
    name = _part(text)
    if len(name.encode()) <= MAX_FILE_NAME:
        return name
    return name.encode()[: MAX_FILE_NAME - len(CUT) - N_DIGITS].decode(errors="ignore") + _digest(text)


def text_of(name: str) -> str:
    """The text that a name was made of.

    Raises:
        ValueError: the text was too long: its name holds the beginning and a digest.
    """
    if CUT in name:
        raise ValueError(f"name {name!r} holds the beginning of a longer text")
    return "/".join("" if part == EMPTY else ESCAPES.sub(_read, part) for part in name.split("/"))


def _name(text: str, refused: re.Pattern[str]) -> str:
    name = "/".join(_part(part, refused) for part in text.split("/"))
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - len(CUT) - N_DIGITS] + _digest(text)


def _part(text: str, refused: re.Pattern[str] = REFUSED) -> str:
    return refused.sub(_escape, text) or EMPTY


def _as_if_blind(name: str) -> str:
    """A name as such a store compares it: a model of its collation by NFKD and case folding, not the collation itself (`ø` is not `o` here)."""
    return "".join(each for each in unicodedata.normalize("NFKD", name).casefold() if not unicodedata.combining(each))


def _escape(match: re.Match[str]) -> str:
    return "".join(f":{byte:02x}" for byte in match[0].encode("utf-8", "surrogatepass"))


def _read(match: re.Match[str]) -> str:
    return bytes.fromhex(match[0].replace(":", "")).decode("utf-8", "surrogatepass")


def _digest(text: str) -> str:
    return CUT + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:N_DIGITS]
