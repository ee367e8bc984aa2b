"""The rules of the layout, read off the source: who imports whom, what no file may hold, what every public function says."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steps.options.project_files import ENTRY_POINTS

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {
    "moe": {"mlflow", "steps", "analysis", "tests", "whisper_moe"},
    "analysis": {"mlflow", "steps", "moe", "torch", "transformers", "peft", "tests"},
    "steps": {"tests", "benchmarks", "whisper_moe"},
}
FRONT = ROOT / "whisper_moe.py"  # the Python package's own module, above all of these
ABOVE = ("training", "recognition", "routing", "experts", "serving", "systems")
WALLS = {  # package → packages that it must not import
    **{f"moe/{name}/": ("moe.systems",) for name in ("training", "recognition", "routing", "experts", "serving")},
    **{
        f"moe/{name}/": tuple(f"moe.{above}" for above in ABOVE)
        for name in ("corpora", "audio", "text", "synthesis", "clustering")
    },
    "moe/systems/whisper/": ("moe.systems.whisper_moe", "moe.systems.table"),
    "steps/tracking/": ("steps.inputs", "steps.reports", "steps.registry", "steps.chain"),
}
SHARED_SYSTEM = "moe.systems.whisper"  # parts of a Whisper, which several systems are made of
MOST_NAMES = 15  # at the top of moe, beside its empty __init__.py
UNPICKLING_ERROR = {"pickle", "pickle.UnpicklingError"}  # what a safe read of torch's own file may raise
PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
PICKLING_CALLS = ("torch.save", "joblib.load", "joblib.dump", ".to_pickle", ".read_pickle")
ALLOWED_AT_IMPORT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
SOURCES = sorted(path for folder in FORBIDDEN for path in (ROOT / folder).rglob("*.py"))
MAX_LINES, MAX_FUNCTION = 320, 60  # aims are 250 and 40; beyond these there is no explaining


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module, path: Path = ROOT / "moe" / "x.py") -> set[str]:
    """Full dotted names that a module imports, relative ones resolved."""
    package = path.relative_to(ROOT).parent.parts
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = list(package[: len(package) - node.level + 1]) if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def _is_of(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def later_steps(name: str, names: set[str]) -> list[str]:
    """Entry points among imported names that come after `name` in the chain; `main`, which calls them all, `estimate` and `sweep` come last."""
    last = ENTRY_POINTS.index("sweep") + 1
    chain = [f"steps.{step}" for step in (*ENTRY_POINTS[last:], *ENTRY_POINTS[:last])]
    module = name.removesuffix(".py").replace("/", ".")
    allowed = chain.index(module) if module in chain else len(chain) - last
    return [step for step in chain[allowed:] if step in names and step != module]


def work_at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements of a module that do something when it is imported, beyond defining."""
    for node in tree.body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        main_guard = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        type_checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        served_model = ast.unparse(node).startswith("mlflow.models.set_model(")  # how MLflow finds a model that is code
        if not (isinstance(node, ALLOWED_AT_IMPORT) or docstring or main_guard or type_checking or served_model):
            yield node


def unsafe_reads(tree: ast.Module) -> list[str]:
    """Calls that may execute what they read: torch.load or np.load without the safe keyword, and picklers."""
    picklers = {name for name in imported(tree) if roots({name}) & PICKLERS}
    found = [] if picklers == UNPICKLING_ERROR else sorted(picklers)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if called == "torch.load" and keywords.get("weights_only") != "True" or keywords.get("allow_pickle") == "True":
            found.append(called)
        if called.endswith(PICKLING_CALLS):
            found.append(called)
    return found


def public_functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Functions and methods without a leading underscore, not those inside functions."""
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_") else [node]
        yield from (member for member in members if isinstance(member, ast.FunctionDef) and not member.name.startswith("_"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def length(function: ast.FunctionDef) -> int:
    return function.end_lineno - function.lineno + 1


def unannotated(function: ast.FunctionDef) -> list[str]:
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    arguments += [each for each in (function.args.vararg, function.args.kwarg) if each is not None]
    bare = [argument.arg for argument in arguments if argument.annotation is None and argument.arg not in ("self", "cls")]
    return bare + ([] if function.returns is not None else ["return"])


def offenders(fault: Callable[[Path, ast.Module], object]) -> dict[str, object]:
    """File → what is wrong with it, for every file where something is."""
    return {name_of(path): found for path in SOURCES if (found := fault(path, tree_of(path)))}


def test_imports_go_one_way() -> None:
    assert offenders(lambda path, tree: roots(imported(tree, path)) & FORBIDDEN[name_of(path).split("/")[0]]) == {}


def test_a_step_imports_only_steps_before_it_and_none_imports_main() -> None:
    assert offenders(lambda path, tree: later_steps(name_of(path), imported(tree, path))) == {}


def test_the_front_imports_no_mlflow_before_it_is_asked_for_the_registry() -> None:
    tree = tree_of(FRONT)
    at_top = ast.Module([node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))], [])
    assert roots(imported(at_top, FRONT)) <= {"moe", "dataclasses", "os", "collections", "pathlib", "typing"}
    assert roots(imported(tree, FRONT)) & {"tests", "benchmarks", "mlflow", "analysis"} == set()
    assert not list(work_at_import(tree)) and all(not unannotated(each) for each in public_functions(tree))


def test_packages_keep_their_walls() -> None:
    def broken(path: Path, tree: ast.Module) -> list[str]:
        walls = [wall for package, names in WALLS.items() if name_of(path).startswith(package) for wall in names]
        return sorted(name for name in imported(tree, path) if any(_is_of(name, wall) for wall in walls))

    assert offenders(broken) == {}


def test_a_system_knows_no_other_system() -> None:
    def others(path: Path, tree: ast.Module) -> list[str]:
        parts = name_of(path).split("/")
        if parts[:2] != ["moe", "systems"] or len(parts) < 4:
            return []
        allowed = (".".join(parts[:3]), SHARED_SYSTEM)
        return sorted(
            name
            for name in imported(tree, path)
            if _is_of(name, "moe.systems") and not any(_is_of(name, each) for each in allowed) and name != "moe.systems"
        )

    assert offenders(others) == {}


def test_packages_hand_nothing_on() -> None:
    """A step's fingerprint counts every file on the way to a module, so a package that re-exports would re-run every step."""
    assert [name_of(path) for path in SOURCES if path.name == "__init__.py" and path.read_text(encoding="utf-8")] == []


