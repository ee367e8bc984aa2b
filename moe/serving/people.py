"""The people whose experts a recogniser serves: read when they are first asked for, kept while there is room, dropped when they are gone."""

import collections
import dataclasses
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from moe.experts.people.folders import OtherRecogniser, PersonRecord, load_person, read_person_record
from moe.experts.people.options import AS_IT_IS
from moe.experts.people.person import AUTO_SPEAKER, NAME, Person
from moe.experts.people.training import PersonalSystem

Find = Callable[[str], Path | None]  # name → the folder of a person as they are now; None where there is nobody of that name
INFIX = ".person."
PROFILE_TAG = "moe.profile"  # of a registered person: whether their newest version has a profile of their voice
LOG = logging.getLogger(__name__)


def registered_person(recogniser: str, name: str) -> str:
    """The registered model of a person above a registered recogniser."""
    return f"{recogniser}{INFIX}{name}"


class UnknownPerson(ValueError):
    """Nobody of that name is enrolled; the message names nobody else."""


def enrolled(name: str, find: Find, recogniser: str) -> tuple[Path, PersonRecord]:
    """The folder and the record of a person above a recogniser of this digest; no weight is read.

    Raises:
        UnknownPerson: there is nobody of that name.
        OtherRecogniser: they were enrolled with another recogniser.
    """
    if name == AUTO_SPEAKER:
        raise UnknownPerson(f"speaker={name}: nobody is recognised by their voice here; name the person")
    if not NAME.fullmatch(name):
        raise UnknownPerson("speaker: a name is 1 to 64 of the characters a-z, 0-9, _ and -")
    folder = find(name)
    if folder is None:
        raise UnknownPerson("speaker: nobody of that name is enrolled")
    record = read_person_record(folder)
    if record.recogniser != recogniser:
        raise OtherRecogniser(
            "speaker: enrolled with another recogniser than the one that is served; enrol them again with this one"
        )
    return folder, record


@dataclasses.dataclass(frozen=True)
class Served:
    """A person in memory, what of the recogniser is their own, and the folder that they were read from."""

    person: Person
    kept: str
    folder: Path


@dataclasses.dataclass
class _Held:
    served: Served
    checked: float


class ServedPeople:
    """People above one recogniser.

    Args:
        recogniser: digest of its folder.
        find: where a person is now.
        most: people in memory; who was asked for longest ago goes first.
        refresh_s: seconds after which it is looked up whether a person is still there, and still the same.
    """

    def __init__(self, system: PersonalSystem, recogniser: str, find: Find, most: int = 1000, refresh_s: float = 60.0) -> None:
        self.system, self.recogniser, self.find, self.most, self.refresh_s = system, recogniser, find, most, refresh_s
        self._held: collections.OrderedDict[str, _Held] = collections.OrderedDict()
        self._turn = threading.Lock()

    def of(self, name: str) -> Served:
        """A person by name.

        Raises:
            UnknownPerson: there is nobody of that name.
            OtherRecogniser: they were enrolled with another recogniser.
        """
        with self._turn:
            self._drop_the_gone(self.refresh_s)
            if name not in self._held:
                self._read(name, *enrolled(name, self.find, self.recogniser))
            self._held.move_to_end(name)
            return self._held[name].served

    @property
    def n_held(self) -> int:
        """People in memory."""
        return len(self._held)

    def refresh(self) -> None:
        """Look for everybody in memory; whoever is gone leaves it."""
        with self._turn:
            self._drop_the_gone(0.0)

    def _drop_the_gone(self, after_s: float) -> None:
        """Look for those whom nobody has looked for in so many seconds."""
        now = time.monotonic()
        for name in [name for name, held in self._held.items() if now - held.checked >= after_s]:
            if self.find(name) == self._held[name].served.folder:
                self._held[name].checked = now
            else:
                del self._held[name]

    def _read(self, name: str, folder: Path, record: PersonRecord) -> None:
        person = (
            Person(name)
            if record.kept == AS_IT_IS
            else load_person(folder, self.system.layout(record.targets, record.r), self.recogniser)
        )
        self._held[name] = _Held(Served(person, record.kept, folder), time.monotonic())
        while len(self._held) > self.most:
            self._held.popitem(last=False)


def keep_current(refresh_s: float, *refresh: Callable[[], None]) -> None:
    """Call these every so many seconds from a thread of its own, so that who is gone leaves memory also while nobody asks."""

    def work() -> None:
        while True:
            time.sleep(max(refresh_s, 1.0))
            for each in refresh:
                try:
                    each()
                except Exception:  # the registry may be out of reach for a while
                    LOG.exception("people could not be looked for")

    threading.Thread(target=work, daemon=True, name="people").start()
