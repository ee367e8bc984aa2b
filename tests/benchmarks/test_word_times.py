"""The benchmark of word times takes sentences of which espeak-ng says two words as one."""

import pytest

from benchmarks import word_times


def test_an_utterance_whose_words_have_no_time_each_is_not_timed(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(word_times, "VOICES", word_times.VOICES[1:2])
    monkeypatch.setattr(word_times, "TEXTS", ("where is my blue cup", "sarah is in the kitchen tonight"))
    assert [len(starts_s) for _, _, starts_s in word_times.utterances()] == [5, 5]
    assert word_times.main([]) == 0
    n_all, n_right, n_timed, n_words = (int(cell) for cell in capsys.readouterr().out.splitlines()[-1].split("|")[1:5])
    assert n_all == 2 and n_timed <= n_right and n_words == 5 * n_timed
