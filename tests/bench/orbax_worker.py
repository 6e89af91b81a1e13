# SPDX-License-Identifier: Apache-2.0
"""The Orbax side: restores in a process that has imported Orbax and JAX already."""

import gc
import importlib.metadata
import logging
import os
import time
import warnings

import absl.logging
import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp

import worker

absl.logging.set_verbosity(absl.logging.ERROR)
logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

trees = {}
saved = {}


def described(path):
    """The tree of the checkpoint with its shapes and types, as a user's own model would give it."""
    if path not in trees:
        metadata = ocp.StandardCheckpointer().metadata(path).item_metadata
        trees[path] = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
            getattr(metadata, "tree", metadata),
            is_leaf=lambda node: hasattr(node, "shape") and hasattr(node, "dtype"),
        )
    return trees[path]


def standard_numpy(path):
    target = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), described(path))
    checkpointer = ocp.StandardCheckpointer()
    return lambda: checkpointer.restore(path, target)


def pytree(path):
    checkpointer = ocp.PyTreeCheckpointer()
    return lambda: checkpointer.restore(path)


def pytree_numpy(path):
    restore_args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), described(path))
    checkpointer = ocp.PyTreeCheckpointer()
    return lambda: checkpointer.restore(path, restore_args=restore_args)


WAYS = {"standard_numpy": standard_numpy, "pytree": pytree, "pytree_numpy": pytree_numpy}


def one_leaf(path, keys):
    item = described(path)
    for key in keys:
        item = item[key]
    for key in reversed(keys):
        item = {key: item}
    restore_args = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), item)
    args = ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=True)
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    return lambda: checkpointer.restore(path, args=args)


def timed(call, collect=True):
    if collect:
        gc.collect()
    start, cpu = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(call())
    seconds = {"wall": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    del result
    return seconds


def full(path, way):
    return timed(WAYS[way](path))


def leaf(path, leaves, warm):
    """Each of the leaves by itself; before them, untimed, another one."""
    if warm:
        one_leaf(path, warm)()
    return [timed(one_leaf(path, keys), collect=False) for keys in leaves]


def npy_tree(root, dtype):
    """A tree of a directory of .npy files, as JAX arrays."""
    tree = {}
    for folder, _, names in os.walk(root):
        for name in names:
            keys = os.path.relpath(os.path.join(folder, name), root).removesuffix(".npy").split("/")
            array = np.load(os.path.join(folder, name))
            at = tree
            for key in keys[:-1]:
                at = at.setdefault(key, {})
            at[keys[-1]] = jax.numpy.asarray(array.view(ml_dtypes.bfloat16) if dtype == "bfloat16" else array)
    return tree


def save(path, reference, dtype):
    if reference not in saved:
        saved.clear()
        saved[reference] = npy_tree(reference, dtype)

    def run():
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path, saved[reference])
            checkpointer.wait_until_finished()
        return ()

    return timed(run)


def metadata(path):
    checkpointer = ocp.StandardCheckpointer()
    return timed(lambda: checkpointer.metadata(path).item_metadata)


def versions():
    return {name: importlib.metadata.version(name) for name in ("orbax-checkpoint", "tensorstore", "jax", "numpy")}


if __name__ == "__main__":
    worker.serve({"full": full, "leaf": leaf, "metadata": metadata, "save": save, "versions": versions})
