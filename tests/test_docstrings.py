"""What docstrings must say and ruff cannot ask for: the errors that a public function raises, and the shapes of its arrays.

ruff's own rule for `Raises:` (DOC501) takes an error for raised that the function itself catches, and asks for it of private ones too.
"""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("moe", "steps", "analysis") for path in (ROOT / folder).rglob("*.py"))
ARRAYS = {"Tensor", "np.ndarray"}
SIZE = r"(?:…|[\w·]+'?(?: [+−/·] [\w·]+)*)"
SHAPE = re.compile(rf"\((?:{SIZE},(?: {SIZE}(?:, {SIZE})*)?)?\)")  # (B, T, D), (n_samples,), ()
NOT_CAUGHT = {"AssertionError"}  # it says that the code is wrong: nobody handles it


def public(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef, str]]:
    """Public functions and methods, each with what its docstring says; `__init__` with its class's."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node, ast.get_docstring(node) or ""
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            for method in (each for each in node.body if isinstance(each, ast.FunctionDef)):
                if method.name == "__init__" or not method.name.startswith("_"):
                    yield method, ast.get_docstring(node if method.name == "__init__" else method) or ""


def raised(body: list[ast.stmt]) -> set[str]:
    """Names of the errors that leave these statements by a `raise` of their own; what a `try` may catch does not."""
    found: set[str] = set()
    for node in body:
        if isinstance(node, ast.Raise) and node.exc is not None:
            error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            found.add(ast.unparse(error).rpartition(".")[2])
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        for part in ("body", "orelse", "finalbody", "handlers", "cases"):
            if part != "body" or not getattr(node, "handlers", []):
                inner = getattr(node, part, [])
                found |= raised([each for one in inner for each in (one.body if not isinstance(one, ast.stmt) else [one])])
    return found - NOT_CAUGHT


def has_arrays(function: ast.FunctionDef) -> bool:
    """Whether an argument or the result is annotated as an array, or as one or something else."""
    annotations = [each.annotation for each in [*function.args.args, *function.args.kwonlyargs]] + [function.returns]
    return any(part in ARRAYS for each in annotations if each for part in ast.unparse(each).split(" | "))


def without_raises(source: str) -> dict[str, set[str]]:
    """Function → errors that it raises and its docstring does not name."""
    missing = {
        function.name: {name for name in raised(function.body) if name not in said.partition("Raises:")[2]}
        for function, said in public(ast.parse(source))
    }
    return {name: errors for name, errors in missing.items() if errors}


def without_shapes(source: str) -> list[str]:
    """Functions with arrays whose docstring gives no shape; a method without a docstring says what its base says."""
    return [each.name for each, said in public(ast.parse(source)) if said and has_arrays(each) and not SHAPE.search(said)]


def undocumented(sources: list[str]) -> set[str]:
    """Public methods without a docstring that no class gives one: an override says what its base says."""
    methods = [(each.name, said) for source in sources for each, said in public(ast.parse(source)) if each.name != "__init__"]
    return {name for name, said in methods if not said} - {name for name, said in methods if said}


def offenders(fault: Callable[[str], object]) -> dict[str, object]:
    """File → what is wrong with it, for every file where something is."""
    found = {path.relative_to(ROOT).as_posix(): fault(path.read_text(encoding="utf-8")) for path in SOURCES}
    return {path: wrong for path, wrong in found.items() if wrong}


def test_what_is_raised_is_said() -> None:
    assert offenders(without_raises) == {}


def test_arrays_have_shapes() -> None:
    assert offenders(without_shapes) == {}


def test_every_public_method_says_what_it_does() -> None:
    assert undocumented([path.read_text(encoding="utf-8") for path in SOURCES]) == set()


class TestTheseChecks:
    """Each rule finds what it is there to find, and nothing else."""

    def test_errors(self) -> None:
        source = """
def bare(x):
    '''One.'''
    if x:
        raise ValueError("x")
def said(x):
    '''Two.

    Raises:
        ValueError: x.
    '''
    raise ValueError("x")
def caught(x):
    '''Three.'''
    try:
        raise ValueError("x")
    except ValueError as error:
        raise errors.Other("y") from error
def passed_on(x):
    '''Four.'''
    try:
        x()
    except OSError:
        raise
def _private(x):
    raise ValueError("x")
class C:
    '''C.'''
    def __init__(self):
        raise TypeError
"""
        assert without_raises(source) == {"bare": {"ValueError"}, "caught": {"Other"}, "__init__": {"TypeError"}}

    @pytest.mark.parametrize("said", ["(B, T, D)", "(n_samples,)", "a scalar, ()", "(B·k, N − 1)", "(…, E)", "(B, T')"])
    def test_a_shape_is_known(self, said: str) -> None:
        assert without_shapes(f'def f(x: Tensor) -> int:\n    """Of x {said}."""\n') == []

    @pytest.mark.parametrize("said", ["", "(mean)", "(of the mean, or the median)", "f(x)", "(B T)"])
    def test_an_array_without_shape_is_named(self, said: str) -> None:
        assert without_shapes(f'def f(x: Tensor | None) -> int:\n    """Of x {said}."""\n') == ["f"]
        assert without_shapes(f'def f(x: int) -> int:\n    """Of x {said}."""\n') == []

    def test_an_override_is_documented_by_its_base(self) -> None:
        base, heir = (
            'class A:\n    def f(self):\n        """Do."""\n',
            "class B(A):\n    def f(self): ...\n    def g(self): ...\n",
        )
        assert undocumented([base, heir]) == {"g"}
