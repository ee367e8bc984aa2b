"""A step is taken over exactly where parameters, code, libraries and data are the same, and the reason is told."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import mlflow
import numpy
import pandas as pd
import pytest

from moe.options import Options, option
from steps import asr
from steps.chain.reuse import SAME, find_reusable, launch
from steps.tracking import artifacts, runs
from steps.tracking import fingerprint as fingerprint_module
from steps.tracking.fingerprint import code_digests, fingerprint, forget_code, imported_libraries, library_versions
from steps.tracking.pruning import PRUNED_TAG
from steps.tracking.store import connect

Toy = Callable[[str, str], ModuleType]

GATE = """
import dataclasses
from pathlib import Path
from moe.files import folder_digest
from moe.options import Options, option
from steps.tracking import runs
import parts

@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    seed: int = option(0, "seed")
    workers: int = option(1, "processes")
    dataset_root: str = option("none", "folder")
    fail: bool = option(False, "fail")
    not_in_fingerprint = frozenset({"workers"})

    def data_digests(self) -> dict[str, str]:
        return {"corpus": folder_digest(Path(self.dataset_root))} if self.dataset_root != "none" else {}

def run(options: StepOptions) -> str:
    with runs.step_run("gate", options) as run:
        run.log_text("weights", "gate/gate.txt")
        if options.fail:
            raise ValueError("no")
    return run.run_id
"""


@pytest.fixture
def gate(store: Path, toy_step: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A toy step that imports `parts.network` from the project it lies in."""
    parts = tmp_path / "project" / "parts"
    parts.mkdir()
    (parts / "__init__.py").write_text("from . import network\n")
    (parts / "network.py").write_text("import numpy\nLAYERS = 2\n")
    (parts / "unused.py").write_text("\n")
    (tmp_path / "project" / "requirements.txt").write_text("numpy==1\npytest==1\nmatplotlib==1\ntorch==1\nno-such-library==2\n")
    monkeypatch.syspath_prepend(str(tmp_path / "project"))
    yield toy_step("gate", GATE)
    for name in ("parts", "parts.network"):
        sys.modules.pop(name, None)


def change(module: ModuleType, file: str, text: str) -> None:
    path = Path(module.__file__).parents[1] / file
    path.write_text(path.read_text() + text)
    forget_code()


def found(module: ModuleType, **options: object) -> tuple[str | None, str]:
    result = find_reusable("gate", module.StepOptions(**options))
    return result.run_id, result.reason


def test_the_same_again_is_taken_over(gate: ModuleType, capsys: pytest.CaptureFixture) -> None:
    first, second = launch(gate, gate.StepOptions(seed=1)), launch(gate, gate.StepOptions(seed=1))
    ran, reused = capsys.readouterr().out.splitlines()[-2:]
    assert first == second
    assert ran.split()[:3] == ["gate", "ran", first[:8]] and ran.endswith("(no finished run)")
    assert reused.split()[:3] == ["gate", "reused", first[:8]] and reused.endswith("(same parameters, code and inputs)")


def test_force_runs_again(gate: ModuleType) -> None:
    assert launch(gate, gate.StepOptions()) != launch(gate, gate.StepOptions(), force=True)


def test_one_parameter_is_named_with_both_values(gate: ModuleType) -> None:
    """Pitfall (stack): the store keeps text; a cache that compares it with numbers never hits, here 1 equals "1"."""
    run_id = launch(gate, gate.StepOptions(seed=1))
    assert found(gate, seed=1)[0] == run_id
    assert found(gate, seed=2) == (None, "seed 1 → 2")


def test_a_parameter_that_changes_no_result_is_left_out(gate: ModuleType) -> None:
    run_id = launch(gate, gate.StepOptions(workers=1))
    assert found(gate, workers=8)[0] == run_id


def test_a_line_of_an_imported_module_counts_and_is_named(gate: ModuleType) -> None:
    launch(gate, gate.StepOptions())
    change(gate, "parts/network.py", "HEADS = 1\n")
    assert found(gate) == (None, "code changed: parts/network.py")


def test_the_steps_own_code_counts(gate: ModuleType) -> None:
    launch(gate, gate.StepOptions())
    change(gate, "steps/gate.py", "HEADS = 1\n")
    assert found(gate) == (None, "code changed: steps/gate.py")


def test_a_comment_a_docstring_and_layout_do_not_count(gate: ModuleType) -> None:
    run_id = launch(gate, gate.StepOptions())
    (Path(gate.__file__).parents[1] / "parts/network.py").write_text(
        '"""Layers."""\n\n# two\nimport numpy\nLAYERS = (\n    2\n)\n'
    )
    change(gate, "steps/gate.py", "# why\n")
    assert found(gate) == (run_id, SAME)


