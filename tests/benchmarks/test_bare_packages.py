"""The model code and `benchmarks.speed` run where nothing is installed but six packages and what these need themselves.

So a machine without a package index, such as a lent GPU, measures from a bare checkout.
"""

import importlib.metadata as metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.speed.__main__ import BARE, COMPARISONS, CORPUS_PACKAGES

ROOT = Path(__file__).resolve().parents[2]
MODEL_CODE = (
    "moe.systems.whisper_moe.model",
    "moe.systems.whisper_moe.system",
    "moe.systems.whisper.base_model",
    "moe.systems.whisper.inputs",
    "moe.recognition.decoding",
    "moe.training.loop",
)
PROGRAM = """
import importlib, json, sys
from pathlib import Path

for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
from benchmarks.speed.__main__ import SpeedOptions, run
from benchmarks.speed.workbench import TOY

found = {}
for name in ("training", "decoding"):
    found = run(SpeedOptions(shape="toy", repeats=1, only=name), TOY, Path(sys.argv[2]))
print(json.dumps({"measured": sorted(found), "possible": SpeedOptions().names}))
"""


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the six packages and what they require, as pip would install them."""
    folder, waiting, seen = tmp_path_factory.mktemp("packages"), list(BARE), set()
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen or not (distribution := installed(name)):
            continue
        seen.add(name)
        needed = [Requirement(line) for line in distribution.requires or []]
        waiting += [each.name for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
        for top in {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(distribution.locate_file(top))
    assert not seen & {"pandas", "mlflow", "soundfile", "scipy", "scikit-learn", "jiwer"}
    return folder


def installed(name: str) -> metadata.Distribution | None:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError:  # such as a GPU's libraries beside a torch for CPUs
        return None


@pytest.mark.slow
def test_speed_and_the_models_need_six_packages(bare, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONPATH"] = os.pathsep.join([str(bare), str(ROOT)])
    command = [sys.executable, "-S", "-c", PROGRAM, json.dumps(MODEL_CODE), str(tmp_path / "speed")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["measured"] == ["decoding", "training"]
    assert said["possible"] == [name for name, comparison in COMPARISONS.items() if not comparison.packages]


def test_what_cannot_be_measured_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in CORPUS_PACKAGES else object())
    from benchmarks.speed.__main__ import SpeedOptions

    with pytest.raises(ValueError, match="only=store: needs pandas, pyarrow, soundfile, av, soxr, which are not installed"):
        SpeedOptions(only="store")
    assert "store" not in SpeedOptions().names and "gate" in SpeedOptions().names
