"""The learning rate of adapters: what is given, else by the base that they stand on."""

import pytest

from moe.systems.whisper.base_model import read_training_record
from moe.systems.whisper_moe.learning_rate import AdapterRateOptions
from steps.pretrain import SHIPPED


@pytest.mark.parametrize(
    ("base", "rate"),
    [({"init_from": "scratch"}, 3e-3), ({"init_from": "whisper_tiny_en"}, 1e-3), ({"updates": 9}, 1e-3), ({}, 1e-3)],
)
def test_a_base_that_knew_speech_before_learns_slower(base: dict, rate: float) -> None:
    assert AdapterRateOptions().adapter_rate(base) == rate
    assert AdapterRateOptions(expert_learning_rate=0.02).adapter_rate(base) == 0.02


def test_the_shipped_base_was_made_from_random_weights() -> None:
    assert AdapterRateOptions().adapter_rate(read_training_record(SHIPPED)) == 3e-3
