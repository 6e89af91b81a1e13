"""What a mount shows, bit for bit against the tree that a library restores."""

import json
import os
import random
from pathlib import Path

import jax
import numpy as np

from arrays import SLICES, random_slice
from check_fixtures import escape


def flatten(tree, path=()):
    """(path, leaf) of a restored tree: dicts, lists and the rest."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from flatten(value, (*path, str(key)))
    elif isinstance(tree, (list, tuple)) and tree:
        for index, value in enumerate(tree):
            yield from flatten(value, (*path, str(index)))
    else:
        yield path, tree


def stored(a):
    """An array as its .npy file has it: types that NumPy lacks as bytes, small integers one to a byte."""
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        a = jax.random.key_data(a)
    a = np.asarray(a)
    if a.dtype.name in ("int4", "int2", "int1"):
        return a.astype(np.int8)
    if a.dtype.name in ("uint4", "uint2", "uint1"):
        return a.astype(np.uint8)
    return (
        a.view(f"V{a.dtype.itemsize}")
        if a.dtype.kind == "V"
        or a.dtype.name.startswith(("bfloat", "float8", "float6_", "float4_", "complex32", "bcomplex32"))
        else a
    )


def same_array(path, want):
    got = np.load(path)
    assert got.dtype == want.dtype and got.shape == want.shape, (
        f"{path}: {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
    )
    padded = got.dtype.char in "gG"  # long doubles, whose padding is not copied with a scalar
    assert got.tobytes() == want.tobytes() or (padded and np.array_equal(got, want)), path


def listed(top, path, suffix=""):
    """The file of a leaf; one bare leaf has no path."""
    *parents, key = path or ("",)
    return Path(top).joinpath(*map(escape, parents), escape(key, suffix))


def compare_leaf(top, path, leaf):
    """One leaf of the mount with the one that was restored. Returns it as an array, or None."""
    npy, value = listed(top, path, ".npy"), listed(top, path, ".json")
    if leaf is None:
        assert value.read_text() == "null\n"
    elif isinstance(leaf, str):
        assert json.loads(value.read_text()) == leaf
    elif isinstance(leaf, bytes):
        assert listed(top, path).read_bytes() == leaf
    elif isinstance(leaf, (dict, list, tuple)):
        assert os.listdir(listed(top, path) if path else top) == []
    elif isinstance(leaf, np.generic) and value.exists():
        same_array(f"{str(value).removesuffix('.json')}.npy", stored(leaf))
        assert repr(json.loads(value.read_text())) == repr(leaf.item()), value
    elif isinstance(leaf, (bool, int, float)) and value.exists():
        # Orbax restores NumPy's scalars as Python's; the mount keeps their type
        number = np.load(npy)
        assert number.shape == () and repr(number.item()) == repr(leaf), f"{npy}: {number!r}, not {leaf!r}"
        assert repr(json.loads(value.read_text())) == repr(leaf), value
    else:
        want = stored(np.asarray(leaf) if isinstance(leaf, complex) else leaf)
        same_array(npy, want)
        return want
    return None


def compare(top, tree, seed):
    """All leaves, and SLICES random slices of the arrays. Nothing else is listed."""
    arrays, count = {}, 0
    for path, leaf in flatten(tree):
        count += not (isinstance(leaf, (dict, list, tuple)) and not leaf)
        want = compare_leaf(top, path, leaf)
        if want is not None and want.ndim:
            arrays[path] = want
    assert sum(len(files) for _, _, files in os.walk(top)) == count
    rng = random.Random(seed)
    for _ in range(SLICES if arrays else 0):
        path = rng.choice(sorted(arrays))
        text, index = random_slice(rng, arrays[path].shape)
        same_array(f"{str(listed(top, path, '.npy')).removesuffix('.npy')}@{text}.npy", arrays[path][index])
