"""Bad input through the real command line: one clear line with thing, value and what is allowed, an exit code, nothing half-written."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

import tests.toys.corpora as toys
from moe.systems.table import SYSTEMS
from steps import baseline, compare, embed, main, prepare, pretrain, register
from steps.tracking import runs as tracking
from steps.tracking.source_code import DIFF
from steps.tracking.store import connect, project_root

Refuse = Callable[..., str]


@pytest.fixture(autouse=True)
def surroundings(store: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store of one's own, the project's folder, and the signal handlers as they were."""
    monkeypatch.chdir(project_root())
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs a step's command line, which must fail: its last line on stderr. Checks the exit code and what it left behind."""

    def run(module, *arguments: str, code: int = 1, finished: tuple[str, ...] = ()) -> str:
        with pytest.raises(SystemExit) as end:
            tracking.command(module.run, module.StepOptions, arguments)
        assert end.value.code == code
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert 0 < len(said) <= tracking.MAX_MESSAGE + 40 and "Traceback" not in said
        check_nothing_half_written(code, finished)
        return said

    return run


def all_runs():
    store = connect()
    return store.client.search_runs([store.experiment_id])


def check_nothing_half_written(code: int, finished: tuple[str, ...]) -> None:
    """Bad options leave no run; a failed step leaves a FAILED run with its traceback and no artifact of the step."""
    runs = all_runs()
    assert {run.data.tags["moe.step"] for run in runs if run.info.status == "FINISHED"} == set(finished)
    failed = [run for run in runs if run.info.status != "FINISHED"]
    assert not failed if code == 2 else {run.info.status for run in failed} <= {"FAILED"}
    for run in failed:
        names = {file.path for file in connect().client.list_artifacts(run.info.run_id)}
        assert names <= {"fingerprint.json", "traceback.txt", "tables", "options.yaml", DIFF} and "traceback.txt" in names


def corpus_args(folder: Path, *more: str) -> list[str]:
    return ["--corpus", "folder", "--dataset_root", str(folder), "--n_workers", "1", *more]


