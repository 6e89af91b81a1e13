# SPDX-License-Identifier: Apache-2.0
"""Arrays as the files of a mount: types that NumPy has no code for, whole files, mapped files, slices."""

from __future__ import annotations

import io
import os
from typing import Any, Sequence

import numpy as np

try:
    import ml_dtypes
except ImportError:  # such arrays are then read as the bytes they are stored in
    ml_dtypes = None  # type: ignore[assignment]

from .tree import jax_module

HEADER_MAX = 1 << 16
BLOCK = 1 << 24  # bytes of an array that is written piece by piece
Box = tuple[tuple[int, int], ...]  # (start, stop) in each dimension


# --- types


def dtype_of(name: str) -> np.dtype | None:
    """The type that user.ckpt.dtype names: NumPy's, or one of ml_dtypes. None: this Python has no such type."""
    try:
        return np.dtype(getattr(ml_dtypes, name, name))
    except TypeError:
        return None


def same_dtype(name: str, dtype: Any) -> bool:
    """Is a stored type this one? Where the stored type has no name here, its elements are bytes (V)."""
    here = dtype_of(name)
    if here is None:
        return np.dtype(dtype).kind == "V"
    return here == np.dtype(dtype)


def is_key(leaf: Any) -> bool:
    """Is it an array of JAX's typed random keys?"""
    jax = jax_module()
    return jax is not None and hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def stored(a: np.ndarray) -> tuple[np.ndarray, str | None]:
    """An array as its file has it, in the same shape, and the type's name where the file cannot tell it.

    int4 and int2 are widened to int8, uint4 and uint2 to uint8. Other types of ml_dtypes are the bytes that they are.
    """
    if a.dtype.isbuiltin == 2:  # of ml_dtypes
        name = a.dtype.name
        if name in ("int4", "int2"):
            return a.astype(np.int8), name
        if name in ("uint4", "uint2"):
            return a.astype(np.uint8), name
        return a.view(f"V{a.dtype.itemsize}"), None if name == "bfloat16" else name
    if a.dtype.names is None and a.dtype.byteorder != "|":
        return a.astype(a.dtype.newbyteorder("<"), copy=False), None
    return a, None


def _shown(a: np.ndarray, name: str) -> np.ndarray:
    """A stored array as what its type's name says, in the same shape; as it is where this Python has no such type."""
    dtype = dtype_of(name)
    if dtype is None or dtype == a.dtype:
        return a
    is_same_bytes = dtype.isbuiltin == 2 and dtype.itemsize == a.dtype.itemsize
    return a.view(dtype) if is_same_bytes else a.astype(dtype)


# --- files


