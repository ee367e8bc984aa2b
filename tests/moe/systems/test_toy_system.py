"""A fifth system moves in: a package of one file, a step and a row. Nothing else is changed for it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.toys.models import RATE, toy_wave

ROOT = Path(__file__).resolve().parents[3]
WORDS = ("oak", "elm", "ash")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the toy left after all steps."""
    corpus, folder = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("work")
    rows = ["path,transcript,speaker,etiology,split"]
    for number in range(10):
        soundfile.write(corpus / f"u{number}.wav", toy_wave(number % 3, 0.6 + 0.1 * number), RATE, subtype="FLOAT")
        split = ("train", "train", "train", "train", "train", "train", "dev", "dev", "test", "test")[number]
        rows.append(f"u{number}.wav,{WORDS[number % 3]},{split}{number % 2},{('als', 'typical')[number % 2]},{split}")
    (corpus / "manifest.csv").write_text("\n".join(rows), encoding="utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.toys.ctc_chain", str(corpus), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "found.json").read_text(encoding="utf-8")) | {"folder": folder}


def test_it_trains_in_the_common_loop_and_is_judged_by_its_hypotheses(found: dict) -> None:
    assert found["losses"][-1] < found["losses"][0] and len(found["blank_share"]) == len(found["losses"])


def test_evaluation_and_comparison_take_its_title_and_role_from_its_record(found: dict) -> None:
    assert found["table"] == [["toy CTC", "candidate"], ["Whisper-MoE", "mixture"]]
    assert "blank_share" in found["hypotheses"] and "expert" not in found["hypotheses"]


def test_what_it_may_be_asked_is_what_the_registered_model_offers(found: dict) -> None:
    assert found["params"] == ["capitals", "return_routing", "word_times", "beam_size", "speaker"]
    plain, loud = found["answers"]
    assert loud == plain.upper()


def test_transcribe_asks_it_by_the_same_name(found: dict) -> None:
    texts = [
        json.loads((found["folder"] / name / "u0.json").read_text(encoding="utf-8"))["text"] for name in ("plain", "capitals")
    ]
    assert texts == [found["answers"][0]] * 2 or texts == found["answers"]


def test_its_lineage_leads_back_to_the_corpus(found: dict) -> None:
    assert {"prepare", "toy_ctc", "evaluate", "register"} <= set(found["lineage"])
