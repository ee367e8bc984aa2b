"""A really started server whose clients are people: each gets the text of their own expert, whoever asks beside them.

    python -m benchmarks.people_serving --model FOLDER [--seconds 60]

Seven clients are seven people with random experts, one is nobody; FOLDER holds the recogniser. The store, the registered model and the
people are made for this and thrown away. Every answer is compared with what the recogniser writes alone, without a server.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.serving import RESULTS, Client, request, server
from benchmarks.table import write_both
from moe.audio.waveforms import load_audio
from moe.experts.people.folders import PersonRecord, save_person
from moe.experts.people.person import Person
from moe.files import folder_digest
from moe.options import Options
from moe.recognition.recognizer import Recognizer
from moe.recognition.transcription import find_recordings
from moe.serving.requests import SPEAKER
from moe.synthesis.corpus import synthesize
from moe.synthesis.planning import SynthesisOptions
from moe.system import DecodingOptions
from moe.systems.table import SYSTEMS, load_system
from steps.registry import people
from steps.registry.signature import log_model
from steps.tracking import artifacts, runs
from steps.tracking.store import connect

NAME, N_PEOPLE, N_RECORDINGS = "people-served", 7, 6
TARGETS, R = ("q_proj", "v_proj"), 8
SPREAD = 0.3  # of the numbers of the experts: enough that everybody writes something else


class Nothing(Options):
    """A run without options."""


@contextlib.contextmanager
def store() -> Iterator[None]:
    """A tracking store of its own."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.environ.get("MLFLOW_TRACKING_URI")
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        try:
            yield
        finally:
            os.environ.pop("MLFLOW_TRACKING_URI")
            os.environ |= {} if before is None else {"MLFLOW_TRACKING_URI": before}


def register(model: Path, system: Any) -> None:
    """The recogniser as a registered model."""
    with runs.step_run("asr", Nothing()) as step:
        step.log_folder(model, artifacts.MODEL)
    with runs.step_run("register", Nothing()):
        log_model(step.run_id, {"people_of": NAME, "speech_threshold": 0.0}, SYSTEMS[system.record.system].ask_type, "", NAME)


def enrol(system: Any, digest: str, number: int) -> Person:
    """Somebody with a random expert."""
    layout = system.layout(TARGETS, R)
    noise = torch.randn(layout.n_numbers, generator=torch.Generator().manual_seed(number))
    person = Person(f"person_{number}", layout, layout.new(number, "x") + SPREAD * noise)
    record = PersonRecord(person.name, digest, "expert", TARGETS, R, (3, 2, 5))
    client = connect().client
    run_id = client.create_run(connect().experiment_id, tags={people.PERSON_TAG: person.name}).info.run_id
    with tempfile.TemporaryDirectory() as folder:
        save_person(Path(folder) / people.FOLDER, person, record)
        client.log_artifacts(run_id, str(Path(folder) / people.FOLDER), people.FOLDER)
    client.set_terminated(run_id, "FINISHED")
    people.register_person(NAME, f"models:/{NAME}", run_id, record)
    return person


def ask(port: int, speaker: str | None, expected: dict[bytes, str], seconds: float) -> Counter:
    """Ask as one speaker for so long; how many answers were their own text, another one, and an error."""
    client, found, end = Client(port), Counter[str](), time.perf_counter() + seconds
    params = {} if speaker is None else {SPEAKER: speaker}
    while time.perf_counter() < end:
        for audio, text in expected.items():
            status, answer = client.post(request(audio, params))
            said = (
                "error"
                if status != 200
                else "own text"
                if json.loads(answer)["predictions"][0]["text"] == text
                else "another text"
            )
            found[said] += 1
    return found


def run(model: Path, seconds: float) -> dict[str, Any]:
    """Serve, ask with everybody at once, and count."""
    with store(), tempfile.TemporaryDirectory() as folder:
        options = SynthesisOptions(
            n_train_speakers=1, n_utterances=1, n_dev_speakers=0, n_test_speakers=1, n_test_utterances=1, seen_share=0.0
        )
        synthesize(options, Path(folder) / "corpus")
        recordings = [path.read_bytes() for path in find_recordings(Path(folder) / "corpus" / "audio")[:N_RECORDINGS]]
        system: Any = load_system(model)
        register(model, system)
        everybody: list[Person | None] = [enrol(system, folder_digest(model), number) for number in range(N_PEOPLE)]
        everybody.append(None)
        alone = Recognizer(system)
        texts = [
            {audio: alone.transcribe([load_audio(audio)], DecodingOptions(), people=[each])[0].text for audio in recordings}
            for each in everybody
        ]
        with server(f"models:/{NAME}/1", {}) as port, ThreadPoolExecutor(len(everybody)) as pool:
            names = [None if each is None else each.name for each in everybody]
            counts = list(pool.map(ask, [port] * len(names), names, texts, [seconds] * len(names)))
    different = [len(set(row)) for row in zip(*(each.values() for each in texts), strict=True)]
    return {
        "clients": len(names), "seconds": seconds, "different texts of each recording": different,
        "answers": dict(sum(counts, Counter())), "fewest answers of a client": min(each.total() for each in counts),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    result = run(chosen.model, chosen.seconds)
    print(write_both(chosen.out / "people-serving", "\n".join(f"- {name}: {value}" for name, value in result.items()), result))
    return 0 if set(result["answers"]) == {"own text"} else 1


if __name__ == "__main__":
    raise SystemExit(main())