def write(path: str, a: np.ndarray) -> None:
    """Write a new .npy file. The array may have any shape and layout. What is not contiguous is copied 16 MiB at a
    time.

    Errors: FileExistsError, and those of open, write and setxattr.
    """
    a, name = stored(a)
    head = io.BytesIO()
    descr = "<V2" if a.dtype == "V2" else np.lib.format.dtype_to_descr(a.dtype)
    header = {"descr": descr, "fortran_order": False, "shape": a.shape}
    try:
        np.lib.format.write_array_header_1_0(head, header)
    except ValueError:  # longer than version 1.0 can say
        np.lib.format.write_array_header_2_0(head, header)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if a.flags.c_contiguous:
            _write(fd, head.getbuffer(), _bytes(a))
        else:
            _write(fd, head.getbuffer())
            rows = max(1, BLOCK // max(1, a[:1].nbytes))
            for i in range(0, len(a), rows):
                _write(fd, _bytes(np.ascontiguousarray(a[i : i + rows])))
        if name:
            os.setxattr(fd, "user.ckpt.dtype", name.encode())
    finally:
        os.close(fd)


def write_bytes(path: str, data: bytes) -> None:
    """Write a new file. Errors: FileExistsError, and those of open and write."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _write(fd, memoryview(data))
    finally:
        os.close(fd)


def _bytes(a: np.ndarray) -> memoryview:
    return memoryview(a.reshape(-1).view(np.uint8).data) if a.nbytes else memoryview(b"")


def _write(fd: int, *parts: memoryview) -> None:
    """Write all of the parts, one after another, where the file stands."""
    left = [part for part in parts if part.nbytes]
    while left:
        _advance(left, os.writev(fd, left))


def read(path: str, name: str, shape: Sequence[int], mmap: bool = False, folder: int | None = None) -> np.ndarray:
    """The array of a .npy file whose type and shape the metadata have told. It has that shape.

    mmap    a read-only np.memmap, which reads what is touched. Arrays without elements or dimensions are read.
    folder  an open directory that the path begins at.

    Errors: those of open and read; EOFError if the file is too short, ValueError if it is another array.
    """
    shape, dtype = tuple(shape), _file_dtype(name)
    fd = _open(path, folder)
    try:
        if mmap or dtype is None:
            return _shown(_load(fd, path, shape, mmap and bool(shape) and 0 not in shape), name)
        a = np.empty(shape, dtype)
        head = bytearray(max(0, min(os.fstat(fd).st_size - a.nbytes, HEADER_MAX)))
        _read(fd, 0, path, memoryview(head), _bytes(a))
        if not head.startswith(b"\x93NUMPY"):
            raise ValueError(f"{path} is not an array of type {name} and shape {shape}")
        if b"'fortran_order': True" in head or b"'descr': '>" in head:  # as somebody else wrote it
            a = _load(fd, path, shape, False)
        return _shown(a, name)
    finally:
        os.close(fd)


def _load(fd: int, path: str, shape: tuple[int, ...], mmap: bool) -> np.ndarray:
    """A .npy file by what its header says. ValueError if its shape is another one."""
    with open(fd, "rb", closefd=False) as f:
        f.seek(0)
        if not mmap:
            a = np.lib.format.read_array(f)
        else:
            version = np.lib.format.read_magic(f)
            of = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            found, fortran, dtype = of(f)
            a = np.memmap(f, dtype, "r", f.tell(), found, "F" if fortran else "C")
    if a.shape != shape:
        raise ValueError(f"{path}: its shape is {a.shape}, not {shape}")
    return a


def read_box(stem: str, name: str, shape: Sequence[int], box: Box, folder: int | None = None) -> np.ndarray:
    """A part of an array, by the view STEM@SLICE: only the chunks that it meets are read.

    shape  of the whole array.
    box    (start, stop) in elements, in each dimension. The result has the shape stop - start.

    Errors: as read().
    """
    dtype = _file_dtype(name)
    is_whole = all(part == (0, size) for part, size in zip(box, shape))
    if not shape or dtype is None or is_whole:
        return read(f"{stem}.npy", name, shape, folder=folder)[tuple(slice(*part) for part in box)]
    a = np.empty([stop - start for start, stop in box], dtype)
    if a.nbytes:
        path = f"{stem}@{slice_text(box)}"
        fd = _open(path, folder)
        try:
            _read(fd, 0, path, _bytes(a))
        finally:
            os.close(fd)
    return _shown(a, name)


def read_bytes(path: str, folder: int | None = None) -> bytes:
    """All of a file. folder: as of read()."""
    with open(_open(path, folder), "rb", buffering=0) as f:
        return f.readall()


def _open(path: str, folder: int | None) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)


def box_of(index: Sequence[slice], shape: Sequence[int]) -> Box:
    """The box of an index of slices without steps, as shards of JAX have them."""
    return tuple(part.indices(size)[:2] for part, size in zip(index, shape))


def slice_text(box: Box) -> str:
    """((0, 4), (8, 16)) as "0:4,8:16"."""
    return ",".join(f"{start}:{stop}" for start, stop in box)


def _file_dtype(name: str) -> np.dtype | None:
    """The type of the elements in a .npy file; None where only the file can tell."""
    if name in ("int4", "int2"):
        return np.dtype(np.int8)
    if name in ("uint4", "uint2"):
        return np.dtype(np.uint8)
    dtype = dtype_of(name)
    if dtype is None or dtype.isbuiltin == 1:
        return dtype
    return np.dtype(f"V{dtype.itemsize}") if dtype.isbuiltin == 2 else None


def _read(fd: int, offset: int, path: str, *parts: memoryview) -> None:
    """Fill the parts, one after another, from byte `offset` on. EOFError if the file ends before."""
    left = [part for part in parts if part.nbytes]
    while left:
        n = os.preadv(fd, left, offset)
        if not n:
            raise EOFError(f"{path} ends after {offset} bytes, {sum(part.nbytes for part in left)} are missing")
        offset += n
        _advance(left, n)


def _advance(left: list[memoryview], n: int) -> None:
    """Take n bytes from the front."""
    while left and n >= left[0].nbytes:
        n -= left.pop(0).nbytes
    if left:
        left[0] = left[0][n:]
