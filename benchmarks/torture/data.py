"""Torture by data: not-a-numbers planted in training, faulty files in a corpus, and the same test set in another order."""

import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd

from benchmarks.torture.arena import Arena, toy_options
from moe.system import DecodingOptions
from moe.systems.table import load_system
from steps.chain.chain import Chain
from steps.inputs.corpus import Prepared, read_prepared
from steps.inputs.test_set import prepare_test_set, recognise
from steps.tracking import artifacts, runs
from steps.tracking.store import connect

PLACES = ("audio", "label", "gradient")
N_UTTERANCES = 300


def not_a_number(arena: Arena, seed: int) -> str:
    """NaN in one utterance's audio or loss, infinity in a gradient: the utterance is named and the weights are finite."""
    where = PLACES[seed % len(PLACES)]
    found = arena.fork(_train_spoilt, where).value()
    assert found["finite"] and found["n_bad"] > 0, found
    assert "u5" in found["ids"], f"{where}: u5 is not among {found['ids']}"
    return f"{where}: {found['n_bad']} updates skipped, {', '.join(found['ids'])} listed"


def faulty_files(arena: Arena, seed: int) -> str:
    """5 % of the files faulty, each in another way: the chain finishes and every one is listed with its reason."""
    found = arena.fork(_run_on_faulty).value()
    assert found["status"] == "FINISHED" and not found["unlisted"], found
    assert found["n_listed"] == N_UTTERANCES and found["n_embedded"] == N_UTTERANCES - found["n_faulty"], found
    return f"{found['n_faulty']} of {N_UTTERANCES} in {found['n_ways']} ways, {found['n_embedded']} embedded"


def another_order(arena: Arena, seed: int) -> str:
    """The test set in another order: every hypothesis, its routing weights and its log-probability the same to the bit."""
    found = arena.fork(_recognise_twice, arena.ids(), seed).value()
    assert found["n_different"] == 0, f"{found['n_different']} of {found['n']} hypotheses differ, e.g. {found['example']}"
    return f"{found['n']} hypotheses"


def _train_spoilt(where: str) -> dict[str, Any]:
    import torch

    from moe.training.loop import fit
    from tests.toys.training import Diary, Spoilt, dataset, plan, toy_base, toy_mixture, training, write_corpus

    model = toy_mixture(toy_base(), n_experts=0)
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_corpus(Path(folder), 12)
        fitted = fit(Spoilt(model, "u5", where), dataset(manifest, Path(folder)), training(plan(epochs=2)), Diary())
    ids = sorted({name for record in fitted.bad_updates for name in record["utterance_ids"]})
    finite = all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())
    return {"finite": finite, "n_bad": len(fitted.bad_updates), "ids": ids}


def _run_on_faulty() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "corpus"
        planted = _write_faulty(root)
        own = {"corpus": "folder", "dataset_root": str(root), "until": "embed", "max_samples": 2 * N_UTTERANCES}
        options = toy_options(**own, max_duration_s=5.0, ctc_frames_per_s=50.0)
        with runs.step_run("main", options) as step:
            chain = Chain(options)
            chain.run()
        quarantine = pd.read_parquet(artifacts.upstream(chain.run_ids["prepare"], artifacts.QUARANTINE))
        client = connect().client
        by_path = dict(zip(quarantine["audio"], quarantine["reason"], strict=True))
        return {
            "status": client.get_run(step.run_id).info.status,
            "unlisted": {path: [reason, by_path.get(path)] for path, reason in planted.items() if by_path.get(path) != reason},
            "n_faulty": len(planted),
            "n_ways": len(set(planted.values())),
            "n_listed": client.get_run(chain.run_ids["prepare"]).data.metrics["n_listed"],
            "n_embedded": client.get_run(chain.run_ids["embed"]).data.metrics["n_utterances"] + _n_test(chain.run_ids["prepare"]),
        }


def _n_test(prepare_run_id: str) -> int:
    return int((pd.read_parquet(artifacts.upstream(prepare_run_id, artifacts.MANIFEST))["split"] == "test").sum())


def _write_faulty(root: Path) -> dict[str, str]:
    """A folder corpus in which every way of being faulty occurs; path → reason of the faulty ones."""
    from tests.toys.faults import PLANTED, wav

    (root / "wav").mkdir(parents=True)
    places = np.random.default_rng(5).permutation(np.arange(10, N_UTTERANCES))[: len(PLANTED)]
    rows, planted = [], {}
    for number in range(N_UTTERANCES):
        row = {"id": f"utterance{number:04d}", "path": f"wav/{number:04d}.wav", "speaker": f"s{number % 10}"}
        row |= {"group": ("als", "stroke")[number % 10 // 5], "transcript": f"word {number}"}
        (root / row["path"]).write_bytes(wav(number))
        for plant in [PLANTED[index] for index, place in enumerate(places) if place == number]:
            plant(root, row, number)
            planted[row["path"]] = plant.__name__
        rows.append(row)
    lines = [",".join(rows[0]), *(",".join(f'"{value}"' for value in row.values()) for row in rows)]
    (root / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    return planted


def _recognise_twice(ids: dict[str, str], seed: int) -> dict[str, Any]:
    straight, mixed = _recognised(ids, None), _recognised(ids, seed)
    different = [name for name, row in straight.items() if mixed.get(name) != row]
    return {
        "n": len(straight),
        "n_different": len(different),
        "example": [(straight[name], mixed.get(name)) for name in different[:1]],
    }


def _recognised(ids: dict[str, str], seed: int | None) -> dict[str, str]:
    """Every figure of every test utterance, its rows in the corpus's order or in one drawn from the seed."""
    folder, rows = artifacts.upstream(ids["asr"], artifacts.MODEL), Prepared.rows

    def shuffled(prepared: Prepared, split: str) -> pd.DataFrame:
        found = rows(prepared, split)
        return found if seed is None else found.sample(frac=1, random_state=seed).reset_index(drop=True)

    with mock.patch.object(Prepared, "rows", shuffled), tempfile.TemporaryDirectory() as work:
        decoding = DecodingOptions(decoding_batch_size=4)
        system = load_system(folder)
        test_set = prepare_test_set(system, system.ask_type(), read_prepared(ids["prepare"]), folder, decoding, Path(work))
        table = recognise(test_set)[0]
    return {row["utterance_id"]: repr(sorted(row.items())) for row in table.to_dict("records")}