def rewrite(folder: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
    """The toy corpus with another manifest.csv."""
    toys.write_folder(folder)
    table = pd.read_csv(folder / "manifest.csv")
    change(table).to_csv(folder / "manifest.csv", index=False)
    return folder


@pytest.mark.parametrize("step", [prepare, main], ids=["prepare", "main"])
def test_a_missing_folder(refuse: Refuse, tmp_path: Path, step) -> None:
    said = refuse(step, *corpus_args(tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in said and ("prepare" in said or step is main)  # main refuses it before the first stage


def test_an_empty_folder(refuse: Refuse, tmp_path: Path) -> None:
    assert str(tmp_path) in refuse(prepare, *corpus_args(tmp_path))


def test_a_corpus_without_utterances(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(prepare, *corpus_args(rewrite(tmp_path, lambda table: table.head(0))))
    assert "no utterance" in said


def test_one_speaker_only(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(prepare, *corpus_args(rewrite(tmp_path, lambda table: table.assign(speaker="s0").drop(columns="split"))))
    assert "speaker" in said and "1" in said


def test_more_unreadable_recordings_than_allowed(refuse: Refuse, tmp_path: Path) -> None:
    toys.write_folder(tmp_path)
    (tmp_path / "wav" / "u1.flac").write_bytes(b"RIFF, but not really")
    said = refuse(prepare, *corpus_args(tmp_path))
    assert "max_quarantined=0.05" in said and "1 of 8" in said and "'u1'" in said


def test_transcripts_that_are_missing(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(prepare, *corpus_args(rewrite(tmp_path / "a", lambda table: table.drop(columns="transcript"))))
    assert "transcript" in said
    said = refuse(prepare, *corpus_args(rewrite(tmp_path / "b", lambda table: table.assign(transcript=""))))
    assert "max_quarantined=0.05" in said and "8 of 8" in said and "transcript" in said


def test_a_speaker_in_two_splits(refuse: Refuse, tmp_path: Path) -> None:
    """Pitfall 4."""
    leaking = rewrite(tmp_path, lambda table: table.assign(speaker=["s0", "s0", "s1", "s1", "s0", "s2", "s3", "s3"]))
    assert "s0" in refuse(prepare, *corpus_args(leaking))


def test_fewer_speakers_or_utterances_than_experts(refuse: Refuse, tmp_path: Path) -> None:
    """Two train speakers with two utterances each; too few speakers show before anything runs, too few utterances when they are clustered."""
    corpus = corpus_args(
        toys.write_folder(tmp_path), "--mode", "quick", "--until", "cluster", "--reduce_dim", "2", "--no_plot", "true"
    )
    done = ("prepare", "pretrain", "embed")
    assert "num_experts=3: the train split has 2 speakers" in refuse(main, *corpus, "--num_experts", "3")
    said = refuse(main, *corpus, "--num_experts", "5", "--cluster_unit", "utterance", finished=done)
    assert "num_experts=5: only 4 utterances" in said


@pytest.mark.parametrize(
    ("step", "arguments", "words"),
    [
        (main, ["--asr_epoch", "3"], ["asr_epoch: no such option, did you mean asr_epochs?"]),
        (main, ["--num_experts", "0"], ["num_experts=0: must be at least 1"]),
        (main, ["--num_experts", "0", "--data_percent", "0"], ["num_experts=0", "data_percent=0", "must be above 0"]),
        (main, ["--data_percent", "101"], ["data_percent=101", "at most 100"]),
        (main, ["--num_experts", "many"], ["many", "whole number"]),
        (main, ["--mode", "fast"], ["mode='fast': must be one of quick, full"]),
        (main, ["--until", "lunch"], ["until='lunch'"]),
        (main, ["--corpus", "stone_tablets"], ["corpus='stone_tablets'", "folder"]),
        (main, ["--systems", "whisper_moe,wav2vec"], ["systems=wav2vec: there are whisper_moe, single_lora, zero_shot"]),
        (main, ["--systems", "single_lora"], ["systems=single_lora", "name whisper_moe too"]),
        (main, ["--systems", "zero_shot,zero_shot"], ["systems=zero_shot,zero_shot: zero_shot is named twice"]),
        (
            register,
            ["--register_system", "moe"],
            [f"register_system='moe': must be one of {', '.join([*SYSTEMS, 'any'])}"],
        ),
        (compare, ["--evaluate_run_ids", "one"], ["evaluate_run_ids=one: must be two or more"]),
        (baseline, ["--system", "single_lora"], ["asr_run_id is missing"]),
        (pretrain, ["--init_from", "./nowhere"], ["init_from=./nowhere: no such folder"]),
        (pretrain, ["--init_from", "scratch"], ["tokenizer=checkpoint", "characters or bpe"]),
        (
            pretrain,
            ["--init_from", "scratch", "--tokenizer", "bpe", "--pretrain_updates", "0"],
            ["pretrain_updates=0", "scratch"],
        ),
        (prepare, ["--corpus", "folder"], ["dataset_root is missing"]),
        (prepare, ["--corpus", "synthetic"], ["synthesize_run_id is missing"]),
        (embed, ["--gate_layer", "top"], ["gate_layer='top': must be a layer number or last"]),
    ],
)
def test_bad_options_are_named_with_what_is_allowed(refuse: Refuse, step, arguments: list[str], words: list[str]) -> None:
    said = refuse(step, *arguments, code=2)
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--skip_pretraining", "true"], ["num_experts is missing"]),
        (["--corpus", "folder"], ["dataset_root is missing"]),
        (["--fp16", "true", "--no_fp16", "true"], ["contradict"]),
        (["--num_experts", "1"], ["min_experts=2: must be at most num_experts=1"]),
    ],
)
def test_faults_of_a_later_stage_show_before_anything_has_run(refuse: Refuse, arguments: list[str], words: list[str]) -> None:
    """Found when `main` builds every stage's options, so no stage has run whatever the exit code."""
    with pytest.raises(SystemExit) as end:
        tracking.command(main.run, main.StepOptions, arguments)
    assert end.value.code in (1, 2) and all_runs() == []


def test_all_faults_of_all_stages_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tracking.command(
            main.run,
            main.StepOptions,
            ["--noise", "uniform", "--fp16", "true", "--no_fp16", "true", "--dev_share", "0.8", "--test_share", "0.5"],
        )
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and all(word in said for word in ("noise=uniform", "fp16=true and no_fp16=true", "dev_share=0.8"))


@pytest.mark.parametrize("step", [embed, register], ids=["embed", "register"])
def test_a_run_that_does_not_exist(refuse: Refuse, step) -> None:
    flags = ["--prepare_run_id", "0123", "--pretrain_run_id", "4567"] if step is embed else ["--evaluate_run_ids", "0123"]
    assert "'0123'" in refuse(step, *flags)


def test_no_run_id_at_all(refuse: Refuse) -> None:
    assert "prepare_run_id is missing; pretrain_run_id is missing" in refuse(embed, code=2)
    assert "no run id given" in refuse(embed, "--prepare_run_id", "none", "--pretrain_run_id", "none")


def test_a_partial_base_that_would_not_be_trained(refuse: Refuse, tmp_path: Path) -> None:
    said = refuse(pretrain, "--init_from", str(tmp_path), "--pretrain_updates", "0", "--missing_updates", "0", code=2)
    assert "pretrain_updates=0 and missing_updates=0" in said and "partial" in said


def test_a_base_model_that_cannot_be_read(refuse: Refuse, tmp_path: Path) -> None:
    corpus = corpus_args(toys.write_folder(tmp_path / "corpus"), "--mode", "quick", "--until", "pretrain")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{}")
    said = refuse(main, *corpus, "--init_from", str(tmp_path / "base"))  # before the first stage
    assert "needs config.json and weights" in said


def test_the_command_line_itself(store: Path) -> None:
    """In a process of its own: nothing but the one line on stderr."""
    command = [sys.executable, "-m", "steps.prepare", "--corpus", "folder", "--dataset_root", "gone"]
    done = subprocess.run(command, cwd=project_root(), env=os.environ.copy(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("prepare") and "gone" in lines[0], done.stderr
    assert [run.info.status for run in all_runs()] == ["FAILED"]
