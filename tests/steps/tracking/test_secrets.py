"""Passwords and tokens reach neither parameters nor fingerprints nor messages; ordinary values stay as they are."""

import dataclasses

import pytest

from moe.options import Options, option
from steps.main import StepOptions as MainOptions
from steps.tracking import artifacts, runs
from steps.tracking.fingerprint import fingerprint
from steps.tracking.secrets import HIDDEN, public, without_secrets
from steps.tracking.store import connect

TOKEN = "hf_" + "a1B2" * 8


@dataclasses.dataclass(frozen=True)
class StepOptions(Options):
    """A step for tests."""

    dataset_root: str = option("none", "a place")
    hf_token: str = option("none", "a token")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("s3://key:word@bucket/corpus", "s3://***@bucket/corpus"),
        ("https://user@host/x", "https://***@host/x"),
        (f"the hub refused {TOKEN}.", "the hub refused ***."),
        ("AKIA" + "ABCD" * 4, HIDDEN),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", HIDDEN),
        ("https://host/a@b", "https://host/a@b"),
        ("openai/whisper-small", "openai/whisper-small"),
        ("speaker@clinic", "speaker@clinic"),
    ],
)
def test_secrets_in_a_text_are_hidden_and_nothing_else(said: str, shown: str) -> None:
    assert without_secrets(said) == shown


def test_a_parameter_whose_name_says_secret_is_hidden_whatever_its_value() -> None:
    shown = public({"hf_token": "short", "api_key": "x", "password": "none", "tokenizer": "bpe", "max_tokens_per_s": "30"})
    assert shown == {"hf_token": HIDDEN, "api_key": HIDDEN, "password": "none", "tokenizer": "bpe", "max_tokens_per_s": "30"}


def test_no_option_of_the_chain_is_hidden_by_mistake() -> None:
    parameters = MainOptions().as_parameters()
    assert public(parameters) == parameters


@pytest.mark.usefixtures("store")
def test_a_run_holds_no_secret_anywhere() -> None:
    options = StepOptions(dataset_root="s3://key:word@bucket", hf_token=TOKEN)
    with runs.step_run("prepare", options) as run:
        pass
    data = connect().client.get_run(run.run_id).data
    assert data.params == {"dataset_root": "s3://***@bucket", "hf_token": HIDDEN}
    written = artifacts.upstream(run.run_id, artifacts.FINGERPRINT).read_text()
    assert TOKEN not in written and "key:word" not in written
    assert (
        fingerprint("prepare", options).digest
        == fingerprint("prepare", dataclasses.replace(options, hf_token=TOKEN[::-1])).digest
    )


@pytest.mark.usefixtures("store")
def test_a_message_holds_no_secret() -> None:
    with pytest.raises(ValueError), runs.step_run("prepare", StepOptions()) as run:
        raise ValueError("s3://key:word@bucket: no such bucket")
    assert connect().client.get_run(run.run_id).data.tags["moe.message"] == "prepare: s3://***@bucket: no such bucket"
