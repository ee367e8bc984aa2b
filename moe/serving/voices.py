"""Whose voice it is: `speaker=auto` by the profiles of those who agreed to one; off until a server asks for it."""

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from moe.experts.people.folders import OtherRecogniser, read_person_record, read_profile
from moe.experts.people.person import AUTO_SPEAKER
from moe.experts.people.profiles import likeness
from moe.serving.people import Served, ServedPeople, UnknownPerson

LOG = logging.getLogger(__name__)
NOBODY = f"speaker={AUTO_SPEAKER}: nobody has a profile here, so nobody can be recognised by their voice; name the person"


class ServedVoices:
    """Profiles above one recogniser, read again every `refresh_s` of its people.

    Args:
        people: who is served.
        names: those who have a profile now.
        confidence: cosine below which a voice is nobody's.
    """

    def __init__(self, people: ServedPeople, names: Callable[[], Sequence[str]], confidence: float) -> None:
        self.people, self.names, self.confidence = people, names, confidence
        self._turn = threading.Lock()
        self._held: dict[str, Tensor] = {}
        self._read_at = -float("inf")

    @property
    def n_held(self) -> int:
        """Profiles in memory."""
        return len(self._held)

    def check(self) -> None:
        """Refuse to recognise anybody where nobody has a profile.

        Raises:
            UnknownPerson: saying so.
        """
        if not self._current():
            raise UnknownPerson(NOBODY)

    def whose(self, embedding: Tensor) -> Served | None:
        """The person whose profile an embedding (D,) is nearest to; None where it is nobody's.

        Raises:
            UnknownPerson: nobody has a profile.
        """
        held = self._current()
        if not held:
            raise UnknownPerson(NOBODY)
        cosines = likeness(embedding[None].cpu(), torch.stack(list(held.values())))[0]  # (P,)
        best = int(cosines.argmax())
        if float(cosines[best]) < self.confidence:
            return None
        try:
            return self.people.of(list(held)[best])
        except (UnknownPerson, OtherRecogniser):  # gone, or enrolled anew, since the profiles were read
            return None

    def refresh(self) -> None:
        """Read the profiles of those who have one now; whoever is gone leaves memory."""
        with self._turn:
            self._read()

    def _current(self) -> dict[str, Tensor]:
        with self._turn:
            if time.monotonic() - self._read_at >= self.people.refresh_s:
                self._read()
            return self._held

    def _read(self) -> None:
        profiles = {name: self._profile(name) for name in self.names()}
        self._held = {name: profile for name, profile in profiles.items() if profile is not None}
        self._read_at = time.monotonic()

    def _profile(self, name: str) -> Tensor | None:
        """The profile of a person above this recogniser; None where there is none, or none that can be read, which keeps nobody else out."""
        folder = self.people.find(name)
        try:
            if folder is None or read_person_record(folder).recogniser != self.people.recogniser:
                return None
            return read_profile(folder)
        except ValueError:
            LOG.exception("the profile of a person cannot be read")
            return None
