"""What several tests of the mixture read."""

import pytest

from moe.training.dataset import SpeechDataset
from tests.toys.models import dataset, write_corpus


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SpeechDataset:
    """Six chords, each with its own words."""
    root = tmp_path_factory.mktemp("corpus")
    return dataset(write_corpus(root), root)
