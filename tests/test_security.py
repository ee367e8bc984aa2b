"""Reading never executes: no pickle, no evaluated text, no shell, no archive unpacked wholesale, in any Python file of the tree."""

import ast
import re
from pathlib import Path

import pytest

from steps.tracking.store import project_root

FOLDERS = ("steps", "moe", "analysis", "benchmarks", "tests")
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
CALLS = {
    "eval", "exec", "compile", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "torch.save", "yaml.load",
    "yaml.unsafe_load", "yaml.full_load", "joblib.load", "joblib.dump", "torch.hub.load",
}  # fmt: skip
METHODS = (".to_pickle", ".read_pickle", ".extractall", ".extract")
REQUIRED = {"torch.load": ("weights_only", "True")}
FORBIDDEN = {"shell": "True", "allow_pickle": "True", "trust_remote_code": "True", "weights_only": "False"}
SPOILT_ON_PURPOSE = "tests/"  # a test may write what must be refused


def dangers(source: str) -> list[str]:
    """What of a module may execute what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            harmless = isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["UnpicklingError"]
            found += [name for name in names if name.split(".")[0] in MODULES and not harmless]
        if isinstance(node, ast.Call):
            called, given = ast.unparse(node.func), {each.arg: ast.unparse(each.value) for each in node.keywords}
            wanted = REQUIRED.get(called)
            unpacks = called.endswith(METHODS) and ".str." not in called  # pandas has an `extract` too
            bad = called in CALLS or unpacks or any(given.get(name) == value for name, value in FORBIDDEN.items())
            if bad or wanted and given.get(wanted[0]) != wanted[1]:
                found.append(called)
    return found


def test_no_file_executes_what_it_reads() -> None:
    root = project_root()
    sources = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    found = {
        path.relative_to(root).as_posix(): danger for path in sources if (danger := dangers(path.read_text(encoding="utf-8")))
    }
    assert len(sources) > 150
    assert {name: danger for name, danger in found.items() if not name.startswith(SPOILT_ON_PURPOSE)} == {}
    assert {call for danger in found.values() for call in danger} <= {
        "eval", "exec", "pickle", "torch.save", "torch.load",
        "compile", "subprocess.run",  # the documents' own snippets and commands
    }  # fmt: skip


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from cloudpickle import dumps", "eval(x)", "torch.load(p)", "torch.load(p, weights_only=False)",
        "subprocess.run(c, shell=True)", "os.system(c)", "yaml.load(t)", "np.load(p, allow_pickle=True)", "archive.extractall(p)",
        "AutoModel.from_pretrained(n, trust_remote_code=True)", "joblib.load(p)",
    ],
)  # fmt: skip
def test_each_danger_is_found(source: str) -> None:
    assert dangers(source)


def test_ordinary_calls_are_no_danger() -> None:
    calls = "torch.load(p, weights_only=True)\nmodel.eval()\nre.compile(x)\nsubprocess.run([a])\nyaml.safe_load(t)\nnp.load(p)\ncursor.execute(q)"
    assert dangers(calls) == []


def test_every_requirement_is_pinned_to_one_version() -> None:
    lines = (project_root() / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    assert wanted and all(re.fullmatch(r"[A-Za-z0-9_.\-\[\]]+==[0-9][\w.]*", line) for line in wanted)


def test_no_test_or_benchmark_holds_a_real_token() -> None:
    pattern = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|sk-[A-Za-z0-9]{32,})\b")
    paths: list[Path] = [
        path for path in project_root().glob("*") if path.is_file() and path.suffix in ("", ".md", ".toml", ".yaml", ".txt")
    ]
    assert [
        path.name for path in paths if path.suffix and pattern.search(path.read_text(encoding="utf-8", errors="replace"))
    ] == []
