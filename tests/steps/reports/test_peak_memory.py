"""Peak memory is that of the work in between, not of the whole process so far."""

import numpy as np
import pytest

from steps.reports.peak_memory import RESET, begin_peak, peak_mb


@pytest.mark.skipif(not RESET.exists(), reason="this system keeps one peak for the whole process")
def test_the_peak_falls_back_when_it_begins_anew() -> None:
    begin_peak()
    before = peak_mb()
    large = np.ones(32 << 20)  # 268 MB
    with_large = peak_mb()
    del large
    begin_peak()
    assert with_large > before + 200 and peak_mb() < with_large - 200
