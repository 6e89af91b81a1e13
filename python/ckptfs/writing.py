# SPDX-License-Identifier: Apache-2.0
"""Trees written: files in a staged step, and the commit that makes them a step."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import uuid
from typing import Any

import numpy as np

from . import array, names, parallel, tree
from .reading import attribute
from .tree import Path, jax_module

VALUE_MAX = 65536  # bytes of the JSON of a value, docs/format.md
STAGED = ".saving-"  # in the name of what is not committed


@dataclasses.dataclass
class File:
    """One file of a step: its path in it, and its content, which is bytes, an np.ndarray or a jax.Array on one
    device.
    """

    path: str
    content: Any

    def write(self, top: str) -> None:
        path = os.path.join(top, self.path)
        if isinstance(self.content, bytes):
            array.write_bytes(path, self.content)
        else:
            array.write(path, np.asarray(self.content))


class Snapshot:
    """A tree as the files and directories that it becomes. Checks all of it, and touches no file."""

    def __init__(self, target: Any, metrics: dict | None = None, metadata: dict | None = None):
        self.metadata = None if metadata is None else json.dumps(_object(metadata, "metadata")).encode()
        self.directories: list[tuple[str, str]] = []  # (path, kind), what holds others before them
        self.files: list[File] = []
        if metrics is not None:
            self.files.append(
                File("metrics.json", json.dumps(_object(metrics, "metrics"), default=_plain).encode() + b"\n")
            )
        places: dict[Path, str] = {}
        for path, kind, node in tree.walk(target):
            if kind:
                places[path] = os.path.join(places[path[:-1]], names.escape(path[-1])) if path else ""
                self.directories.append((places[path], kind))
            else:
                self._add(os.path.join(places[path[:-1]], "") if path else "", path, node)
        taken = [path for path, _ in self.directories] + [file.path for file in self.files]
        if len(set(taken)) < len(taken):
            twice = next(path for path in taken if taken.count(path) > 1)
            raise ValueError(f"two nodes of the tree would be the file {twice}")

    def _add(self, folder: str, path: Path, leaf: Any) -> None:
        key, where = (path[-1] if path else ""), "/".join(path) or "(the leaf)"
        if array.is_key(leaf):
            leaf = jax_module().random.key_data(leaf)
        if isinstance(leaf, complex):
            leaf = np.asarray(leaf)
        if isinstance(leaf, bytes):
            self.files.append(File(folder + names.escape(key, "blob"), leaf))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)) and not isinstance(leaf, np.generic):
            text = json.dumps(leaf).encode() + b"\n"
            if len(text) > VALUE_MAX:
                raise ValueError(
                    f"{where}: as JSON this is {len(text)} bytes, and a value has at most {VALUE_MAX}: "
                    "save it as bytes, or as an array"
                )
            self.files.append(File(folder + names.escape(key, "value"), text))
        elif jax_module() and isinstance(leaf, jax_module().Array):
            self._add_shards(folder + names.escape(key, "array"), leaf)
        elif isinstance(leaf, (np.ndarray, np.generic)) or hasattr(leaf, "__array__"):
            leaf = np.asarray(leaf)
            if leaf.dtype.hasobject:
                raise TypeError(f"{where}: an array of Python objects is none of bytes")
            self.files.append(File(folder + names.escape(key, "array"), leaf))
        else:
            raise TypeError(f"{where}: {type(leaf).__name__} is neither an array nor a value nor a registered node")

    def _add_shards(self, file: str, leaf: Any) -> None:
        """A jax.Array: one file, or one for each of its shards that this process is the first to have."""
        own = {
            array.box_of(shard.index, leaf.shape): shard for shard in leaf.addressable_shards if shard.replica_id == 0
        }
        for box, shard in own.items():
            whole = all(part == (0, size) for part, size in zip(box, leaf.shape))
            name = file if whole else f"{file.removesuffix('.npy')}@{array.slice_text(box)}.npy"
            self.files.append(File(name, shard.data))

    def hold(self, copy: bool = True, workers: int | None = None) -> "Snapshot":
        """Fetch what is on devices, and copy NumPy's arrays, so that the tree may be changed, deleted or donated.

        copy  False leaves NumPy's arrays: the caller does not change them until they are written.
        """
        for file in self.files:
            if hasattr(file.content, "copy_to_host_async"):
                file.content.copy_to_host_async()

        def fetch(file: File) -> None:
            if not isinstance(file.content, (bytes, np.ndarray)):
                file.content = np.asarray(file.content)  # while this lives, JAX gives its buffer to nobody else
            elif copy and isinstance(file.content, np.ndarray):
                file.content = file.content.copy()

        parallel.each(fetch, self.files, workers)
        return self

    def write(self, top: str, workers: int | None = None) -> None:
        """Write all into a directory. Errors: OSError; ENOSPC also for metadata that no attribute has room for."""
        for path, kind in self.directories:
            directory = os.path.join(top, path)
            if path:
                os.makedirs(directory, exist_ok=True)
            if kind != "dict":
                os.setxattr(directory, "user.ckpt.kind", kind.encode())
        parallel.each(lambda file: file.write(top), self.files, workers)
        if self.metadata is not None:
            try:
                os.setxattr(top, "user.ckpt.metadata", self.metadata)
            except OSError as e:
                if e.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                    raise OSError(
                        e.errno, f"no room for an attribute of {len(self.metadata)} bytes, the metadata", top
                    ) from None
                raise


def _object(value: Any, what: str) -> dict:
    """TypeError for what is no dict."""
    if not isinstance(value, dict):
        raise TypeError(f"{what} is a dict, not {type(value).__name__}")
    return value


def _plain(value: Any) -> Any:
    """A number of NumPy or JAX in metrics."""
    if hasattr(value, "shape") and hasattr(value, "item") and value.shape == ():
        return value.item()
    raise TypeError(f"{type(value).__name__} is no metric")


def save(
    path: str | os.PathLike,
    target: Any,
    *,
    metrics: dict | None = None,
    metadata: dict | None = None,
    overwrite: bool = False,
    together: bool | None = None,
    workers: int | None = None,
) -> None:
    """Write a pytree as a step, and commit it. When this returns, the step is on stable storage, and all see it, whole.
    Until then nobody does.

    path       MOUNT/STEP; STEP is digits, or a prefix that ends in "_", "-" or "=", and digits.
    target     a pytree, see restore(). Arrays become KEY.npy; int, float, bool, str and None KEY.json; bytes the file
               KEY. Arrays of JAX with several shards are written as pieces, shard by shard, one replica of each.
    metrics    a dict of numbers, written as metrics.json, which retention and best_step() go by.
    metadata   a dict that JSON can hold, of up to 64 KiB; the attribute user.ckpt.metadata.
    overwrite  replace the step if it exists: at once in a mount with -o overwrite; in others it is deleted just before
               the new one takes its name.
    together   several processes write this step, each what it holds, in mounts with -o writers=N (see
               docs/using.md). None: if JAX has several.
    workers    threads that write; 4 if None.

    Errors: FileExistsError; TypeError for what is no leaf, ValueError for a string of over 64 KiB, before anything is
    written; OSError as the mount says, with its reason: EROFS not a native root, ENODEV no mount of ckptfs, EBADMSG,
    ENODATA, ENOSPC. Nothing is left behind then.
    """
    commit(path, Snapshot(target, metrics, metadata), overwrite, together, workers)


def commit(
    path: str | os.PathLike,
    snapshot: Snapshot,
    overwrite: bool = False,
    together: bool | None = None,
    workers: int | None = None,
) -> None:
    """As save(), of a tree that is a snapshot already. The errors are the same; ValueError for a path that names no
    step.
    """
    path = os.path.normpath(os.fspath(path))
    folder, name = os.path.split(path)
    if names.step_number(name) is None:
        raise ValueError(f'{path}: a step is named by digits, or a prefix that ends in "_", "-" or "=", and digits')
    if together is None:
        jax = jax_module()
        together = bool(jax) and jax.process_count() > 1
    exists = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
    if together:
        if attribute(path, "state") == "committed":
            raise exists
        os.makedirs(path, exist_ok=True)
        _check_staged(path)
        snapshot.write(path, workers)
        _sync(path)
        return
    if not overwrite and os.path.lexists(path):  # rename would say so too, after all has been written
        raise exists
    staged = os.path.join(folder, f".{name}{STAGED}{uuid.uuid4().hex[:12]}")
    try:
        os.mkdir(staged)
        _check_staged(staged)
        snapshot.write(staged, workers)
        _rename(staged, path, overwrite)
    except BaseException as e:
        reason = attribute(staged, "error")
        shutil.rmtree(staged, ignore_errors=True)
        if isinstance(e, OSError) and reason:
            raise type(e)(e.errno, f"{os.strerror(e.errno or 0)}: {reason}", path) from None
        raise


def _check_staged(path: str) -> None:
    """Elsewhere files can be written too, but nothing would make a step of them."""
    if attribute(path, "state") is None:
        raise OSError(
            errno.ENODEV, "not in a ckptfs mount, so nothing would be committed; is it mounted?", os.path.dirname(path)
        )


def _sync(path: str) -> None:
    """Commit the step with the other writers. OSError with the mount's reason if it is not committed."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as e:
        raise type(e)(
            e.errno, f"{os.strerror(e.errno or 0)}: {attribute(path, 'error') or 'not committed'}", path
        ) from None
    finally:
        os.close(fd)


def _rename(staged: str, path: str, overwrite: bool) -> None:
    """Commit the step under its name, in the place of the old one if overwrite."""
    try:
        os.rename(staged, path)
    except OSError as e:
        if not overwrite or e.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        shutil.rmtree(path)
        os.rename(staged, path)
