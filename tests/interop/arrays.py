"""Arrays as a mount shows them, and random slices of them."""

import random

import numpy as np

SLICES = 200


def stored(a):
    """An array as its .npy file has it: types that NumPy lacks as bytes."""
    return a.view(f"V{a.dtype.itemsize}") if a.dtype.kind == "V" or a.dtype.name.startswith(("bfloat", "float8")) else a


def same_array(path, want):
    got = np.load(path)
    assert got.dtype == want.dtype and got.shape == want.shape, (
        f"{path}: {got.dtype}{got.shape}, not {want.dtype}{want.shape}"
    )
    assert got.tobytes() == want.tobytes(), path


def random_slice(rng, shape):
    """A NumPy slice as text, and as NumPy takes it."""
    parts = []
    for size in shape[: rng.randint(1, len(shape))]:
        if size and rng.random() < 0.3:
            parts.append(str(rng.randrange(-size, size)))
            continue
        start, stop = ("" if rng.random() < 0.3 else str(rng.randint(-size, size + 1)) for _ in range(2))
        step = rng.choice(["", "", ":", ":2", ":-1", ":3"])
        parts.append(f"{start}:{stop}{step}")
    text = ",".join(parts)
    return text, eval(f"numpy_index[{text}]", {"numpy_index": np.s_})


def compare(top, arrays, seed):
    """{path without suffix: array}: each whole, its bare elements, and SLICES random slices of them."""
    for path, a in arrays.items():
        same_array(top / f"{path}.npy", stored(a))
        if not (top / path).is_dir():
            assert (top / path).read_bytes() == a.tobytes(), path
    rng = random.Random(seed)
    sliced = sorted(path for path, a in arrays.items() if a.ndim)
    for _ in range(SLICES):
        path = rng.choice(sliced)
        text, index = random_slice(rng, arrays[path].shape)
        same_array(top / f"{path}@{text}.npy", stored(arrays[path])[index])
