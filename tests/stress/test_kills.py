"""kills.py at a small size. STRESS_SECONDS, STRESS_KILLS and STRESS_SEED make it larger, and repeat a run's choices."""
import os

import pytest

import kills

SECONDS = float(os.environ.get("STRESS_SECONDS", 10))
KILLS = int(os.environ["STRESS_KILLS"]) if "STRESS_KILLS" in os.environ else None
SEED = os.environ.get("STRESS_SEED")


@pytest.mark.timeout(SECONDS + 10 * (KILLS or 0) + 300)
@pytest.mark.parametrize("mode, steps", [("explicit", "own"), ("explicit", "one"), ("settle", "own"), ("settle", "one"), ("writers", "one")])
def test_kills(tmp_path, mode, steps):
    print(kills.run(tmp_path, mode, steps, SECONDS, KILLS, SEED))
