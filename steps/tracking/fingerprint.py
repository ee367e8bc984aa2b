"""What a step's result depends on: parameters, code, libraries, data. Equal fingerprints, equal results.

The code is every module of this repository that the step's module can import, found by walking imports, and counted by what its file
says, so that uncommitted edits count too, and comments, docstrings and layout do not. The libraries are those that this code imports
and what these require, as far as they are pinned. Upstream runs are parameters (`…_run_id`), so they need no place of their own.
"""

import ast
import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import inspect
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moe.options import Options
from steps.tracking.secrets import public

PARTS = ("parameters", "code", "libraries", "data")
CHANGE_NO_RESULT = frozenset({"matplotlib", "mlflow", "tqdm"})  # they draw, record and show


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """The parts, each a table name → value, and the digest over all of them."""

    step: str
    parameters: dict[str, str]
    code: dict[str, str]
    libraries: dict[str, str]
    data: dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over all parts, in hex."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The parts as plain values, for JSON."""
        return dataclasses.asdict(self)

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """What changed since an earlier fingerprint (its `as_dict`), one phrase each, most telling first."""
        now = self.as_dict()
        return [phrase for part in PARTS for phrase in _changes(part, earlier.get(part, {}), now[part])]


def fingerprint(step: str, options: Options) -> Fingerprint:
    """The fingerprint of `step` started with `options`, whose class lives in the step's own module.

    The class and those above it may say `not_in_fingerprint = frozenset({...})`, fields that change no result (a number of workers), and may define
    `data_digests() -> dict[str, str]`, digests of the content it reads from outside the store (a corpus).

    Raises:
        ValueError: `not_in_fingerprint` names no field.
    """
    parameters = options.as_parameters()
    left_out = frozenset().union(*(vars(kind).get("not_in_fingerprint", ()) for kind in type(options).__mro__))
    if unknown := sorted(set(left_out) - set(parameters)):
        raise ValueError(f"{step}: not_in_fingerprint names {', '.join(unknown)}: no such option")
    module_path = Path(inspect.getfile(type(options))).resolve()
    root = module_path.parents[1]
    data_digests = getattr(options, "data_digests", dict)
    return Fingerprint(
        step=step,
        parameters=public({name: value for name, value in parameters.items() if name not in left_out}),
        code=code_digests(module_path, root),
        libraries=library_versions(imported_libraries(module_path, root), root / "requirements.txt"),
        data=dict(sorted(data_digests().items())),
    )


def code_digests(module_path: Path, root: Path) -> dict[str, str]:
    """Digests of the files below `root` that `module_path` depends on, by relative path.

    These are its own file, every module it can import, directly or through others, and files that are no Python code but lie in
    the folder of such a module (word lists, grammars).
    """
    held, found = _snapshot(root), _reachable(module_path, root)
    folders = {path.rpartition("/")[0] for path in found} - {""}
    beside = {path for path in held if not path.endswith(".py") and path.rpartition("/")[0] in folders}
    digests = {path: _read(held[path]).digest for path in found} | {path: _sha256(held[path]) for path in beside}
    return dict(sorted(digests.items()))


def imported_libraries(module_path: Path, root: Path) -> frozenset[str]:
    """Distributions that the code of a step imports, wherever it does, but for those that change no result."""
    held = _snapshot(root)
    found = [name for path in _reachable(module_path, root) for name in _imported_names(path, held)]
    names = {name.partition(".")[0] for name in found}
    owners = _distributions()
    return frozenset(owner for name in names for owner in owners.get(name, ())) - CHANGE_NO_RESULT


def library_versions(imported: frozenset[str], requirements_path: Path) -> dict[str, str]:
    """Installed versions of Python and of those pinned in a requirements file that are imported, or required by what is."""
    lines = requirements_path.read_text().splitlines() if requirements_path.exists() else []
    pinned = {canonicalize_name(line.split("==")[0].strip()) for line in lines if line.strip() and not line.startswith("#")}
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python} | {name: _version(name) for name in sorted((pinned & _required(imported)) - CHANGE_NO_RESULT)}


