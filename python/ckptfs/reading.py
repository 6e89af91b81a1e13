# SPDX-License-Identifier: Apache-2.0
"""Checkpoints in a mount, read: as they are, or into the structure of a target."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any, Literal

import numpy as np

from . import array, names, parallel, tree
from .tree import Path, jax_module

NAMED = 10  # paths that an error names


@dataclasses.dataclass(frozen=True)
class Spec:
    """The shape and the type of an array that has not been read; good as a leaf of a target."""

    shape: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A leaf of a checkpoint: an array, a value or a blob. Its file's path begins at the open directory `folder`, if
    there is one.
    """

    folder: int | None
    file: str
    kind: str
    dtype: str | None
    shape: tuple[int, ...]
    value: Any

    def __str__(self) -> str:
        if self.kind == "array":
            return f"{self.dtype} {self.shape}"
        return f"the value {self.value!r}" if self.kind == "value" else "a blob"

    @property
    def number(self) -> bool:
        return self.kind == "value" and isinstance(self.value, (bool, int, float))


class Checkpoint:
    """What .tree.json tells of a checkpoint, or of a directory or leaf in one: its containers and leaves. Reads no data
    of leaves.

    Its directory is held open and all is opened from there, so that all is of one step, wherever `latest` leads or what
    takes the name meanwhile.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = os.fspath(path)
        self.kinds: dict[Path, str] = {}
        self.leaves: dict[Path, Leaf] = {}
        self.folder: int | None = None
        try:
            self.folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            self._read_leaf()
            return
        try:
            listed = array.read_bytes(".tree.json", self.folder)
            self._read_tree(json.loads(listed.decode("utf-8", "surrogateescape")))
        except BaseException as e:
            staged = isinstance(e, FileNotFoundError) and attribute(self.path, "state") == "staged"
            self.close()
            if isinstance(e, OSError):
                raise type(e)(
                    e.errno,
                    "this step is staged, and not yet committed" if staged else os.strerror(e.errno or 0),
                    self.path,
                ) from None
            raise

    def close(self) -> None:
        if self.folder is not None:
            os.close(self.folder)
            self.folder = None

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _read_tree(self, listed: dict) -> None:
        assert self.folder is not None  # it is open
        native = listed.get("format") == "ckptfs"
        self.kinds = {tuple(map(str, c["path"])): c["kind"] for c in listed["containers"]}
        for entry in listed["leaves"]:
            file, kind, path = entry["file"], entry["kind"], tuple(map(str, entry["path"]))
            if file == "metrics.json" and kind == "blob" and attribute(self.folder, "state"):
                continue  # of the step, and not of its tree
            if native and path and isinstance(entry["path"][-1], str):
                path = (*path[:-1], names.unescape(os.path.basename(file).removesuffix(names.SUFFIX.get(kind, ""))))
            self.leaves[path] = self._leaf(file, entry)
        if len(self.leaves) == 1 and len(self.kinds) <= 1 and next(iter(self.leaves)) in ((), ("",)):  # one bare leaf
            self.kinds, self.leaves = {}, {(): next(iter(self.leaves.values()))}

    def _read_leaf(self) -> None:
        """`path` is no directory: the path of a leaf, with its suffix or without."""
        stem = os.path.realpath(os.path.dirname(self.path)) + "/" + os.path.basename(self.path)
        for suffix in names.SUFFIX.values():
            stem = stem.removesuffix(suffix)
        entry = json.loads(array.read_bytes(f"{stem}.meta.json"))
        self.leaves[()] = self._leaf(stem + names.SUFFIX.get(entry["kind"], ""), entry)

    def _leaf(self, file: str, entry: dict) -> Leaf:
        return Leaf(
            self.folder, file, entry["kind"], entry.get("dtype"), tuple(entry.get("shape", ())), entry.get("value")
        )

    def find(self, path: Path) -> Leaf | None:
        """The leaf at a path of keys, also of keys that were too long for a name."""
        leaf = self.leaves.get(path) or (self.leaves.get(("",)) if not path else None)
        if leaf is None and any(len(key) > names.NAME_MAX // 4 for key in path):
            for kind in ("array", "value", "blob"):
                cut = [names.unescape(names.escape(key)) for key in path[:-1]]
                cut.append(names.unescape(names.escape(path[-1], kind).removesuffix(names.SUFFIX.get(kind, ""))))
                leaf = leaf or self.leaves.get(tuple(cut))
        return leaf


def attribute(path: str | int, name: str) -> str | None:
    """user.ckpt.NAME of a file; None where there is none."""
    try:
        return os.getxattr(path, f"user.ckpt.{name}").decode()
    except OSError:
        return None


def metadata(path: str | os.PathLike) -> dict:
    """The metadata that a checkpoint was saved with."""
    return json.loads(os.getxattr(path, "user.ckpt.metadata"))


def metrics(path: str | os.PathLike) -> dict | None:
    """The metrics of a step: its metrics.json. None if it has none."""
    try:
        with open(os.path.join(path, "metrics.json"), encoding="utf-8") as f:
            found = json.load(f)
    except FileNotFoundError:
        return None
    return found if isinstance(found, dict) else None


def describe(path: str | os.PathLike) -> Any:
    """The tree of a checkpoint without its data: a Spec for each array, values as they are, b"" for each blob. A target
    for restore(), too.
    """

    def spec(leaf: Leaf) -> Any:
        if leaf.kind == "array":
            return Spec(leaf.shape, array.dtype_of(leaf.dtype or "V") or np.dtype("V"))
        return leaf.value if leaf.kind == "value" else b""

    with Checkpoint(path) as found:
        return tree.raw(found.kinds, {at: spec(leaf) for at, leaf in found.leaves.items()})


def restore(
    path: str | os.PathLike,
    target: Any = None,
    *,
    missing: Literal["error", "target"] = "error",
    cast: bool = False,
    check: bool = True,
    mmap: bool = False,
    sharding: Any = None,
    workers: int | None = None,
) -> Any:
    """Read a checkpoint, or a directory or leaf of one.

    path      a step, MOUNT/latest, an item or any directory in a step, or one leaf, with its suffix or without.
    target    None: nested dicts, lists and tuples, as the checkpoint has them. Arrays are np.ndarray, values Python's,
              blobs bytes. A pytree: its structure and its types. Only what it has is read; what the checkpoint has
              besides is ignored. Its leaves say what comes back: of a jax.Array, or a jax.ShapeDtypeStruct with a
              sharding, a jax.Array with that sharding; of other arrays, and whatever else has a shape and a dtype, an
              np.ndarray; of Python's numbers, str and bytes the same. None stays None, unread.
    missing   what to do about leaves of the target that the checkpoint lacks, or has as null: "error", or "target" to
              take the target's.
    cast      convert arrays to the target's types. Without, another type is an error.
    check     False: shapes, types and kinds of leaves are the checkpoint's, whatever the target's.
    mmap      arrays are read-only np.memmap, in which only what is touched is read.
    sharding  for all arrays, a jax.sharding.Sharding, or a function (path, shape, dtype) that returns one, or None for
              an np.ndarray. It goes before the target's. Only the slices that this process addresses are read, each
              once.
    workers   threads that read; 4 if None.

    Errors: FileNotFoundError; KeyError with the paths that are missing; ValueError with what does not fit, stored and
    wanted, and then nothing has been read; TypeError for a leaf of the target that is of no such type; OSError as the
    mount says (EBADMSG: damaged).
    """
    if missing not in ("error", "target"):
        raise ValueError(f'missing is "error" or "target", not {missing!r}')
    if mmap and sharding is not None:
        raise ValueError("an array is mapped, or has a sharding, not both")
    with Checkpoint(path) as found:
        done: dict[Path, Any] = {}
        jobs = (
            [(at, leaf, None) for at, leaf in found.leaves.items()]
            if target is None
            else _match(found, target, missing, cast, check, done)
        )

        def load(job: tuple[Path, Leaf, Any]) -> None:
            at, leaf, want = job
            done[at] = _load(at, leaf, want, cast, mmap, sharding)

        for job in jobs:
            if job[1].kind == "value":  # has been read with the tree
                load(job)
        parallel.each(load, (job for job in jobs if job[1].kind != "value"), workers)
        return tree.raw(found.kinds, done) if target is None else tree.rebuild(target, done)


# --- what a target wants


def _match(
    found: Checkpoint, target: Any, missing: str, cast: bool, check: bool, done: dict[Path, Any]
) -> list[tuple[Path, Leaf, Any]]:
    """(path, stored, wanted) of each leaf of the target that is to be read; the others go to `done`. Says of all what
    is missing or does not fit.
    """
    jobs, lacking, faults = [], [], []
    for at, kind, want in tree.walk(target):
        if kind:
            continue
        if want is None:
            done[at] = None
            continue
        if not (_is_array(want) or isinstance(want, (bool, int, float, complex, str, bytes))):
            raise TypeError(f"{_text(at)}: {type(want).__name__} is neither an array nor a value nor a registered node")
        leaf = found.find(at)
        if leaf is None or (leaf.kind == "value" and leaf.value is None and not isinstance(want, str)):
            if missing == "error" or type(want).__name__ == "ShapeDtypeStruct" or isinstance(want, Spec):
                lacking.append(_text(at))
            done[at] = want
        elif check and (fault := _fault(leaf, want, cast)):
            faults.append(f"{_text(at)}: {fault}")
        else:
            jobs.append((at, leaf, want if check else _loose(leaf, want)))
    if lacking:
        raise KeyError(f"{found.path} lacks {_list(lacking)} (missing=\"target\" takes the target's)")
    if faults:
        raise ValueError(f"{found.path}: {_list(faults, '; ')}")
    return jobs


def _is_array(want: Any) -> bool:
    return hasattr(want, "shape") and hasattr(want, "dtype")


def _wanted(want: Any) -> tuple[tuple[int, ...], Any]:
    """The shape and type that an array is stored with."""
    if array.is_key(want):
        data = jax_module().eval_shape(jax_module().random.key_data, want)
        return data.shape, data.dtype
    return tuple(want.shape), want.dtype


def _fault(leaf: Leaf, want: Any, cast: bool) -> str | None:
    """Why a stored leaf cannot be what is wanted."""
    wanted = type(want).__name__
    if _is_array(want):
        shape, dtype = _wanted(want)
        wanted = f"{dtype} {shape}"
        if leaf.kind == "array":
            has_type = cast or (leaf.dtype is not None and array.same_dtype(leaf.dtype, dtype))
            fits = has_type and leaf.shape == shape
        else:
            fits = leaf.number and shape == () and (cast or _takes(np.dtype(dtype), leaf.value))
    elif isinstance(want, bytes):
        fits = leaf.kind == "blob"
    elif isinstance(want, str):
        fits = leaf.kind == "value" and isinstance(leaf.value, str)
    else:
        fits = leaf.number or (leaf.kind == "array" and leaf.shape == ())
    return None if fits else f"stored is {leaf}, wanted {wanted}"


def _takes(dtype: np.dtype, value: bool | int | float) -> bool:
    """May a number of JSON, which has no width, become an array of this type?"""
    of_ml_dtypes, is_bool = dtype.isbuiltin == 2, isinstance(value, bool)
    if isinstance(value, float):
        return dtype.kind in "fc" or of_ml_dtypes
    if dtype.kind in "iu" and not is_bool:
        return np.iinfo(dtype).min <= value <= np.iinfo(dtype).max
    if dtype.kind == "b":
        return is_bool
    return dtype.kind in "iufc" or of_ml_dtypes


def _loose(leaf: Leaf, want: Any) -> Any:
    """What is wanted where only the target's structure counts: its sharding, if it has one."""
    if leaf.kind != "array":
        return None
    if leaf.shape == ():
        return want if isinstance(want, (int, float)) else None
    placed = getattr(want, "sharding", None)
    if placed is None or not _is_array(want) or array.is_key(want):
        return None
    assert leaf.dtype is not None  # as every array has
    return jax_module().ShapeDtypeStruct(leaf.shape, array.dtype_of(leaf.dtype), sharding=placed)


