"""What `asr` says of a mixture: routing by epoch, who goes where on dev, and files to listen to."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from steps.reports.mixture import clip_names, loads_by_epoch, routed_rows
from tests.toys.models import toy_gate, write_corpus


def test_loads_by_epoch_keep_the_experts_in_their_own_order() -> None:
    """By name expert_10 would stand before expert_2."""
    values = {f"load/als/expert_{expert}": expert / 100 for expert in range(12)}
    history = pd.DataFrame([{"epoch": 0, "load/expert_0": 0.5, **values}, {"epoch": 3, "load/expert_0": 0.1, **values}])
    found = loads_by_epoch(history)
    assert list(found) == [0, 3] and found[3].index.tolist() == ["als"]
    assert found[0].columns.tolist() == [f"expert_{expert}" for expert in range(12)]
    assert found[0].loc["als"].tolist() == [expert / 100 for expert in range(12)]


@pytest.mark.parametrize("top_k", [1, 2, 9])
def test_rows_hold_the_gates_whole_distribution_beside_the_weights_it_leads_to(tmp_path: Path, top_k: int) -> None:
    manifest = write_corpus(tmp_path)
    vectors = np.random.default_rng(0).normal(size=(len(manifest), 5)).astype(np.float32)
    gate = toy_gate(5, 3)
    found = routed_rows(gate, manifest, vectors, top_k, tmp_path)
    expected = torch.softmax(gate(torch.from_numpy(vectors)), -1).detach().numpy()
    got = found[[f"probability_{expert}" for expert in range(3)]].to_numpy()
    weights = found[[f"weight_{expert}" for expert in range(3)]].to_numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert ((weights > 0).sum(1) == min(top_k, 3)).all() and weights.sum(1) == pytest.approx(1)
    assert found["expert"].tolist() == expected.argmax(1).tolist() and found["n_words"].tolist()[:3] == [1, 2, 3]
    assert found["loudness_db"].between(-60, 0).all()


def test_files_are_ordered_and_named_without_what_a_path_cannot_hold(tmp_path: Path) -> None:
    chosen = pd.DataFrame({"expert": [0, 0, 2, 2], "utterance_id": ["a/b c.wav", "../../x", "ü", "\U00020000" * 80]})
    names = clip_names(chosen)
    assert names[:3] == ["expert_0/1_a:2fb c.wav.wav", "expert_0/2_:2e.:2f..:2fx.wav", "expert_2/1_ü.wav"]
    (tmp_path / Path(names[3]).name).touch()  # 320 bytes would be more than a file system takes


def test_an_etiology_with_slashes_is_in_the_picture_too() -> None:
    values = {"load/expert_0": 0.5, "load/als/bulbar/expert_0": 0.2, "load/als/expert_0": 0.3, "load/expert_0/expert_0": 0.4}
    found = loads_by_epoch(pd.DataFrame([{"epoch": 0, **values}]))[0]
    assert found["expert_0"].to_dict() == {"als": 0.3, "als/bulbar": 0.2, "expert_0": 0.4}