def forget_code() -> None:
    """Read the code again at the next fingerprint; for a process that has loaded changed modules itself."""
    _snapshot.cache_clear()
    _reachable.cache_clear()


@functools.cache
def _snapshot(root: Path) -> dict[str, bytes]:
    """Every module of the packages below root and every file beside one, read once: what the process runs is what it found when it started."""
    files = [file for folder in _packages(root) for file in _beside_modules(folder)]
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in [*files, *sorted(root.glob("*.py"))]}


def _beside_modules(folder: Path) -> list[Path]:
    """Files of all folders below one that hold a module; what others write into the rest meanwhile does not matter."""
    found = []
    for path, _, names in os.walk(folder):
        if any(name.endswith(".py") for name in names):
            found += [Path(path, name) for name in names if not name.endswith(".pyc")]
    return sorted(file for file in found if file.is_file())


@functools.cache
def _reachable(module_path: Path, root: Path) -> frozenset[str]:
    """Files of the modules that a module can import, directly or through others, and its own."""
    held, found, waiting = _snapshot(root), set[str](), [module_path.relative_to(root).as_posix()]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imported_files(path, held)
    return frozenset(found)


@dataclasses.dataclass(frozen=True)
class _Source:
    """What a module's source says: the digest of its code without comments, docstrings and layout, and what it imports, wherever it does."""

    digest: str
    imports: tuple[ast.Import | ast.ImportFrom, ...]


@functools.cache
def _read(source: bytes) -> _Source:
    """Parsed once for each source: parsing the code of one step takes a second."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    for node in nodes:
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and ast.get_docstring(node, False) is not None
        ):
            node.body = node.body[1:]
    imports = tuple(node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom)))
    return _Source(_sha256(ast.dump(tree).encode()), imports)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@functools.cache
def _distributions() -> dict[str, list[str]]:
    """Top-level module → distributions that it comes from, by canonical name."""
    found = importlib.metadata.packages_distributions()
    return {name: [str(canonicalize_name(owner)) for owner in owners] for name, owners in found.items()}


@functools.cache
def _required(names: frozenset[str]) -> frozenset[str]:
    """Distributions and all that they require on this machine, without extras."""
    waiting, found = list(names), set[str]()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in found:
            continue
        found.add(name)
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            needs = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return frozenset(found)


def _packages(root: Path) -> list[Path]:
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and folder.name.isidentifier())
    return [folder for folder in folders if any(folder.glob("*.py")) or any(folder.glob("*/*.py"))]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _imported_files(path: str, held: Mapping[str, bytes]) -> list[str]:
    names = [*_imported_names(path, held), ".".join(path.split("/")[:-1])]  # a module's own package is imported before it
    return sorted({file for name in names for file in _module_files(name, held)})


def _imported_names(path: str, held: Mapping[str, bytes]) -> list[str]:
    package = tuple(path.split("/")[:-1])
    return [name for node in _read(held[path]).imports for name in _names_in(node, package)]


def _names_in(node: ast.Import | ast.ImportFrom, package: tuple[str, ...]) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    start = package[: len(package) - node.level + 1] if node.level else ()
    base = ".".join([*start, *([node.module] if node.module else [])])
    return [base, *(f"{base}.{alias.name}" for alias in node.names)]  # the name may be a module or a thing in one


def _module_files(name: str, held: Mapping[str, bytes]) -> list[str]:
    """Files that importing `name` reads: each package on the way, and the module."""
    parts = [part for part in name.split(".") if part]
    stems = ["/".join(parts[:n_parts]) for n_parts in range(1, len(parts) + 1)]
    return [file for stem in stems for file in (f"{stem}/__init__.py", f"{stem}.py") if file in held]


def _changes(part: str, before: dict[str, str], now: dict[str, str]) -> list[str]:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if part in ("code", "data"):
        return [f"{part} {_kind_of_change(name, before, now)}: {name}" for name in names]
    return [f"{name} {before.get(name, 'absent')} → {now.get(name, 'absent')}" for name in names]


def _kind_of_change(name: str, before: dict[str, str], now: dict[str, str]) -> str:
    return "changed" if name in before and name in now else "added" if name in now else "removed"
