"""Work of many threads shares passes: everyone gets their own answer, in no pass more than allowed, one bad item spoils no other."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest

from moe.serving.micro_batches import MicroBatcher


class Worker:
    """Squares numbers and remembers the batches; `hold` keeps it busy."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[int]]] = []
        self.hold, self.entered = threading.Event(), threading.Event()
        self.hold.set()
        self.threads: set[int] = set()

    def __call__(self, key: Any, items: list[int]) -> list[int]:
        self.entered.set()
        self.hold.wait(10)
        self.threads.add(threading.get_ident())
        self.batches.append((key, items))
        if any(item < 0 for item in items):
            raise ValueError(f"negative among {len(items)}")
        return [item * item for item in items]


@pytest.fixture
def busy() -> tuple[Worker, MicroBatcher]:
    """A batcher whose worker is held inside the batch [0]; what is submitted now waits."""
    worker = Worker()
    batcher = MicroBatcher(worker, 0.0, 4)
    worker.hold.clear()
    batcher.submit("a", 0)
    assert worker.entered.wait(10)
    return worker, batcher


def test_everyone_gets_their_own_answer_from_any_number_of_threads() -> None:
    worker = Worker()
    batcher = MicroBatcher(worker, 0.002, 8)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: batcher.submit(n % 3, n).result(10), range(300)))
    assert found == [n * n for n in range(300)]
    assert len(worker.threads) == 1 and max(len(items) for _, items in worker.batches) <= 8
    assert all(key == item % 3 for key, items in worker.batches for item in items)
    batcher.close()


def test_what_waits_shares_a_pass_by_key_in_the_order_it_came(busy) -> None:
    worker, batcher = busy
    futures = [batcher.submit(key, item) for key, item in [("b", 1), ("a", 2), ("b", 3), ("a", 4), ("b", 5), ("b", 6), ("b", 7)]]
    worker.hold.set()
    assert [future.result(10) for future in futures] == [1, 4, 9, 16, 25, 36, 49]
    assert worker.batches == [("a", [0]), ("b", [1, 3, 5, 6]), ("a", [2, 4]), ("b", [7])]


def test_a_bad_item_fails_alone(busy) -> None:
    worker, batcher = busy
    futures = [batcher.submit("a", item) for item in (1, -2, 3)]
    worker.hold.set()
    assert futures[0].result(10) == 1 and futures[2].result(10) == 9
    with pytest.raises(ValueError, match="negative among 1"):
        futures[1].result(10)
    assert batcher.submit("a", 5).result(10) == 25  # and the worker goes on


def test_a_worker_that_answers_too_little_is_an_error_and_no_hang() -> None:
    batcher = MicroBatcher(lambda key, items: [], 0.0, 4)
    with pytest.raises(ValueError):
        batcher.submit("a", 1).result(10)


def test_the_oldest_waits_for_company_until_the_window_ends() -> None:
    worker = Worker()
    batcher = MicroBatcher(worker, 5.0, 3)  # far longer than it takes to submit three
    futures = [batcher.submit("a", item) for item in (1, 2, 3)]
    assert not wait(futures, 10).not_done and worker.batches == [("a", [1, 2, 3])]


def test_closing_finishes_what_waits_and_takes_no_more(busy) -> None:
    worker, batcher = busy
    future = batcher.submit("a", 3)
    worker.hold.set()
    batcher.close()
    assert future.result(0) == 9
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit("a", 1)


def test_a_request_that_was_given_up_is_not_worked_on(busy) -> None:
    worker, batcher = busy
    gone, kept = batcher.submit("a", 1), batcher.submit("a", 2)
    assert gone.cancel()
    worker.hold.set()
    assert kept.result(10) == 4 and ("a", [2]) in worker.batches
