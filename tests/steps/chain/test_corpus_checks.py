"""What base, experts and corpus cannot do together is refused before anything runs, all in one message; its advice leads on."""

import dataclasses
import json
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from fsspec.registry import _registry
from safetensors.torch import load_file, save_file

from moe.corpora.outline import outline
from moe.corpora.preparation import PreparationOptions
from moe.systems.domain_whisper.prompts import add_tokens
from moe.systems.whisper.base_model import load_base, save_base
from moe.systems.whisper.base_source import TOKEN_TABLE
from steps import main
from steps.chain import corpus_checks
from steps.chain.remote_checks import remote_faults
from steps.pretrain import SHIPPED
from steps.tracking.store import artifact_folder
from tests.toys import corpora as toys
from tests.toys.corpora import tone

RATE = 16_000


def write_folder(folder: Path, lengths_s: list[float], transcript: str = "open the door", n_speakers: int = 5) -> Path:
    """A corpus of recordings of these lengths, spoken in turn."""
    rows = ["path,transcript,speaker,etiology"]
    folder.mkdir()
    for number, seconds in enumerate(lengths_s):
        sound = np.resize(tone(40 * number + 100), int(seconds * RATE))
        soundfile.write(folder / f"{number}.wav", sound, RATE)
        rows.append(f"{number}.wav,{transcript},s{number % n_speakers},als")
    (folder / "manifest.csv").write_text("\n".join(rows))
    return folder


def asked(folder: Path, **changes) -> main.StepOptions:
    return main.StepOptions(corpus="folder", dataset_root=str(folder), **changes)


