"""Known vulnerabilities of the pinned versions: which advisories were checked, from when, and which versions they leave unchecked.

    python -m benchmarks.audit [DIR]

Without DIR, pip-audit asks PyPI over the network. DIR holds advisories in the OSV form as JSON files, at any depth: the unpacked
`all.zip` of OSV's PyPI ecosystem, or what an organisation keeps of it. Exit code 1 where a pinned version is affected, 2 where one
could not be checked.
"""

import argparse
import dataclasses
import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

ROOT = Path(__file__).resolve().parents[1]
PIP_AUDIT = (sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json")


@dataclasses.dataclass(frozen=True)
class Findings:
    """What an audit found.

    Attributes:
        source: what was asked, and from when it is.
        applies: one line for each advisory that a pinned version is affected by.
        unchecked: pinned names that the source says nothing of, so that nothing is known about them.
    """

    source: str
    applies: list[str]
    unchecked: list[str]


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


def in_folder(wanted: dict[str, str], folder: Path) -> Findings:
    """Advisories on this disk, asked for pinned versions by name; where none is about any of them, nothing was checked."""
    applies, n_about, newest = [], 0, ""
    for advisory in advisories(folder):
        ours = [each for each in advisory["affected"] if normal(each.get("package", {}).get("name", "")) in wanted]
        n_about, newest = n_about + bool(ours), max(newest, advisory.get("modified", ""))
        names = {normal(each["package"]["name"]) for each in ours if is_affected(wanted[normal(each["package"]["name"])], each)}
        applies += [f"{name} {wanted[name]}: {advisory['id']} {advisory.get('summary', '')}".rstrip() for name in sorted(names)]
    source = f"{folder}, newest advisory of {newest[:10] or 'an unknown day'}: {n_about} about the pinned versions"
    return Findings(source, applies, [] if n_about else sorted(wanted))


def at_service(wanted: dict[str, str], requirements: Path) -> Findings:
    """What pip-audit learns of PyPI about every pinned version; where it cannot be asked, nothing was checked."""
    asked = subprocess.run([*PIP_AUDIT, "--requirement", str(requirements)], capture_output=True, text=True)
    today = f"PyPI, asked by pip-audit on {datetime.date.today().isoformat()}"
    try:
        answers = json.loads(asked.stdout)["dependencies"]
    except (ValueError, KeyError):
        return Findings(f"{today}: no answer ({last_line(asked.stderr)})", [], sorted(wanted))
    applies = [f"{each['name']} {each['version']}: {found['id']}" for each in answers for found in each.get("vulns", [])]
    known = {normal(each["name"]) for each in answers if "skip_reason" not in each}
    return Findings(f"{today}: {len(known)} of {len(wanted)} pinned versions known there", applies, sorted(wanted.keys() - known))


def last_line(text: str) -> str:
    """The last line that says something."""
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "nothing said")


def main(arguments: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    chosen = parser.parse_args(arguments)
    wanted = pinned(chosen.requirements)
    found = at_service(wanted, chosen.requirements) if chosen.folder is None else in_folder(wanted, chosen.folder)
    print("\n".join([*found.applies, f"{found.source}; {len(found.applies)} apply"]))
    if found.unchecked:
        named = ", ".join(f"{name} {wanted[name]}" for name in found.unchecked)
        print(f"{len(found.unchecked)} of {len(wanted)} pinned versions were not checked: {named}", file=sys.stderr)
    return 1 if found.applies else 2 if found.unchecked else 0


if __name__ == "__main__":
    sys.exit(main())
