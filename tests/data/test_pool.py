import os
import signal
import time

import numpy as np
import pytest

from skipway.data import pool as pool_module
from skipway.data.pool import Overrun, Pool, SharedArray, num_workers


def job(item):
    """What a file may do to its reader."""
    if item == "sleep":
        time.sleep(60)
    if item == "spin":
        while True:
            pass
    if item == "allocate":
        kept = []
        while True:
            kept.append(bytearray(64 << 20))
    if item == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "raise":
        raise KeyError("a fault of ours")
    return item * 2


def run(tasks, workers=2, **options):
    with Pool(job, workers=workers, **options) as pool:
        return list(pool.map(tasks))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order(workers):
    tasks = [list(range(k, k + k % 4)) for k in range(50)]
    assert run(tasks, workers) == [[2 * i for i in task] for task in tasks]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ("sleep", "took more than 1.5 s to read"),
        ("spin", "took more than 1.5 s to read"),
        ("allocate", "needs more than 0.25 GiB to read"),
        ("crash", "ended its reader (signal 11)"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_an_item_that_passes_a_bound_costs_itself_alone(item, reason, workers):
    tasks = [[1, 2], [3, item, 4], [5], [item], [6, 7]]
    started = time.monotonic()
    limit = 1.5 if item in ("sleep", "spin") else 10  # what fails at once has time for it on a busy machine
    results = run(tasks, workers, time_limit_s=limit, memory_limit=1 << 28)
    assert results == [[2, 4], [6, Overrun(reason), 8], [10], [Overrun(reason)], [12, 14]]
    assert time.monotonic() - started < 20


def test_a_fault_of_the_job_is_raised_here():
    with pytest.raises(KeyError, match="a fault of ours"):
        run([[1], ["raise"]])


def test_a_pool_serves_again_after_it_was_left_in_the_middle():
    with Pool(job, workers=2) as pool:
        for _ in range(3):
            results = pool.map([[i] for i in range(20)])
            assert next(results) == [0]
            results.close()
        assert list(pool.map([[7]])) == [[14]]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_workers_end_with_their_pool():
    with Pool(lambda _: os.getpid(), workers=2) as pool:
        pids = {pid for results in pool.map([[0], [0], [0], [0]]) for pid in results}
        assert len(pids) == 2
        assert os.getpid() not in pids
    assert not any(alive(pid) for pid in pids)


@pytest.mark.faults
def test_workers_end_with_a_parent_that_is_killed():
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        pool = Pool(lambda _: os.getpid(), workers=2)
        pids = [str(pid) for results in pool.map([[0], [0]]) for pid in results]
        os.write(write, " ".join(pids).encode())
        time.sleep(60)
        os._exit(0)
    pids = [int(word) for word in os.read(read, 100).split()]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    deadline = time.monotonic() + 5
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)


@pytest.mark.faults
def test_a_worker_that_is_killed_from_outside_is_replaced():
    with Pool(lambda item: os.getpid(), workers=1) as pool:
        [[first]] = pool.map([[0]])
        os.kill(first, signal.SIGKILL)
        [[second]] = pool.map([[0]])
        assert second != first


def test_shared_memory_is_written_by_workers():
    array = SharedArray((8, 2), np.int32).array

    def fill(place: int) -> None:
        array[place] = place

    with Pool(fill, workers=2) as pool:
        list(pool.map([[i] for i in range(8)]))
    assert array[:, 1].tolist() == list(range(8))


def test_number_of_workers():
    assert 1 <= num_workers(-1) <= 8
    assert num_workers(0) == 0
    assert num_workers(5) == 5


class Fill:
    """A job as loaders have it: it writes into shared memory."""

    def __init__(self, slots: SharedArray):
        self.slots = slots

    def __call__(self, place: int) -> int:
        if place == 2:
            time.sleep(60)
        self.slots.array[place] = place
        return os.getpid()


@pytest.mark.faults
def test_without_fork_workers_share_memory_and_are_killed_too(monkeypatch):
    monkeypatch.setattr(pool_module, "_FORKS", False)
    slots = SharedArray((4, 2), np.int64)
    with Pool(Fill(slots), workers=1, time_limit_s=3) as pool:
        [[first], [killed], [third]] = pool.map([[1], [2], [3]])
    assert slots.array[:, 0].tolist() == [0, 1, 0, 3]
    assert killed == Overrun("took more than 3 s to read")
    assert len({first, third, os.getpid()}) == 3