def test_everything_that_cannot_work_is_said_at_once(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", [1.0] * 15 + [9.0] * 5, "a " * 80)
    with pytest.raises(ValueError) as fault:
        main.check_stages(asked(folder, num_experts=4, shards_together=2))
    said = str(fault.value)
    assert f"the base {SHIPPED} takes 4 s at once and 25 % of the recordings are longer, up to 9.0 s; it is for the demo" in said
    assert "max_duration_s=4 and max_quarantined=0.26" in said and "the longest reference has" in said
    assert "num_experts=4: the train split has 3 speakers to cluster" in said
    assert "shards_together=2: recordings of this corpus are files of their own" in said


def test_the_advice_of_the_message_leads_on(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", [1.0] * 15 + [9.0] * 5)
    with pytest.raises(ValueError) as fault:
        main.check_stages(asked(folder, num_experts=2))
    changes = {name: float(value) for name, value in re.findall(r"(max_\w+)=([\d.]+)", str(fault.value))}
    assert set(changes) == {"max_duration_s", "max_quarantined"}
    main.check_stages(asked(folder, num_experts=2, **changes))
    main.check_stages(asked(folder, num_experts=2, until="prepare"))  # nothing of it is trained on


def test_few_long_recordings_need_no_other_share(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", [1.0] * 39 + [9.0])
    with pytest.raises(ValueError, match="leave them out with max_duration_s=4$"):
        main.check_stages(asked(folder, num_experts=2))
    main.check_stages(asked(folder, num_experts=2, max_duration_s=4.0))


def test_a_corpus_that_fits_passes(tmp_path: Path) -> None:
    main.check_stages(asked(write_folder(tmp_path / "c", [0.5] * 20), num_experts=3))


EACH_FORMAT = pytest.mark.parametrize(("corpus", "write"), toys.WRITERS.values(), ids=toys.WRITERS)


@EACH_FORMAT
def test_durations_come_from_headers_whatever_the_format(corpus: str, write: Callable[[Path], Path], tmp_path: Path) -> None:
    found = outline(PreparationOptions(corpus=corpus, dataset_root=str(write(tmp_path / "c")), split="by_speaker"))
    assert found.durations_s == pytest.approx([0.4] * 8, abs=0.01)


@EACH_FORMAT
def test_a_short_window_is_refused_before_anything_runs_whatever_the_format(
    corpus: str, write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_checks, "base_window_s", lambda base: 0.3)
    folder = write(tmp_path / "c")
    with pytest.raises(ValueError, match="takes 0.3 s at once and 100 % of the recordings are longer, up to 0.4 s"):
        main.check_stages(main.StepOptions(corpus=corpus, dataset_root=str(folder), num_experts=2, split="by_speaker"))


@pytest.mark.parametrize(("references", "said"), [("normalised", "open the door"), ("raw", "Open -- the door!")])
def test_the_long_references_are_those_that_a_model_learns_to_write(references: str, said: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", [0.4] * 10, "Open -- the door!")
    assert set(outline(PreparationOptions(dataset_root=str(folder), references=references)).long_references) == {said}


def test_of_large_shards_runs_of_neighbours_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RUNS": 2, "RUN": 2}.items():
        monkeypatch.setattr(f"moe.corpora.outline.{name}", value)
    found = outline(PreparationOptions(corpus="parquet", dataset_root=str(toys.write_parquet(tmp_path))))
    assert found.durations_s == pytest.approx([0.4] * 4, abs=0.01)


@pytest.mark.parametrize("corpus", ["folder", "parquet", "webdataset"])
def test_of_a_corpus_elsewhere_few_recordings_are_read_whatever_they_lie_in(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RUNS": 2, "MOST_REMOTE": 4}.items():
        monkeypatch.setattr(f"moe.corpora.outline.{name}", value)
    address = put_in_memory(toys.WRITERS[corpus][1](tmp_path / "c"))
    found = outline(PreparationOptions(corpus=corpus, dataset_root=address, split="by_speaker"))
    assert found.durations_s == pytest.approx([0.4] * 4, abs=0.01)


@pytest.mark.parametrize("container", ["m4a", "wav", "mp3", "opus"])
def test_recordings_of_any_container_say_how_long_they_are(container: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", [1.0] * 10)
    for path in sorted(folder.glob("*.wav")):
        path.write_bytes(toys.encode(tone(3, 2.0), container))
    found = outline(PreparationOptions(dataset_root=str(folder)))
    assert found.durations_s == pytest.approx([2.0] * 10, abs=0.1)


def test_a_full_disk_is_refused_where_the_artifacts_will_lie(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_of = []

    def usage(folder: Path) -> shutil._ntuple_diskusage:
        asked_of.append(Path(folder))
        return shutil._ntuple_diskusage(10**9, 10**9 - 5, 5)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    folder = artifact_folder()
    with pytest.raises(
        ValueError, match=r"has 0.0 GB free and the chain writes about \d.\d GB \(6 copies of the base\): make room"
    ):
        main.check_stages(asked(write_folder(tmp_path / "c", [0.5] * 20), num_experts=3))
    assert asked_of[0] in (folder, *folder.parents) and asked_of[0] != Path.cwd()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # a server decides where they lie
    main.check_stages(asked(tmp_path / "c", num_experts=3))


def put_in_memory(folder: Path) -> str:
    """The same corpus at an address."""
    address = f"memory://{uuid.uuid4().hex}"
    for path in filter(Path.is_file, folder.rglob("*")):
        with fsspec.open(f"{address}/{path.relative_to(folder).as_posix()}", "wb") as file:
            file.write(path.read_bytes())
    return address


def test_a_corpus_at_an_address_is_looked_at_before_anything_runs(tmp_path: Path) -> None:
    address = put_in_memory(write_folder(tmp_path / "c", [1.0] * 15 + [9.0] * 5))
    with pytest.raises(ValueError, match="25 % of the recordings are longer, up to 9.0 s"):
        main.check_stages(main.StepOptions(corpus="folder", dataset_root=address, num_experts=2))
    with pytest.raises(ValueError, match="num_experts=9: the train split has 3 speakers"):
        main.check_stages(main.StepOptions(corpus="folder", dataset_root=address, num_experts=9, whisper_model="v2"))
    main.check_stages(
        main.StepOptions(corpus="folder", dataset_root=address, num_experts=2, max_duration_s=4.0, max_quarantined=0.3)
    )


@pytest.mark.parametrize(
    ("root", "said"),
    [
        ("memory://nobody/put/anything/here", "there is no such bucket, folder or file|nothing is there"),
        ("nosuch://bucket/corpus", "does not answer .*nosuch"),
        ("s3://bucket/corpus", "s3:// needs s3fs: pip install -r requirements-buckets.txt"),
        ("gs://bucket/corpus", "gs:// needs gcsfs: pip install gcsfs"),
        ("sftp://host/corpus", 'sftp:// needs a package that is not installed .*"paramiko"'),
        ("gone/for/good", "no such folder"),
    ],
)
def test_an_address_that_does_not_answer_is_refused_with_all_else(root: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("s3fs", "gcsfs", "paramiko", "fsspec.implementations.sftp"):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    for protocol in ("s3", "gs", "sftp"):
        monkeypatch.delitem(_registry, protocol, raising=False)
    options = main.StepOptions(corpus="folder", dataset_root=root, num_experts=2, top_k=5)
    with pytest.raises(ValueError, match=f"(?s)dataset_root={root}: .*({said}).*top_k=5: num_experts=2"):
        main.run(options)


def test_a_name_that_the_hub_does_not_have_is_refused_before_the_corpus_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(*given: object, **how: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", nowhere)
    options = asked(write_folder(tmp_path / "c", [1.0] * 10), num_experts=2, whisper_model="someone/nothing")
    (fault,) = remote_faults(options)
    assert re.search(
        "whisper_model=someone/nothing: not on this machine, and the hub .*no route to host.*`hf download someone/nothing`", fault
    )
    assert remote_faults(dataclasses.replace(options, whisper_model="./gone")) == []  # pretrain says it
    others = {"systems": "steer_moe,wav2vec2_ctc", "register_system": "any", "llm": "someone/llm", "ctc_model": "someone/ctc"}
    found = remote_faults(asked(tmp_path / "c", **others))
    assert [fault.partition(":")[0] for fault in found] == ["llm=someone/llm", "ctc_model=someone/ctc"]
    assert remote_faults(asked(tmp_path / "c", **others, until="prepare")) == []


@pytest.mark.parametrize("option", ["llm", "ctc_model", "whisper_model"])
@pytest.mark.parametrize("name", ["./gone", "two words"])
def test_a_name_that_no_hub_can_have_is_refused_with_its_option_before_the_first_stage(
    option: str, name: str, tmp_path: Path
) -> None:
    given = {"systems": "steer_moe,wav2vec2_ctc", "register_system": "any", option: name}
    with pytest.raises(ValueError, match=f"{option}={re.escape(name)}: (no such folder|neither a folder nor a name)"):
        main.run(asked(write_folder(tmp_path / "c", [1.0] * 10), **given))


DOMAIN = {"systems": "domain_whisper", "register_system": "domain_whisper"}


def test_blocks_domains_and_tokens_that_are_not_there_are_refused_before_the_first_stage(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "c", [1.0] * 20)
    with pytest.raises(ValueError) as fault:
        main.check_stages(asked(folder, **DOMAIN, unfreeze_encoder_blocks=9))
    said = str(fault.value)
    assert "unfreeze_encoder_blocks=9: the base has 4" in said and "domains=two: the train split has one domain only" in said
    rows = (folder / "manifest.csv").read_text().splitlines()
    mixed = [row.replace(",als", ",typical") if row.split(",")[2] in ("s0", "s1", "s3") else row for row in rows]
    (folder / "manifest.csv").write_text("\n".join(mixed))
    main.check_stages(asked(folder, **DOMAIN))
    with pytest.raises(
        ValueError, match="domains=typical,cp,als: cp is not in the train split, whose etiologies are als, typical"
    ):
        main.check_stages(asked(folder, **DOMAIN, domains="typical,cp,als"))
    main.check_stages(asked(folder, **DOMAIN, domains="typical,cp,als", until="prepare"))
    base = own_base(tmp_path / "base", "normal", "atypical")
    with pytest.raises(ValueError, match=r"the base has the tokens <\|domain:normal\|>, <\|domain:atypical\|> already"):
        main.check_stages(asked(folder, **DOMAIN, whisper_model=str(base)))


def own_base(folder: Path, *domains: str) -> Path:
    """The shipped base with the tokens of some domains, as a domain-token Whisper is saved with."""
    base = load_base(SHIPPED)
    add_tokens(base, domains)
    save_base(base, folder)
    return folder


def test_domains_that_the_synthetic_corpus_will_not_have_are_refused_before_it_is_made() -> None:
    main.check_stages(main.StepOptions(**DOMAIN))
    with pytest.raises(ValueError, match="domains=typical,dyslexic: .*one domain only"):
        main.check_stages(main.StepOptions(**DOMAIN, domains="typical,dyslexic"))
    with pytest.raises(ValueError, match="domains=two: the train split has one domain only"):
        main.check_stages(main.StepOptions(**DOMAIN, styles="typical"))


def test_other_experts_of_a_ctc_than_clusters_are_refused_before_the_first_stage() -> None:
    given = {"systems": "whisper_moe,wav2vec2_ctc", "ctc_train": "lora"}
    main.check_stages(main.StepOptions(**given, ctc_experts=6))
    main.check_stages(main.StepOptions(**given, ctc_experts=3, num_experts=3))
    with pytest.raises(ValueError, match="ctc_experts=3: num_experts=6 makes 6 clusters; give as many"):
        main.check_stages(main.StepOptions(**given, ctc_experts=3))


def test_a_data_set_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "datasets.load_dataset_builder", lambda *given: (_ for _ in ()).throw(ConnectionError(f"no way to {given}"))
    )
    (fault,) = remote_faults(main.StepOptions(corpus="hf", dataset_root="me/words", hf_config="ne"))
    assert fault == "dataset_root=me/words: datasets cannot load it (ConnectionError: no way to ('me/words', 'ne'))"


def partial_base(folder: Path, *without: str) -> Path:
    """The shipped base without its token table."""
    shutil.copytree(SHIPPED, folder)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in weights.items() if name != TOKEN_TABLE}, folder / "model.safetensors")
    for name in without:
        (folder / name).unlink()
    return folder


def test_a_partial_base_is_held_against_the_corpus_too(tmp_path: Path) -> None:
    base = str(partial_base(tmp_path / "base"))
    folder = write_folder(tmp_path / "c", [1.0] * 15 + [9.0] * 5, "a " * 80)
    with pytest.raises(ValueError) as fault:
        main.check_stages(asked(folder, num_experts=2, init_from=base, tokenizer="characters"))
    said = str(fault.value)
    assert f"the base {base} takes 4 s at once and 25 %" in said and f"the decoder of {base} takes 64 tokens" in said
    main.check_stages(asked(write_folder(tmp_path / "d", [1.0] * 15), num_experts=2, init_from=base, tokenizer="characters"))


def test_a_partial_base_that_cannot_be_filled_in_is_refused(tmp_path: Path) -> None:
    base, folder = partial_base(tmp_path / "base", "tokenizer.json"), write_folder(tmp_path / "c", [1.0] * 15)
    with pytest.raises(ValueError, match="has no tokenizer .*set tokenizer=characters or tokenizer=bpe"):
        main.check_stages(asked(folder, num_experts=2, init_from=str(base)))
    main.check_stages(asked(folder, num_experts=2, init_from=str(base), tokenizer="bpe"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"d_model": 96}))
    with pytest.raises(ValueError, match="config.json asks for"):
        main.check_stages(asked(folder, num_experts=2, init_from=str(base), tokenizer="bpe"))


def test_a_language_model_over_tokens_that_are_not_made_yet_is_not_measured_by_those_of_the_base(tmp_path: Path) -> None:
    base, folder = str(partial_base(tmp_path / "base")), write_folder(tmp_path / "c", [1.0] * 15)
    prompt = {"max_sequence_tokens": 8, "textual_prompt": "write all that you understand of it:"}
    options = asked(folder, systems="steer_moe", register_system="any", init_from=base, tokenizer="bpe", **prompt)
    main.check_stages(options)
    with pytest.raises(ValueError, match="leaves no room for text in max_sequence_tokens=8"):
        main.check_stages(dataclasses.replace(options, tokenizer="checkpoint"))


def test_a_language_model_that_no_server_could_get_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    folder, given = write_folder(tmp_path / "c", [1.0] * 15), {"systems": "steer_moe", "copy_decoder_mb": 0.0}
    with pytest.raises(
        ValueError, match="a folder that was not copied is on no server; raise copy_decoder_mb.* or set until=compare"
    ):
        main.check_stages(asked(folder, **given, register_system="any"))
    main.check_stages(asked(folder, **given, register_system="any", until="compare"))
    main.check_stages(asked(folder, systems="steer_moe,zero_shot", copy_decoder_mb=0.0, register_system="zero_shot"))


def test_a_partial_base_without_the_language_is_refused(tmp_path: Path) -> None:
    base = str(partial_base(tmp_path / "base"))
    options = asked(write_folder(tmp_path / "c", [1.0] * 15), num_experts=2, init_from=base, language="hi")
    with pytest.raises(ValueError, match=f"language=hi: the base has en;.*init_from={base}"):
        main.check_stages(options)
    main.check_stages(dataclasses.replace(options, tokenizer="characters"))


def test_what_only_decodes_takes_long_recordings(tmp_path: Path) -> None:
    """README's second command measures the shipped base on recordings of any length."""
    folder = write_folder(tmp_path / "c", [1.0] * 15 + [9.0] * 5, "a " * 80)
    main.check_stages(asked(folder, systems="zero_shot", until="evaluate"))
