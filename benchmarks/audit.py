"""Known weaknesses of the pinned versions, from advisories on this disk: what `make audit` reads where no service can be asked.

    python -m benchmarks.audit DIR

DIR holds advisories in the OSV form as JSON files, at any depth: the unpacked `all.zip` of OSV's PyPI ecosystem, or what an organisation
keeps of it. Exit code 1 where a pinned version is affected, 2 where there was nothing to read.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]


def pinned(requirements: Path) -> dict[str, str]:
    """Version of each requirement, by normalised name."""
    lines = [line.split("#")[0].strip() for line in requirements.read_text(encoding="utf-8").splitlines()]
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def normal(name: str) -> str:
    """A project's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name.split("[")[0]).lower()


def advisories(folder: Path) -> Iterator[dict[str, Any]]:
    """Every advisory below a folder that has not been withdrawn."""
    for path in sorted(folder.rglob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        if "affected" in found and not found.get("withdrawn"):
            yield found


def is_affected(version: str, affected: dict[str, Any]) -> bool:
    """Whether a version is listed, or lies in a range of an advisory."""
    ranges = [each for each in affected.get("ranges", []) if each.get("type") == "ECOSYSTEM"]
    return version in affected.get("versions", []) or any(_in_range(Version(version), each["events"]) for each in ranges)


def _in_range(version: Version, events: list[dict[str, str]]) -> bool:
    inside = False
    for event in events:
        kind, at = next(iter(event.items()))
        try:
            bound = Version("0" if at == "0" else at)
        except InvalidVersion:
            continue
        if kind == "introduced" and version >= bound:
            inside = True
        if (kind == "fixed" and version >= bound) or (kind == "last_affected" and version > bound):
            inside = False
    return inside


def weaknesses(wanted: dict[str, str], folder: Path) -> tuple[list[str], int]:
    """One line for each advisory that a pinned version is affected by, and how many advisories name a requirement at all."""
    lines, n_read = [], 0
    for advisory in advisories(folder):
        ours = [each for each in advisory["affected"] if normal(each.get("package", {}).get("name", "")) in wanted]
        n_read += bool(ours)
        for name in {
            normal(each["package"]["name"]) for each in ours if is_affected(wanted[normal(each["package"]["name"])], each)
        }:
            lines.append(f"{name} {wanted[name]}: {advisory['id']} {advisory.get('summary', '')}".rstrip())
    return lines, n_read


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    chosen = parser.parse_args(arguments)
    wanted = pinned(chosen.requirements)
    lines, n_read = weaknesses(wanted, chosen.folder)
    print("\n".join(lines + [f"{len(wanted)} pinned versions, {n_read} advisories about them, {len(lines)} apply"]))
    if not n_read:
        print(f"{chosen.folder} holds no advisory about any of them: nothing was audited", file=sys.stderr)
        return 2
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
