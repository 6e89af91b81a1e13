"""While the real CheckpointManager, or Flax by itself, saves and deletes steps, a reader of the mount sees whole steps
only, and `latest` follows.
"""

import errno
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import util

SECONDS = float(os.environ.get("LIVE_SECONDS", 30))
LEAVES = {"big.npy", "step.json", *(f"params/w{n}.npy" for n in range(8))}
GONE = {errno.ENOENT}


class Reader:
    """Reads the mount at random and counts what it saw; a fault is an AssertionError, or any error but that of a step
    that has gone.
    """

    def __init__(self, top, seed, prefix):
        self.top, self.rng, self.prefix = top, random.Random(seed), prefix
        self.read = self.gone = 0
        self.seen = set()

    def steps(self):
        return sorted(int(name.removeprefix(self.prefix)) for name in os.listdir(self.top) if name != "latest")

    def folder(self, step):
        return self.top / f"{self.prefix}{step}"

    def whole_step(self, step):
        """Every leaf is listed, and each holds this step's number and nothing else."""
        folder, found = self.folder(step), set()
        for below, _, files in os.walk(folder, onerror=self.fail):
            found |= {os.path.relpath(os.path.join(below, name), folder) for name in files}
        assert found == LEAVES, f"step {step}: {found ^ LEAVES}"
        for leaf in sorted(LEAVES):
            self.leaf(folder / leaf, step)
        self.seen.add(step)

    def fail(self, error):
        raise error

    def leaf(self, path, step):
        if path.suffix == ".json":
            assert path.read_text() == f"{step}\n", path
        else:
            a = np.load(path)
            assert a.size and (a == step).all(), f"{path}: {np.unique(a)[:5]}"
            rows = np.load(f"{str(path).removesuffix('.npy')}@-3:.npy")
            assert (rows == step).all() and len(rows) == 3, path
        self.read += 1

    def latest(self):
        """Through the link: whatever step it is, it is one."""
        value = int((self.top / "latest/step.json").read_text())
        assert (
            value == int(os.readlink(self.top / "latest").removeprefix(self.prefix))
            or value in self.steps()
            or value + 3 > max(self.steps(), default=0)
        )

    def slow_leaf(self, step):
        """Reads on after a while, when the step may be deleted."""
        with open(self.folder(step) / "big", "rb", buffering=0) as f:
            data = os.pread(f.fileno(), 4096, 0)
            time.sleep(self.rng.uniform(0, 2))
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            data += os.pread(f.fileno(), 1 << 21, len(data))
            assert (np.frombuffer(data, np.int32) == step).all() and len(data) == 1_200_000
            self.read += 1

    def turn(self):
        try:
            steps = self.steps()
            if not steps:
                return
            step = self.rng.choice(steps)
            self.rng.choice([self.whole_step, self.whole_step, self.slow_leaf, lambda _: self.latest()])(step)
        except OSError as e:
            if e.errno not in GONE:
                raise
            self.gone += 1


@pytest.mark.timeout(SECONDS + 180)
@pytest.mark.parametrize("layout", ["ocdbt", "plain", "flax"])
def test_live(mount, tmp_path, layout):
    root, prefix = tmp_path / "run", "checkpoint_" if layout == "flax" else ""
    root.mkdir()
    m = mount(root, "refresh=1", patience=SECONDS + 120)
    output = tmp_path / "writer.log"  # a file: a pipe that nobody reads would stop the writer when it is full
    with open(output, "w") as log:
        writer = subprocess.Popen(
            [sys.executable, Path(__file__).parent / "live_writer.py", root, str(SECONDS), layout],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
    reader, lag = Reader(m.top, 1, prefix), 0.0
    try:
        behind = None
        while writer.poll() is None:
            reader.turn()
            # how long `latest` stays behind what the source has
            newest = max(
                (int(n.removeprefix(prefix)) for n in os.listdir(root) if n.removeprefix(prefix).isdigit()),
                default=None,
            )
            try:
                shown = int(os.readlink(m / "latest").removeprefix(prefix))
            except FileNotFoundError:
                shown = None
            if newest is None or (shown is not None and shown >= newest):
                behind = None
            elif behind is None or newest != behind[0] and shown is not None and shown >= behind[0]:
                behind = (newest, time.monotonic())
            else:
                lag = max(lag, time.monotonic() - behind[1])
        writer.wait(30)
        said = output.read_text(errors="replace")
    finally:
        util.end_process(writer)
    assert writer.returncode == 0, said[-3000:]
    saved = int(said.split()[-1])
    print(
        f"{saved} steps saved, {len(reader.seen)} seen whole, {reader.read} leaves read, "
        f"{reader.gone} times gone, latest at most {lag:.1f} s behind"
    )
    assert saved > SECONDS / 5 and len(reader.seen) > saved / 10 and reader.read > 100
    assert lag < 10
    util.wait_for(lambda: os.readlink(m / "latest") == f"{prefix}{saved - 1}", 15)
    assert reader.steps() == [saved - 2, saved - 1]
    for step in reader.steps():
        reader.whole_step(step)
