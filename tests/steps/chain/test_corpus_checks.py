"""What base, experts and corpus cannot do together is refused before anything runs, all in one message; its advice leads on."""

import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from steps import main
from steps.pretrain import SHIPPED
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
        main.check_stages(asked(folder, num_experts=4))
    said = str(fault.value)
    assert f"the base {SHIPPED} takes 4 s at once and 25 % of the recordings are longer, up to 9.0 s; it is for the demo" in said
    assert "max_duration_s=4 and max_quarantined=0.26" in said and "the longest reference has" in said
    assert "num_experts=4: the train split has 3 speakers to cluster" in said


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