class TestAcceptedChanges:
    def test_the_run_is_tagged_with_what_changed_and_counts_from_then_on(self, gate: ModuleType) -> None:
        run_id = launch(gate, gate.StepOptions())
        change(gate, "parts/network.py", "HEADS = 1\n")
        assert found(gate)[0] is None
        accepted = find_reusable("gate", gate.StepOptions(), accept_changes=True)
        assert accepted.run_id == run_id and accepted.reason == "accepted: code changed: parts/network.py"
        assert found(gate) == (run_id, "accepted before: code changed: parts/network.py")
        tags = connect().client.get_run(run_id).data.tags
        assert [value for name, value in tags.items() if name.startswith("moe.accepted.")] == ["code changed: parts/network.py"]
        change(gate, "parts/network.py", "TAILS = 1\n")  # a further change is another one
        assert found(gate)[0] is None

    def test_parameters_and_data_are_not_accepted(self, gate: ModuleType) -> None:
        launch(gate, gate.StepOptions())
        change(gate, "parts/network.py", "HEADS = 1\n")
        assert find_reusable("gate", gate.StepOptions(seed=9), accept_changes=True).run_id is None


def test_code_the_step_cannot_import_does_not_count(gate: ModuleType) -> None:
    run_id = launch(gate, gate.StepOptions())
    change(gate, "parts/unused.py", "HEADS = 1\n")
    assert found(gate)[0] == run_id


