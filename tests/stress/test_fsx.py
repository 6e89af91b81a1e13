"""fsx.py at a small size. FSX_CALLS and FSX_SEED make it larger, and repeat it."""

import os

import pytest

import fsx

CALLS = int(os.environ.get("FSX_CALLS", 4000))
SEED = os.environ.get("FSX_SEED")


@pytest.mark.parametrize("mode", fsx.MODES)
def test_fsx(tmp_path, mode):
    print(fsx.run(tmp_path, mode, CALLS, SEED))
