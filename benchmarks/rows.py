"""Benchmarks of rows: a row and a seed are trained and scored in a process of their own, and a table shows what is there."""

import argparse
import resource
from collections.abc import Callable, Sequence
from pathlib import Path

from moe.files import write_whole


def cpu_minutes() -> float:
    """CPU minutes of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(sum(one.ru_utime + one.ru_stime for one in used) / 60, 2)


def file_of(folder: Path, row: str, seed: int, ending: str) -> Path:
    """The file with an ending of a row and a seed. A name may hold a point, which begins no ending."""
    name = row.replace("/", "-").replace(" ", "_").replace(",", "")
    return folder / f"{name}-{seed}{ending}"


def parser_of(description: str | None, rows: Sequence[str], out: Path) -> argparse.ArgumentParser:
    """The command line: which row and seed, where results lie, and whether to write the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=rows)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--table", action="store_true")
    return parser


def command(arguments: argparse.Namespace, run: Callable[[str, int, Path], None], table: Callable[[Path], str]) -> None:
    """Run the row that is asked for, and write the table `table.md` where that is asked for."""
    if arguments.row:
        run(arguments.row, arguments.seed, arguments.out)
    if arguments.table:
        text = table(arguments.out)
        with write_whole(arguments.out / "table.md") as aside:
            aside.write_text(text + "\n", encoding="utf-8")
        print(text)