# --- reading one leaf


def _load(at: Path, leaf: Leaf, want: Any, cast: bool, mmap: bool, sharding: Any) -> Any:
    """A leaf as what is wanted. Arrays have the shape that is stored; cast gives them the wanted type.

    Errors: as array.read(); OSError of a leaf that the mount cannot decode.
    """
    if leaf.kind == "blob":
        return array.read_bytes(leaf.file, leaf.folder)
    if leaf.kind == "value":
        if not _is_array(want):
            return leaf.value
        return _host(np.asarray(leaf.value, np.dtype(want.dtype)), want)
    if leaf.dtype is None:  # the mount cannot decode it: opening says why
        return array.read(leaf.file, "", leaf.shape, folder=leaf.folder)
    if want is not None and not _is_array(want):
        return array.read(leaf.file, leaf.dtype, leaf.shape, folder=leaf.folder).item()
    is_key = array.is_key(want)
    dtype = np.dtype(want.dtype) if cast and want is not None and not is_key else None
    place = None if mmap or is_key else _sharding(at, leaf, want, sharding)
    if place is not None:
        return _placed(leaf, place, dtype)
    a = array.read(leaf.file, leaf.dtype, leaf.shape, mmap, leaf.folder)
    if dtype is not None and a.dtype != dtype:
        a = a.astype(dtype)
    return _host(a, None if mmap else want)


