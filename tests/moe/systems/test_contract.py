"""What every system in the table must do, whatever it is: the contract of `moe.system`."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from moe.options import Options
from moe.recognition.decoding import decode
from moe.recognition.recognizer import Recognizer, WaveformSet
from moe.serving.requests import ServiceOptions, check_params, nothing_asked
from moe.system import MODEL_FILE, ROLES, DecodingOptions, Routes, System, read_record
from moe.systems.table import SYSTEMS, load_system
from moe.training.batches import collate
from moe.training.precision import computing
from tests.toys.models import dataset, toy_wave, write_corpus
from tests.toys.systems import INSTANCES

GREEDY = DecodingOptions(max_tokens_per_s=3.0)
WAVES = [toy_wave(number, seconds) for number, seconds in enumerate((0.5, 1.1, 0.5, 0.9))]


@pytest.fixture(scope="module", params=SYSTEMS)
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> System:
    """A small one of each row, ready to decode."""
    made = INSTANCES[request.param](tmp_path_factory.mktemp(request.param))
    made.module.eval()
    return made


@pytest.fixture(scope="module")
def data(system: System, tmp_path_factory: pytest.TempPathFactory):
    """Utterances with references, as the system's own inputs."""
    root = tmp_path_factory.mktemp("corpus")
    made = dataset(write_corpus(root), root)
    made.inputs = system.inputs
    return made


def texts(system: System, waves) -> list[str]:
    return [each.text for each in decode(system, WaveformSet(waves, system.inputs), GREEDY)]


def test_every_row_has_a_toy() -> None:
    assert set(INSTANCES) == set(SYSTEMS)


def test_its_record_names_its_row_and_what_it_is_compared_with(system: System) -> None:
    record = system.record
    assert record.system in SYSTEMS and record.role in ROLES and record.title and record.language and record.normaliser
    assert record.control is None or record.control in SYSTEMS


def test_its_module_gives_the_loss_of_a_batch_and_of_each_utterance(system: System, data) -> None:
    outputs = system.module(**collate(data, [data[0], data[2]]))
    assert outputs["loss"].shape == () and outputs["utterance_loss"].shape == (2,)
    assert torch.isfinite(outputs["loss"]) and not outputs["utterance_loss"].requires_grad


def test_its_groups_are_what_trains_each_parameter_once_at_a_rate(system: System) -> None:
    grouped = [parameter for group in system.parameter_groups() for parameter in group.parameters]
    trains = [parameter for parameter in system.module.parameters() if parameter.requires_grad]
    assert len({id(each) for each in grouped}) == len(grouped) and {id(each) for each in grouped} == {id(each) for each in trains}
    assert all(group.learning_rate > 0 and group.n_parameters > 0 for group in system.parameter_groups())


def test_hypotheses_come_in_the_order_of_the_batch_and_have_a_loss_where_it_is_asked_for(system: System, data) -> None:
    found = decode(system, data, GREEDY, with_loss=True)
    assert [each.utterance_id for each in found] == data.utterance_ids
    assert all(math.isfinite(each.utterance_loss) and each.mean_logprob <= 0 and each.n_tokens > 0 for each in found)
    assert all(math.isnan(each.utterance_loss) for each in decode(system, data, GREEDY))


def test_alone_and_in_company_it_recognises_the_same(system: System) -> None:
    assert [texts(system, [wave])[0] for wave in WAVES] == texts(system, WAVES)


def test_it_measures_numbers_under_names_of_its_own(system: System, data) -> None:
    measured = system.measures(decode(system, data, GREEDY))
    assert all(isinstance(value, float) and math.isfinite(value) for value in measured.values())
    assert not {"wer", "cer", "loss"} & set(measured)


def test_what_can_be_asked_is_what_its_row_says_and_nothing_asked_is_allowed(system: System) -> None:
    assert system.ask_type is SYSTEMS[system.record.system].ask_type and issubclass(system.ask_type, Options)
    nothing = system.ask_type()
    system.check(nothing)
    params = {field.name: nothing_asked(field) for field in dataclasses.fields(nothing)}
    assert check_params(params, ServiceOptions(), nothing).ask == nothing


def test_its_other_ways_of_decoding_can_be_decoded(system: System, data) -> None:
    for ask in system.ablations().values():
        assert [each.utterance_id for each in decode(system, data, GREEDY, ask)] == data.utterance_ids


def test_only_what_routes_says_so(system: System, data) -> None:
    weights = [each.routing_weights for each in decode(system, data, GREEDY)]
    assert isinstance(system, Routes) == all(each is not None for each in weights) == any(each is not None for each in weights)
    if isinstance(system, Routes):
        vectors = system.embed(collate(data, [data[0]])).numpy()
        probabilities = system.gate_probabilities(vectors)
        assert probabilities.shape == (1, system.n_experts) and 1 <= system.top_k <= system.n_experts
        np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)


def test_saved_and_read_back_it_is_the_same(system: System, tmp_path: Path) -> None:
    system.save(tmp_path / "model")
    assert (tmp_path / "model" / MODEL_FILE).is_file() and read_record(tmp_path / "model") == system.record
    again = load_system(tmp_path / "model")
    again.module.eval()
    assert again.record == system.record and texts(again, WAVES) == texts(system, WAVES)


def test_a_recording_of_any_length_is_transcribed(system: System) -> None:
    window_s = system.inputs.window_s or 2.0
    long = np.concatenate([toy_wave(number, window_s) for number in range(3)])
    transcript = Recognizer(system).transcribe([long], GREEDY)[0]
    assert transcript.segments[0].start_s == 0 and transcript.segments[-1].end_s == pytest.approx(len(long) / 16_000)


def test_it_describes_itself_in_words(system: System) -> None:
    assert all(isinstance(name, str) and isinstance(text, str) for name, text in system.describe().items())


@pytest.mark.parametrize("name", SYSTEMS)
def test_in_half_precision_it_says_nearly_the_same_and_what_trains_stays_whole(name: str, tmp_path: Path) -> None:
    made, data = INSTANCES[name](tmp_path / "toy"), dataset(write_corpus(tmp_path), tmp_path)
    data.inputs, losses = made.inputs, []
    for precision in ("fp32", "bf16"):
        made.place("cpu", precision)
        made.module.eval()
        losses.append([each.utterance_loss for each in decode(made, data, GREEDY, with_loss=True)])
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    trains = [each for each in made.module.parameters() if each.requires_grad]
    if trains:
        with computing(torch.device("cpu"), "bf16"):  # as the training loop does
            loss = made.module.train()(**collate(data, [data[0], data[2]]))["loss"]
        loss.backward()
    assert all(each.dtype == torch.float32 for each in trains)
    gradients = [each.grad for each in trains if each.grad is not None]
    assert bool(gradients) == bool(trains) and all(bool(torch.isfinite(each).all()) for each in gradients)
