"""threads.py at a small size. STRESS_SECONDS and STRESS_SEED make it larger, and repeat a run's choices."""

import os

import pytest

import threads

SECONDS = float(os.environ.get("STRESS_SECONDS", 10))


@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("mode", ["explicit", "settle"])
def test_threads(tmp_path, mode):
    print(threads.run(tmp_path, mode, SECONDS, seed=os.environ.get("STRESS_SEED")))
