"""Folders that a searching format does not enter, links that lead out of the corpus: listed, not passed over."""

from collections.abc import Iterator

from moe.corpora.formats.interface import Fault
from moe.corpora.locations import links_out


def linked_away(root: str) -> Iterator[Fault]:
    """A fault for every link to a folder outside the corpus."""
    for link in links_out(root):
        yield Fault(link, "outside_root", "a link to a folder outside the corpus is not entered")