def test_what_others_write_into_folders_without_modules_is_never_read(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Results of a benchmark, with checkpoints that another process removes meanwhile; a word list beside a module is read."""
    parts = Path(gate.__file__).parents[1] / "parts"
    (parts / "results" / "checkpoints").mkdir(parents=True)
    for file in ("results/checkpoints/weights.bin", "words.txt"):
        (parts / file).write_text("words")
    read, asked = Path.read_bytes, list[str]()
    monkeypatch.setattr(Path, "read_bytes", lambda path: asked.append(path.name) or read(path))
    forget_code()
    digests = code_digests(Path(gate.__file__), parts.parent)
    assert "parts/words.txt" in digests and "words.txt" in asked and "weights.bin" not in asked


def test_code_is_what_the_process_started_with(gate: ModuleType) -> None:
    """An edit during a long run must not pass for the code that ran."""
    launch(gate, gate.StepOptions())
    path = Path(gate.__file__).parents[1] / "parts/network.py"
    path.write_text("import numpy\nLAYERS = 3\n")
    launch(gate, gate.StepOptions(seed=5))
    forget_code()
    assert found(gate, seed=5) == (None, "code changed: parts/network.py")


def test_one_byte_of_data_counts_and_is_named(gate: ModuleType, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "manifest.csv").write_text("a,b\n")
    run_id = launch(gate, gate.StepOptions(dataset_root=str(corpus)))
    assert found(gate, dataset_root=str(corpus))[0] == run_id
    (corpus / "manifest.csv").write_text("a,c\n")
    assert found(gate, dataset_root=str(corpus)) == (None, "data changed: corpus")


def test_a_library_version_counts(gate: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(gate, gate.StepOptions())
    real = fingerprint_module._version
    monkeypatch.setattr(fingerprint_module, "_version", lambda name: "0.1" if name == "numpy" else real(name))
    run_id, reason = found(gate)
    assert run_id is None and reason == f"numpy {real('numpy')} → 0.1"


@pytest.mark.parametrize("name", ["pytest", "matplotlib", "torch"])
def test_the_version_of_a_library_that_the_step_does_not_import_does_not_count(
    name: str, gate: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = launch(gate, gate.StepOptions())
    real = fingerprint_module._version
    monkeypatch.setattr(fingerprint_module, "_version", lambda each: "0.1" if each == name else real(each))
    assert found(gate)[0] == run_id


def test_the_nearest_earlier_run_is_compared(gate: ModuleType) -> None:
    for seed in (1, 2):
        launch(gate, gate.StepOptions(seed=seed))
    change(gate, "parts/network.py", "HEADS = 1\n")
    launch(gate, gate.StepOptions(seed=3))
    change(gate, "parts/network.py", "HEADS = 1\n")
    assert found(gate, seed=1) == (None, "code changed: parts/network.py")


def test_many_differences_are_counted(gate: ModuleType, tmp_path: Path) -> None:
    launch(gate, gate.StepOptions())
    change(gate, "parts/network.py", "HEADS = 1\n")
    change(gate, "parts/__init__.py", "HEADS = 1\n")
    assert found(gate, seed=9, dataset_root=str(tmp_path))[1] == (
        f"dataset_root none → {tmp_path}, seed 0 → 9, code changed: parts/__init__.py and 2 more"
    )


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_did_not_finish_is_not_taken_over(gate: ModuleType, status: str) -> None:
    run_id = launch(gate, gate.StepOptions())
    connect().client.set_terminated(run_id, status)
    assert found(gate) == (None, f"the same run {run_id[:8]} is {status}")


def test_a_failed_step_is_no_hit_and_the_failure_passes_through(gate: ModuleType) -> None:
    with pytest.raises(ValueError):
        launch(gate, gate.StepOptions(fail=True))
    assert found(gate, fail=True)[0] is None


def test_a_run_that_lost_its_artifact_is_not_taken_over(gate: ModuleType) -> None:
    run_id = launch(gate, gate.StepOptions())
    artifacts.upstream(run_id, "gate/gate.txt").unlink()
    artifacts.upstream(run_id, "gate").rmdir()
    assert found(gate) == (None, f"the same run {run_id[:8]} lost gate")


def test_the_parent_keeps_the_ids_of_what_it_ran_and_reused(gate: ModuleType) -> None:
    @dataclasses.dataclass(frozen=True)
    class MainOptions(Options):
        pass

    tags = []
    for _ in range(2):
        with runs.step_run("main", MainOptions()) as parent:
            run_id = launch(gate, gate.StepOptions())
        tags.append(connect().client.get_run(parent.run_id).data.tags)
    assert tags[0]["moe.ran.gate"] == tags[1]["moe.reused.gate"] == run_id
    assert mlflow.active_run() is None


@pytest.mark.parametrize(
    ("status", "tags", "moves"),
    [("KILLED", {}, True), ("FAILED", {}, True), ("FINISHED", {}, False), ("RUNNING", {}, False), ("KILLED", {PRUNED_TAG: "x"}, False)],
)  # fmt: skip
def test_a_stage_moves_to_the_chain_that_goes_on_where_its_own_was_stopped(
    gate: ModuleType, status: str, tags: dict[str, str], moves: bool
) -> None:
    @dataclasses.dataclass(frozen=True)
    class MainOptions(Options):
        seed: int = option(0, "seed")

    with runs.step_run("main", MainOptions()) as first:
        run_id = launch(gate, gate.StepOptions())
    client = connect().client
    client.update_run(first.run_id, status=status)
    for name, value in tags.items():
        client.set_tag(first.run_id, name, value)
    with runs.step_run("main", MainOptions(seed=1)) as second:
        assert launch(gate, gate.StepOptions()) == run_id
    parent = client.get_run(run_id).data.tags["mlflow.parentRunId"]
    assert parent == (second.run_id if moves else first.run_id)


def test_not_in_fingerprint_must_name_options() -> None:
    class Wrong(Options):
        not_in_fingerprint = frozenset({"num_workers"})

    with pytest.raises(ValueError, match="num_workers: no such option"):
        fingerprint("gate", Wrong())


def test_imports_are_followed_as_python_follows_them(tmp_path: Path) -> None:
    """Every form of import, by hand: packages on the way, relative ones, inside functions, modules named in `from`, in a circle."""
    files = {
        "steps/__init__.py": "",
        "steps/gate.py": "import os\nfrom moe import gate\nfrom . import tracking\ndef f():\n    import moe.deep.layer\n",
        "steps/tracking.py": "",
        "steps/other.py": "",
        "moe/__init__.py": "from .version import X\n",
        "moe/version.py": "X = 1\n",
        "moe/gate.py": "from .deep.maths import softmax\n",
        "moe/notes.txt": "read by some module",
        "moe/deep/__init__.py": "",
        "moe/deep/layer.py": "from ..gate import G\nfrom .. import options as o\n",
        "moe/deep/maths.py": "",
        "moe/deep/unused.py": "",
        "moe/options.py": "",
        "moe/unused/__init__.py": "",
        "moe/unused/words.json": "{}",
        "gate.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    reached = set(files) - {"steps/other.py", "moe/deep/unused.py", "moe/unused/__init__.py", "moe/unused/words.json", "gate.py"}
    assert set(code_digests(tmp_path / "steps/gate.py", tmp_path)) == reached


def test_libraries_are_those_imported_and_what_they_require_as_far_as_they_are_pinned(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("# comment\npandas==1\nnumpy==1\nno-such-library==2\nmlflow==0.1\npytest==1\n")
    versions = library_versions(frozenset({"pandas", "no-such-library", "scipy"}), tmp_path / "requirements.txt")
    assert versions == {
        "python": versions["python"],
        "numpy": numpy.__version__,
        "pandas": pd.__version__,
        "no-such-library": "missing",
    }


def test_the_libraries_of_a_training_step() -> None:
    """What computes is counted, wherever it is imported; what draws, records, shows or tests is not."""
    path = Path(asr.__file__)
    imported = imported_libraries(path, path.parents[1])
    counted = library_versions(imported, path.parents[1] / "requirements.txt")
    assert {"torch", "transformers", "tokenizers", "numpy", "peft", "soundfile", "safetensors"} <= set(counted)
    assert not {"pytest", "pytest-xdist", "hypothesis", "matplotlib", "mlflow", "tqdm", "espeakng-loader"} & set(counted)
