# SPDX-License-Identifier: Apache-2.0
"""The data of the bench: checkpoints by the real Orbax, and the same trees as plain .npy files.

Run as a program (`datasets.py SCRATCH [--fresh] [--quick]`) it makes what is missing. Only then are JAX and Orbax
imported: the bench itself needs the names and sizes alone.
"""

import argparse
import json
import os
import shutil
from dataclasses import dataclass

import numpy as np

VERSION = 1  # of the data: raise it when a tree below changes, kept sets are then made anew


@dataclass(frozen=True)
class Shape:
    """A transformer: 12 leaves a layer, and two more; the small set is `small` leaves of 1 KiB beside it."""

    width: int
    layers: int
    vocabulary: int
    small: int


FULL = Shape(width=1024, layers=12, vocabulary=32000, small=10_000)  # 146 leaves, 49 of them above 1 MiB, 736 MB
QUICK = Shape(width=128, layers=3, vocabulary=2000, small=300)
SMALL_PER_DIR = 100

LARGE_LEAF = ("mlp", "up", "kernel")  # 16 MiB as float32
SMALL_LEAF = ("ln1", "scale")  # 4 KiB as float32


class Dataset:
    """One tree in two renderings: `orbax`, a checkpoint, and `npy`, a directory of the same listed names."""

    def __init__(self, scratch, name, dtype):
        self.name, self.dtype = name, dtype
        self.dir = os.path.join(scratch, name)
        self.orbax = os.path.join(self.dir, "orbax")
        self.npy = os.path.join(self.dir, "npy")
        self.ready = os.path.join(self.dir, "ready.json")


def datasets(scratch):
    return {
        name: Dataset(scratch, name, dtype)
        for name, dtype in (("float32", "float32"), ("bfloat16", "bfloat16"), ("small", "float32"))
    }


def leaf_keys(layer, tail):
    return (f"layer_{layer}", *tail)


def transformer(shape, dtype):
    random = np.random.default_rng(7)
    d = shape.width

    def weights(*dims):
        return (random.standard_normal(dims, dtype=np.float32) * 0.02).astype(dtype)

    def layer():
        return {
            "attn": {
                "qkv": {"kernel": weights(d, 3 * d), "bias": weights(3 * d)},
                "out": {"kernel": weights(d, d), "bias": weights(d)},
            },
            "mlp": {
                "up": {"kernel": weights(d, 4 * d), "bias": weights(4 * d)},
                "down": {"kernel": weights(4 * d, d), "bias": weights(d)},
            },
            "ln1": {"scale": weights(d), "bias": weights(d)},
            "ln2": {"scale": weights(d), "bias": weights(d)},
        }

    tree = {f"layer_{i}": layer() for i in range(shape.layers)}
    tree["embed"] = {"kernel": weights(shape.vocabulary, d)}
    tree["ln_f"] = {"scale": weights(d)}
    return tree


def many_small(shape):
    random = np.random.default_rng(11)
    tree = {}
    for i in range(shape.small):
        block = tree.setdefault(f"block_{i // SMALL_PER_DIR:03}", {})
        block[f"w_{i % SMALL_PER_DIR:02}"] = random.standard_normal(256, dtype=np.float32)
    return tree


def save_npy(tree, directory):
    os.makedirs(directory)
    for key, node in tree.items():
        path = os.path.join(directory, key)
        if isinstance(node, dict):
            save_npy(node, path)
        else:  # bfloat16 has no code in NumPy's format
            np.save(path + ".npy", node.view("V2") if node.dtype.kind == "V" else node)


def save_orbax(tree, path):
    import jax
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, jax.tree.map(jax.numpy.asarray, tree))
        checkpointer.wait_until_finished()


def tree_bytes(tree):
    return sum(tree_bytes(node) if isinstance(node, dict) else node.nbytes for node in tree.values())


def count_leaves(tree):
    return sum(count_leaves(node) if isinstance(node, dict) else 1 for node in tree.values())


def is_ready(dataset, shape):
    try:
        with open(dataset.ready) as file:
            made = json.load(file)
    except (OSError, ValueError):
        return False
    return made["version"] == VERSION and made["shape"] == vars(shape)


def make(dataset, shape):
    import ml_dtypes

    print(f"bench: making the {dataset.name} set", flush=True)
    shutil.rmtree(dataset.dir, ignore_errors=True)
    os.makedirs(dataset.dir)
    dtype = ml_dtypes.bfloat16 if dataset.dtype == "bfloat16" else np.dtype(dataset.dtype)
    tree = many_small(shape) if dataset.name == "small" else transformer(shape, dtype)
    save_npy(tree, dataset.npy)
    save_orbax(tree, dataset.orbax)
    made = {"version": VERSION, "shape": vars(shape), "leaves": count_leaves(tree), "bytes": tree_bytes(tree)}
    with open(dataset.ready, "w") as file:
        json.dump(made, file)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch")
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    shape = QUICK if args.quick else FULL
    for dataset in datasets(args.scratch).values():
        if args.fresh or not is_ready(dataset, shape):
            make(dataset, shape)
    os.sync()


if __name__ == "__main__":
    main()
