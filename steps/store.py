"""The project's store as a whole: follow a checkout that was moved, and take a run with its lineage to another store.

No entry point of a chain: it makes no run. Examples:
    python -m steps.store move
    python -m steps.store export 8ecf06db a-folder
    MLFLOW_TRACKING_URI=sqlite:////other/project/mlflow.db python -m steps.store import a-folder
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlflow.exceptions import MlflowException

from steps.tracking import moved_store, transfer
from steps.tracking.run_ids import whole_id
from steps.tracking.store import connect, tracking_address


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser("python -m steps.store", description=(__doc__ or "").partition("\n")[0])
    commands = made.add_subparsers(dest="command", required=True)
    commands.add_parser("move", help="note the places of all artifacts anew, where the store lies now")
    export = commands.add_parser("export", help="write a run and all that it was made from to a folder")
    export.add_argument("run_id", help="id of the run, or its first characters")
    export.add_argument("folder", type=Path, help="a new folder")
    commands.add_parser("import", help="read such a folder into this store").add_argument("folder", type=Path)
    return made


def move() -> str:
    """Let the places of all artifacts follow the store; what was done in a sentence."""
    address = tracking_address()
    changed = moved_store.follow(address)
    connect()
    if not changed:
        return f"every artifact of {address.uri} is noted where it lies"
    return "; ".join(f"{n} places below {old} are now below {address.artifact_root}" for old, n in changed.items())


def export(run_id: str, folder: Path) -> str:
    """Write a run and its lineage to a folder; what was done in a sentence."""
    written = transfer.export(whole_id(run_id), folder)
    return f"{len(written)} runs were written to {folder}"


def read_back(folder: Path) -> str:
    """Import a folder; what was done in a sentence."""
    imported, there = transfer.read_back(folder)
    return f"{len(imported)} runs were imported, {len(there)} were there already"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    given = parser().parse_args(arguments)
    try:
        if given.command == "move":
            print(move())
        else:
            print(export(given.run_id, given.folder) if given.command == "export" else read_back(given.folder))
    except (ValueError, RuntimeError, OSError, MlflowException) as error:
        print(f"store: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
