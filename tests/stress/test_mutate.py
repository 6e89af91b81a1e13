"""mutate.py at a small size. MUTANTS and MUTATE_SEED make it larger, and repeat it."""

import os

import pytest

import mutate

MUTANTS = int(os.environ.get("MUTANTS", 240))


@pytest.mark.timeout(MUTANTS + 300)
def test_mutants(tmp_path):
    print(mutate.run(tmp_path, MUTANTS, os.environ.get("MUTATE_SEED"), keep=tmp_path / "kept"))
