"""Whether the promise holds: kill it anywhere, start it again, get the same result; a bad sample or a bad disk costs a message.

    python -m benchmarks.torture [--only NAME,NAME] [--seeds 20] [--short] [--again] [--folder DIR]      or: make torture

Real processes on the smallest honest chain. What has passed with the same code is not repeated (`--again` does); the table is written
to benchmarks/results/torture.md and .json after every trial. Disks are filled in tmpfs mounts, for which one must be root.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: processes are forked from this one

import argparse
import dataclasses
import datetime
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import table
from benchmarks.torture import chain as torture_chain
from benchmarks.torture import data, shared, store, training
from benchmarks.torture.arena import ROOT, STAGES, Arena
from benchmarks.torture.store import NotHere

RESULTS = ROOT / "benchmarks" / "results" / "torture"
CODE = ("moe", "steps", "analysis", "benchmarks")
SHARED = "replaced in the same run, weights and metrics bit-identical, no run left RUNNING"
HEADER = "| test | pass | passed | seconds |\n| --- | --- | --- | --- |"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        trial: raises AssertionError where the promise is broken; returns what was seen.
        n: trials of the full form at most; None is as many as there are seeds.
        n_short: trials of the short form: of what takes a real process, disk or server to show. Tests show the rest within one process.
    """

    name: str
    test: str
    passes: str
    trial: Callable[[int], str]
    n: int | None
    n_short: int = 0


def rows(folder: Path, short: bool) -> list[Row]:
    """The table's lines, the quick ones first."""
    arena, away_s = Arena(folder / "stages", until="cluster" if short else "asr"), 8.0 if short else 60.0
    found = [
        Row("nan", "NaN planted in audio, label, gradient", "ids listed, weights finite", _on(data.not_a_number, arena), 3),
        Row("order", "the test set in another order", "hypotheses bit-identical", _on(data.another_order, arena), 3),
        Row("damage", "newest checkpoint truncated, emptied, one file missing, one byte flipped", "named, kept, fallen back, same bits",
            _on(training.damaged, arena), 4),
        Row("save", "kill -9 during a save", "resumed from a whole checkpoint, at most one interval lost, same bits",
            _on(training.killed_while_saving, arena), None, 1),
        Row("same", "same seed twice; 0 and 2 workers", "weights and metrics bit-identical", _on(training.same_again, arena), len(STAGES)),
        Row("faulty", "5 % of the files faulty, each in another way", "the chain finishes, every file listed",
            _on(data.faulty_files, arena), 1),
        Row("full-checkpoint", "disk full at a checkpoint", "training goes on, says so, same bits",
            _on(store.disk_full_at_checkpoint, arena), 1, 1),
        Row("full-artifact", "disk full at an artifact", "clear message; goes on in the same run, same bits",
            _on(store.disk_full_at_artifact, arena), 1),
        Row("full-database", "disk full at the database", "clear message; goes on in the same run, same bits",
            _on(store.disk_full_at_database, arena), 1),
        Row("read-only", "read-only folder", "message names the folder", _on(store.read_only_folder, arena), 1, 1),
        Row("server", f"tracking server away for {away_s:.0f} s in training", "training goes on, no metric lost",
            lambda seed: store.server_away(arena, seed, away_s), 2, 1),
    ]  # fmt: skip
    for stage in STAGES:
        for n_workers in (0,) if stage == "gate" else (0, 2):
            shown = f"kill -9 at a random moment: {stage}" + ("" if stage == "gate" else f", {n_workers} workers")
            trial = _killing(arena, stage, n_workers)
            n_short = int(stage == "experts" and n_workers == 2)
            found.append(Row(f"kill-{stage}-{n_workers}", shown, "weights and metrics bit-identical", trial, None, n_short))
    chain = folder / "chain"
    return found + [
        Row("kill-shared", "kill -9 of one of two processes (torchrun) at a random moment: experts", SHARED,
            _on(shared.killed_of_two, arena), 10),
        Row("kill-placed", "kill -9 of one of two processes on two nodes (Ray) at a random moment: experts", SHARED,
            _on(shared.killed_of_placed, arena), 10),
        Row("remove-node", "one of two nodes (Ray) removed at a random moment: experts", SHARED, _on(shared.removed_node, arena), 10),
        Row("two-chains", "two chains at once on one fresh sqlite store", "both finish", _in(torture_chain.two_at_once, chain), 1),
        Row("sigterm", "SIGTERM to the chain at a random moment", "KILLED and, in training, a checkpoint within 30 s",
            _in(torture_chain.terminated_at_random, chain), 10),
        Row("kill-chain", "kill -9 the whole chain at a random moment, start again", "same final table, no run left RUNNING",
            _in(torture_chain.killed_at_random, chain), 10),
    ]  # fmt: skip


