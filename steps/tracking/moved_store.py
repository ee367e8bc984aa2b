"""A local store that was moved or copied with its project: the places of its artifacts follow it.

MLflow notes the absolute place of every artifact. In a checkout that was moved or copied these are the old places: old runs would not
be found, and new ones would be written there. A root is put right where its artifacts lie beside the store.
"""

import contextlib
import sqlite3
from pathlib import Path

from mlflow.utils.file_utils import get_local_path_or_none

from steps.tracking.addresses import Address

PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)


def follow(address: Address) -> dict[str, int]:
    """Put the places of artifacts right that lie beside a sqlite store and are noted elsewhere: old root → places changed."""
    if address.sqlite_path is None or address.artifact_root is None or not address.sqlite_path.exists():
        return {}
    with contextlib.closing(sqlite3.connect(address.sqlite_path, timeout=20)) as database:
        roots = _roots_left_behind(database, address.sqlite_path.parent / "mlruns")
        return {root: rebase(database, root, address.artifact_root) for root in roots}


def rebase(database: sqlite3.Connection, old: str, new: str) -> int:
    """Replace the root of every place that begins with `old`, in one transaction; the number of places changed."""
    n_changed = 0
    with database:
        for table, column in PLACES:
            query = f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?"
            done = database.execute(query, (new.rstrip("/"), len(old) + 1, len(old) + 1, f"{old}/"))
            n_changed += done.rowcount
    return n_changed


def _roots_left_behind(database: sqlite3.Connection, folder: Path) -> list[str]:
    """Roots, as they are noted, of experiments whose folder lies in `folder` and not only where it is noted."""
    found = []
    for number, location in database.execute("select experiment_id, artifact_location from experiments").fetchall():
        noted = get_local_path_or_none(location or "")
        if noted is None or Path(noted) == folder / str(number) or Path(noted).name != str(number):
            continue
        if Path(noted).parent.name == folder.name and (folder / str(number)).is_dir():
            found.append(location.rstrip("/").rpartition("/")[0])
    return list(dict.fromkeys(found))