def test_the_top_of_moe_is_small() -> None:
    assert len([path for path in (ROOT / "moe").iterdir() if path.name not in ("__pycache__", "__init__.py")]) <= MOST_NAMES


def test_nothing_runs_at_import() -> None:
    assert offenders(lambda path, tree: [ast.unparse(node)[:80] for node in work_at_import(tree)]) == {}


def test_reading_never_executes_code() -> None:
    assert offenders(lambda path, tree: unsafe_reads(tree)) == {}


def test_a_docstring_says_each_modules_place() -> None:
    assert offenders(lambda path, tree: bool(tree.body) and not ast.get_docstring(tree)) == {}


def test_public_functions_are_annotated() -> None:
    assert offenders(lambda path, tree: {each.name: bare for each in public_functions(tree) if (bare := unannotated(each))}) == {}


def test_files_and_functions_are_short() -> None:
    assert offenders(lambda path, tree: len(path.read_text(encoding="utf-8").splitlines()) > MAX_LINES) == {}
    assert offenders(lambda path, tree: [each.name for each in functions(tree) if length(each) > MAX_FUNCTION]) == {}


def test_what_two_tests_share_is_a_toy() -> None:
    paths = [path for folder in ("tests", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    taken = {name_of(path): {name for name in imported(tree_of(path), path) if name.startswith("tests.")} for path in paths}
    assert any(taken.values())
    assert {path: wrong for path, names in taken.items() if (wrong := {n for n in names if not n.startswith("tests.toys")})} == {}


def test_every_layer_was_read() -> None:
    assert {name_of(path).split("/")[0] for path in SOURCES} == set(FORBIDDEN)


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    assert [name_of(path) for path in SOURCES if path.stem in ("utils", "util", "helpers", "misc", "common")] == []


class TestTheseChecks:
    """Each rule finds what it is there to find."""

    def test_imports(self) -> None:
        source = "import a.b\nfrom c import d\ndef f():\n    from .gate import G\n    from .. import e\n"
        assert imported(ast.parse(source), ROOT / "moe/text/x.py") == {
            "a.b", "c", "c.d", "moe.text.gate", "moe.text.gate.G", "moe", "moe.e",
        }  # fmt: skip

    def test_order_of_steps(self) -> None:
        assert later_steps("steps/gate.py", {"steps.cluster", "steps.tracking.runs"}) == []
        assert later_steps("steps/gate.py", {"steps.asr"}) == ["steps.asr"]
        assert later_steps("steps/main.py", {"steps.gate", "steps.register"}) == []
        assert later_steps("steps/tracking/runs.py", {"steps.main"}) == ["steps.main"]

    def test_work_at_import(self) -> None:
        source = '"""doc"""\nimport a\nX = 1\nprint(X)\nfor i in X: pass\nif __name__ == "__main__":\n    f()\n'
        assert [ast.unparse(node)[:8] for node in work_at_import(ast.parse(source))] == ["print(X)", "for i in"]

    @pytest.mark.parametrize(
        "source",
        [
            "import pickle",
            "from pickle import UnpicklingError, loads",
            "torch.load(p)",
            "torch.load(p, weights_only=False)",
            "np.load(p, allow_pickle=True)",
            "joblib.load(p)",
        ],
    )
    def test_unsafe_reads(self, source: str) -> None:
        assert unsafe_reads(ast.parse(source))
        assert not unsafe_reads(
            ast.parse("torch.load(p, weights_only=True)\nnp.load(p)\nimport joblib\nfrom pickle import UnpicklingError")
        )

    def test_annotations(self) -> None:
        functions = list(
            public_functions(ast.parse("def f(a, *b: int): ...\nclass C:\n    def g(self) -> int: ...\ndef _h(x): ...\n"))
        )
        assert [unannotated(function) for function in functions] == [["a", "return"], []]
