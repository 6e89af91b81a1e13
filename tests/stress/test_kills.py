"""kills.py at a small size. STRESS_SECONDS, STRESS_KILLS and STRESS_SEED make it larger, and repeat a run's choices."""

import errno
import os

import pytest

import kills
from workers import Killed, Worker

SECONDS = float(os.environ.get("STRESS_SECONDS", 10))
KILLS = int(os.environ["STRESS_KILLS"]) if "STRESS_KILLS" in os.environ else None
SEED = os.environ.get("STRESS_SEED")


@pytest.mark.timeout(SECONDS + 10 * (KILLS or 0) + 300)
@pytest.mark.parametrize(
    "mode, steps", [("explicit", "own"), ("explicit", "one"), ("settle", "own"), ("settle", "one"), ("writers", "one")]
)
def test_kills(tmp_path, mode, steps):
    print(kills.run(tmp_path, mode, steps, SECONDS, KILLS, SEED))


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """One with a file, in a plain directory."""
    worker = Worker(0, "1", False, 0)
    worker.mount, worker.settles = str(tmp_path), False
    worker.begin()
    monkeypatch.setattr(worker, "a_path", lambda: "a")
    worker.create()
    return worker


def end_in(function):
    """The daemon goes before it has answered, but after it was done."""

    def call(*args):
        function(*args)
        raise OSError(errno.ENOTCONN, "the daemon has gone")

    return call


def test_model_knows_link_without_answer(worker, monkeypatch):
    monkeypatch.setattr(worker, "a_path", lambda: "b")
    monkeypatch.setattr(os, "link", end_in(os.link))
    with pytest.raises(Killed):
        worker.link()
    worker.after_crash(worker.mount)
    assert set(worker.tree) == {"", "a", "b"} and worker.a_file(change=True) is None


def test_model_knows_rename_of_link_without_answer(worker, monkeypatch):
    monkeypatch.setattr(worker, "a_path", lambda: "b")
    worker.link()
    monkeypatch.setattr(worker, "a_path", lambda: "c")
    monkeypatch.setattr(os, "rename", end_in(os.rename))
    with pytest.raises(Killed):
        worker.replace()
    worker.after_crash(worker.mount)
    assert len(worker.tree) == 3 and worker.a_file(change=True) is None