def _on(trial: Callable[[Arena, int], str], arena: Arena) -> Callable[[int], str]:
    return lambda seed: trial(arena, seed)


def _in(trial: Callable[[Path, int], str], folder: Path) -> Callable[[int], str]:
    return lambda seed: trial(folder, seed)


def _killing(arena: Arena, stage: str, n_workers: int) -> Callable[[int], str]:
    return lambda seed: training.killed_at_random(arena, stage, n_workers, seed)


def attempt(trial: Callable[[int], str], seed: int) -> dict[str, Any]:
    """One trial: whether it passed (None: it cannot be done here), what was seen, and its seconds."""
    started = time.monotonic()
    passed: bool | None = True
    try:
        seen = trial(seed)
    except NotHere as error:
        passed, seen = None, str(error)
    except Exception as error:
        passed, seen = False, f"{type(error).__name__}: {error}"
    return {"passed": passed, "seen": seen[:1500], "seconds": round(time.monotonic() - started, 1)}


def torture(chosen: list[Row], n_seeds: int, short: bool, again: bool, results: Path, code: str) -> bool:
    """Every trial that has not passed with this code; the table after each. Returns whether all have passed."""
    kept = table.read(results.with_suffix(".json"))
    for row in chosen:
        found = kept.setdefault(row.name, {})
        if found.get("code") != code or again:
            found = kept[row.name] = {"code": code, "trials": {}}
        n = row.n_short if short else min(n_seeds, row.n or n_seeds)
        found |= {"test": row.test, "passes": row.passes, "n": n, "date": str(datetime.date.today())}
        for seed in range(n):
            if (found["trials"].get(str(seed)) or {}).get("passed"):
                continue
            found["trials"][str(seed)] = trial = attempt(row.trial, seed)
            word = {True: "passed", False: "FAILED", None: "not here"}[trial["passed"]]
            print(
                f"{row.name:<20}{seed + 1:>3}/{n:<3} {word:<9}{trial['seconds']:7.1f} s  {trial['seen'].splitlines()[0][:150]}",
                flush=True,
            )
            table.write_both(results, page(kept), kept)
    return all(trial["passed"] is not False for row in chosen for trial in kept[row.name]["trials"].values())


def page(kept: dict[str, Any]) -> str:
    """The table as Markdown, what failed below it."""
    lines, failures = [], []
    for name, row in kept.items():
        trials = [trial for trial in row["trials"].values() if trial["passed"] is not None]
        passed = sum(trial["passed"] for trial in trials)
        shown = f"{passed}/{row['n']}" if trials or not row["trials"] else "not on this machine"
        lines.append(f"| {row['test']} | {row['passes']} | {shown} | {sum(trial['seconds'] for trial in trials):.0f} |")
        failures += [f"- {name} {seed}: {trial['seen']}" for seed, trial in row["trials"].items() if trial["passed"] is False]
    dates = sorted({row["date"] for row in kept.values()})
    notes = (
        ["", f"`python -m benchmarks.torture`, {' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {os.cpu_count()} cores."]
        if dates
        else []
    )
    return "\n".join(["# Torture", "", HEADER, *lines, *notes, *(["", "## Failures", "", *failures] if failures else [])]) + "\n"


def code_digest() -> str:
    """Digest of all code that a trial runs."""
    files = [path for folder in CODE for path in sorted((ROOT / folder).rglob("*.py"))]
    lines = [f"{path.relative_to(ROOT)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 where a trial failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--only", help="names of rows, or their beginnings, comma list")
    parser.add_argument("--seeds", type=int, default=20, help="trials of each row at most; some have fewer")
    parser.add_argument("--short", action="store_true", help="a trial of the rows that take a real process, as the tests run it")
    parser.add_argument("--again", action="store_true", help="repeat what has passed")
    parser.add_argument("--folder", type=Path, help="where the stores lie (none: a temporary folder for each state of the code)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the table's path without its ending")
    chosen = parser.parse_args(arguments)
    code = code_digest()
    folder = chosen.folder or Path(tempfile.gettempdir()) / f"whisper-moe-torture-{code}"
    wanted = chosen.only.split(",") if chosen.only else [""]
    all_rows = rows(folder, chosen.short)
    selected = [row for row in all_rows if any(map(row.name.startswith, wanted)) and (row.n_short or not chosen.short)]
    if not selected:
        parser.error(f"--only {chosen.only}: rows are {', '.join(row.name for row in all_rows)}")
    passed = torture(selected, chosen.seeds, chosen.short, chosen.again, chosen.results, code)
    print(f"\n{chosen.results.with_suffix('.md').read_text(encoding='utf-8')}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
