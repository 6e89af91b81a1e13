"""posix_calls.py at a small size. POSIX_SHARE (percent of the calls; 100: each) and POSIX_SEED make it larger, and
repeat it.
"""

import os

import pytest

import posix_calls

SHARE = float(os.environ.get("POSIX_SHARE", 3))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become other users")
@pytest.mark.timeout(SHARE * 120 + 120)
@pytest.mark.parametrize("state", ["staged", "committed"])
def test_calls(tmp_path, state):
    print(posix_calls.run(tmp_path, SHARE, os.environ.get("POSIX_SEED"), state))
