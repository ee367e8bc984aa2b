"""What files a corpus holds: a walk over its root that opens nothing, so that no pipe can hang it and no dead link end it."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import fsspec

from moe.corpora.formats.interface import Fault, Note
from moe.corpora.locations import OutsideRoot, Root, is_address, locate


@dataclass
class Inventory:
    """The files below a root, by relative path.

    Attributes:
        files: what may be read, links to files included, sorted.
        hidden: hidden files and editors' locks, and whatever lies in hidden folders.
        dead: dead links, pipes, sockets and devices, with what each is.
        outside: links to folders outside the corpus, which are not entered.
        inside: links to folders inside, which are read where they lie.
    """

    files: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    dead: dict[str, str] = field(default_factory=dict)
    outside: list[str] = field(default_factory=list)
    inside: list[str] = field(default_factory=list)

    def ending(self, *suffixes: str) -> list[str]:
        """The files whose names end so, in any case."""
        return [name for name in self.files if name.lower().endswith(suffixes)]

    def remarks(self, wanted: Callable[[str], bool], searched: bool = True) -> Iterator[Fault | Note]:
        """What a reader that wants certain files passes over: it is lost where it should have been a file, else said.

        Args:
            searched: whether the reader searches the folders; else a table names its files, and nothing is lost by a link as such.
        """
        detail = "a link to a folder outside the corpus is not entered; trusted_root=FOLDER allows that"
        for link in self.outside:
            yield Fault(link, "outside_root", detail) if searched else Note(detail, link)
        for name, what in self.dead.items():
            if wanted(name):
                yield Fault(name, "missing_file", what)
        for link in self.inside:
            yield Note("a link to a folder of the corpus is not entered: its files are read where they lie", link)
        for name in self.hidden:
            if wanted(name):
                yield Note("a hidden file is not read", name)


def take_inventory(root: Root) -> Inventory:
    """Walk over a corpus; links to folders are entered where they lead into a trusted folder, each folder once."""
    found = Inventory()
    if is_address(root):
        for name in _find_remote(str(root)):
            (found.hidden if is_hidden(name) else found.files).append(name)
    else:
        _walk(root, "", found, {os.path.realpath(str(root))})
    found.files.sort()
    return found


def _walk(root: Root, folder: str, found: Inventory, seen: set[str]) -> None:
    try:
        entries = sorted(os.scandir(os.path.join(str(root), folder)), key=lambda entry: entry.name)
    except OSError as error:
        found.dead[folder] = f"a folder that cannot be read ({error.strerror})"
        return
    for entry in entries:
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_file():
            (found.hidden if is_hidden(name) else found.files).append(name)
        elif not entry.is_dir():
            if not is_hidden(name):
                found.dead[name] = (
                    "a link to nothing" if entry.is_symlink() else "neither a file nor a folder (a pipe, a socket or a device)"
                )
        elif not entry.is_symlink() or _is_to_enter(root, name, found, seen):
            _walk(root, name, found, seen)


def _is_to_enter(root: Root, name: str, found: Inventory, seen: set[str]) -> bool:
    try:
        target = locate(root, name)
    except OutsideRoot:
        found.outside.append(name)
        return False
    base = os.path.realpath(str(root))
    if target == base or target.startswith(base + os.sep) or target in seen:
        found.inside.append(name)
        return False
    seen.add(target)
    return True


def is_hidden(name: str) -> bool:
    """Whether a name is no data of a corpus: it begins with a dot in any folder (`.#manifest.csv`, `._a.wav`, `.git/…`), or is `~$a.csv`, `a.csv~`, `__MACOSX/…`."""
    parts = name.split("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in parts) or parts[-1].startswith("~$") or name.endswith("~")


def _find_remote(root: str) -> list[str]:
    filesystem, base = fsspec.core.url_to_fs(root)
    base = base.rstrip("/") + "/"
    # what ends with a slash is an empty key that stands for a folder, as consoles of buckets make
    return [name.removeprefix(base).lstrip("/") for name in filesystem.find(base) if not name.endswith("/")]
