# SPDX-License-Identifier: Apache-2.0
"""A training loop that saves in the background: by Orbax's AsyncCheckpointer, or by the one of python/ckptfs. One
process for each of them.
"""

import logging
import os
import sys
import threading
import time
import warnings

import jax
import numpy as np

import worker

PAUSE = 0.002  # seconds between two looks for a step
BATCH = 256


def orbax_checkpointer():
    import absl.logging
    import orbax.checkpoint as ocp

    absl.logging.set_verbosity(absl.logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    return ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())


def ckptfs_checkpointer():
    sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(worker.HERE)), "python"))
    import ckptfs

    return ckptfs.AsyncCheckpointer()


LIBRARIES = {"orbax": orbax_checkpointer, "ckptfs": ckptfs_checkpointer}


def read_params(root):
    params = {}
    for folder, _, names in os.walk(root):
        for name in names:
            *keys, last = os.path.relpath(os.path.join(folder, name), root).removesuffix(".npy").split("/")
            at = params
            for key in keys:
                at = at.setdefault(key, {})
            at[last] = jax.numpy.asarray(np.load(os.path.join(folder, name)))
    return params


def train_step(params, x):
    """As long as a small model's: products of matrices, and every parameter is written anew. The old ones are donated,
    as an optimizer does it.
    """
    w = params["layer_0"]["mlp"]["up"]["kernel"]
    for _ in range(2):
        x = jax.numpy.tanh(x @ w @ w.T)
    loss = jax.numpy.mean(x * x)
    return jax.tree.map(lambda p: p * 0.999 + loss * 1e-6, params), loss


class Watch:
    """Knows when the steps came, by a thread of its own: a look into a mount may wait for a commit, and must not be the
    loop's.
    """

    def __init__(self):
        self.came, self.ended = {}, threading.Event()

    def begin(self, path):
        threading.Thread(target=self.look, args=(path,), daemon=True).start()

    def look(self, path):
        while not self.ended.wait(PAUSE):
            if os.path.exists(path):
                self.came[path] = time.perf_counter()
                return


class Loop:
    def __init__(self, reference):
        self.step = jax.jit(train_step, donate_argnums=0)
        self.params = read_params(reference)
        self.x = jax.numpy.ones((BATCH, self.params["layer_0"]["mlp"]["up"]["kernel"].shape[0]), "float32")
        self.steps = []  # when each began and ended

    def run(self, count):
        for _ in range(count):
            start = time.perf_counter()
            self.params, loss = self.step(self.params, self.x)
            jax.block_until_ready((self.params, loss))
            self.steps.append((start, time.perf_counter()))


def mean(values):
    return sum(values) / max(1, len(values))


def train(library, paths, reference, steps):
    """Saves to each of the paths, `steps` steps before each and after the last. In seconds: each call of save, each
    save from its call until the step is there, a step while one is saved and a step else, and all of the loop until
    nothing is left to wait for."""
    loop, watch, calls = Loop(reference), Watch(), []
    checkpointer = LIBRARIES[library]()
    loop.run(2)  # compiles, and touches the memory that is needed
    loop.steps.clear()
    begin = time.perf_counter()
    try:
        loop.run(steps)
        for path in paths:
            start = time.perf_counter()
            checkpointer.save(path, loop.params)
            calls.append((start, time.perf_counter()))
            watch.begin(path)
            loop.run(steps)
        checkpointer.wait_until_finished()
        end = time.perf_counter()
        time.sleep(10 * PAUSE)
    finally:
        watch.ended.set()
        checkpointer.close()
    saves = [(start, watch.came.get(path, end)) for path, (start, _) in zip(paths, calls)]
    beside, alone = [], []
    for first, last in loop.steps:
        (beside if any(first < came and last > start for start, came in saves) else alone).append(last - first)
    return {
        "blocked": [last - first for first, last in calls],
        "saved": [came - start for start, came in saves],
        "beside": mean(beside),
        "alone": mean(alone),
        "whole": end - begin,
    }


if __name__ == "__main__":
    worker.serve({"train": train})
