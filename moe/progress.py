"""A bar for long work: its name, how much is done, the rate and the time left.

Work that ends within `SHORT_S` shows none. A terminal shows the bar until the work ends; a file gets a line every `EVERY_S` instead,
because nobody redraws it; so does a terminal that several processes write to.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SHORT_S, EVERY_S = 2.0, 20.0
IN_LINES = "MOE_PROGRESS_IN_LINES"  # variable that tells a process that others write to its terminal
COUNT = "{n_fmt}/{total_fmt}, {rate_noinv_fmt}, {remaining} left{postfix}"


def progress(title: str, total: int, unit: str, n_done: int = 0, shown: bool = True) -> tqdm:
    """A bar that counts to `total` with `update(n)`; whoever makes it closes it, as a `with` does. Of several processes the first shows it.

    Args:
        unit: what is counted, in the plural.
        n_done: units that an earlier start has done.
        shown: False shows nothing, whatever happens.
    """
    kind, how = _on_a_terminal() if _is_redrawn() else _in_a_file()
    shown = shown and os.environ.get("RANK", "0") == "0"  # torchrun says it
    how |= {"file": sys.stderr, "disable": not shown, "leave": False, "delay": SHORT_S}
    return kind(desc=title, total=total, initial=n_done, unit=f" {unit}", **how)


def counted(items: Sequence[Item], title: str, unit: str) -> Iterator[Item]:
    """The items in turn, under a bar that counts them."""
    with progress(title, len(items), unit) as bar:
        for item in items:
            yield item
            bar.update()


def announce(title: str) -> None:
    """Name the work that begins, on a terminal, in a line that the next output overwrites."""
    if _is_redrawn():
        print(f"{title} …", end="\r", file=sys.stderr, flush=True)


def _is_redrawn() -> bool:
    return sys.stderr.isatty() and IN_LINES not in os.environ


def _on_a_terminal() -> tuple[type[tqdm], dict[str, Any]]:
    return tqdm, {"bar_format": "{desc:<14} {percentage:3.0f} % {bar:24} " + COUNT, "dynamic_ncols": True, "smoothing": 0.05}


def _in_a_file() -> tuple[type[tqdm], dict[str, Any]]:
    return _Lines, {"bar_format": "{desc}: " + COUNT, "mininterval": EVERY_S, "maxinterval": EVERY_S}


class _Lines(tqdm):
    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """A line of its own, and nothing where a bar would be wiped out."""
        if msg is None:
            print(self, file=self.fp, flush=True)