def _host(a: np.ndarray, want: Any) -> Any:
    """An array in the host's memory as what is wanted."""
    jax = jax_module()
    if array.is_key(want):
        return jax.random.wrap_key_data(a, impl=jax.random.key_impl(want))
    if jax and isinstance(want, jax.Array):  # has no place of its own: stays free to go where it is used
        return jax.numpy.asarray(a)
    return a[()] if isinstance(want, np.generic) else a


def _sharding(at: Path, leaf: Leaf, want: Any, sharding: Any) -> Any:
    """Where an array belongs; None for the host."""
    assert leaf.dtype is not None  # as every array has
    dtype = array.dtype_of(leaf.dtype)
    if dtype is None or (dtype.isbuiltin != 2 and dtype.kind not in "biufc"):
        return None
    if sharding is not None:
        return sharding(at, leaf.shape, dtype) if callable(sharding) else sharding
    if getattr(want, "committed", getattr(want, "_committed", True)):
        return getattr(want, "sharding", None)
    return None


def _placed(leaf: Leaf, sharding: Any, dtype: np.dtype | None) -> Any:
    """A jax.Array, of the slices that this process addresses; each is read once, and given to all its devices."""
    assert leaf.dtype is not None  # as every array has
    jax = jax_module()
    pieces: dict[array.Box, np.ndarray] = {}
    arrays = []
    for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
        box = array.box_of(index, leaf.shape)
        if box not in pieces:
            piece = array.read_box(leaf.file.removesuffix(".npy"), leaf.dtype, leaf.shape, box, leaf.folder)
            pieces[box] = piece if dtype is None else piece.astype(dtype)
        arrays.append(jax.device_put(pieces[box], device))
    return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)


# --- for people


def _text(path: Path) -> str:
    return "/".join(path) or "(the leaf)"


def _list(texts: list[str], separator: str = ", ") -> str:
    more = len(texts) - NAMED
    return separator.join(texts[:NAMED]) + (f" and {more} more" if more > 0 else "")
