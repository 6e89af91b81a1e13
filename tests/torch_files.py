"""Writes what torch.save and torch.distributed.checkpoint write, of NumPy arrays and without torch.

Pickles are made by Python's own pickle module, with modules of the names that PyTorch's have for as long as that takes.
"""

import collections
import contextlib
import dataclasses
import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np

STORAGES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
}


class Storage:
    """The memory that arrays are views of. part: (first, count) of a storage that is a view of another one."""

    def __init__(self, key, base, part=None):
        self.key, self.base, self.part = key, base, part


@dataclasses.dataclass
class Flagged:
    """A view that is conjugated or negated when it is read: flags is {'conj': True}, say."""

    array: np.ndarray
    flags: dict


@dataclasses.dataclass
class Pickled:
    """A tree that is a pickle already, without storages."""

    data: bytes


def base_of(array):
    while array.base is not None and isinstance(array.base, np.ndarray):
        array = array.base
    return array


# --- PyTorch's names


def module(name):
    made = types.ModuleType(name)
    sys.modules[name] = made
    return made


def function(of, name):
    def called(*_):
        raise AssertionError("only ever named")

    called.__module__, called.__name__, called.__qualname__ = of.__name__, name, name
    setattr(of, name, called)
    return called


def named_class(of, name, *fields):
    made = dataclasses.make_dataclass(name, fields) if fields else type(name, (), {})
    made.__module__ = of.__name__
    made.__qualname__ = name
    setattr(of, name, made)
    return made


class Names:
    def __init__(self):
        torch, utils = module("torch"), module("torch._utils")
        self.tensor = function(utils, "_rebuild_tensor_v2")
        self.Size = type("Size", (tuple,), {"__reduce__": lambda s: (self.Size, (tuple(s),)), "__module__": "torch"})
        torch.Size = self.Size
        self.storages = {d: named_class(torch, name + "Storage") for d, name in STORAGES.items()}
        self.dtypes = {d: named_class(torch, d) for d in STORAGES}
        module("torch.distributed")
        module("torch.distributed.checkpoint")
        m = module("torch.distributed.checkpoint.metadata")
        f = module("torch.distributed.checkpoint.filesystem")
        self.layout = function(module("torch.serialization"), "_get_layout")
        self.Metadata = named_class(
            m, "Metadata", "state_dict_metadata", "planner_data", "storage_data", "storage_meta", "version"
        )
        self.Tensor = named_class(m, "TensorStorageMetadata", "properties", "size", "chunks")
        self.Bytes = named_class(m, "BytesStorageMetadata")
        self.Properties = named_class(m, "TensorProperties", "dtype", "names")
        self.Properties.__getstate__ = lambda p: (p.dtype, Layout(p.names), False, None, False)
        self.Chunk = named_class(m, "ChunkStorageMetadata", "offsets", "sizes")
        self.Index = named_class(m, "MetadataIndex", "fqn", "offset", "index")
        self.Index.__hash__ = lambda i: hash((i.fqn, i.offset))
        self.Info = named_class(f, "_StorageInfo", "relative_path", "offset", "length")


class Layout:
    def __init__(self, names):
        self.names = names

    def __reduce__(self):
        return self.names.layout, ("torch.strided",)


@contextlib.contextmanager
def torch_names():
    before = {k: v for k, v in sys.modules.items() if k.split(".")[0] == "torch"}
    try:
        yield Names()
    finally:
        for k in [k for k in sys.modules if k.split(".")[0] == "torch"]:
            del sys.modules[k]
        sys.modules.update(before)


# --- torch.save


class Pickler(pickle.Pickler):
    def __init__(self, file, names, protocol=2, old=False):
        super().__init__(file, protocol=protocol)
        self.names, self.storages, self.old = names, {}, old

    def storage(self, base):
        return self.storages.setdefault(id(base), Storage(len(self.storages), base))

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        storage = "storage", self.names.storages[obj.base.dtype.name], str(obj.key), "cpu", obj.base.size
        return (*storage, obj.part and (f"{obj.key}9", *obj.part)) if self.old else storage

    def reducer_override(self, obj):
        flags = ()
        if isinstance(obj, Flagged):
            obj, flags = obj.array, (obj.flags,)
        if not isinstance(obj, np.ndarray):
            return NotImplemented
        base, item = base_of(obj), obj.itemsize
        offset = (obj.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // item if obj.size else 0
        stride = tuple(s // item for s in obj.strides)
        return self.names.tensor, (
            self.storage(base),
            offset,
            obj.shape,
            stride,
            False,
            collections.OrderedDict(),
            *flags,
        )


def archive(tree, names, big=False, deflate=False):
    """The bytes of a file that torch.save(tree, ...) writes."""
    out, data = io.BytesIO(), io.BytesIO()
    pickler = Pickler(data, names)
    if isinstance(tree, Pickled):
        data.write(tree.data)
    else:
        pickler.dump(tree)
    how = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(out, "w", how) as z:
        z.writestr("archive/data.pkl", data.getvalue())
        z.writestr("archive/byteorder", "big" if big else "little")
        for s in pickler.storages.values():
            base = s.base
            if big:
                base = (base.view(f"u{base.itemsize}") if base.dtype.name == "bfloat16" else base).byteswap()
            z.writestr(f"archive/data/{s.key}", base.tobytes("A"))
        z.writestr("archive/version", "3\n")
    return out.getvalue()


def save(path, tree, **how):
    with torch_names() as names:
        Path(path).write_bytes(archive(tree, names, **how))


# --- torch.save before PyTorch 1.6

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


def stream(tree, names, protocol=2, keys=None, version=VERSION, more=()):
    """The bytes of a file that torch.save(tree, ...) wrote then. keys: in whose order the storages come. more: storages
    that the tree has without arrays.
    """
    data = io.BytesIO()
    pickler = Pickler(data, names, protocol, old=True)
    pickler.dump(tree)
    stored = {str(s.key): s.base for s in pickler.storages.values()} | dict(more)
    keys = sorted(stored, reverse=True) if keys is None else keys
    about = {"protocol_version": version, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(x, protocol) for x in (MAGIC, version, about)] + [
        data.getvalue(),
        pickle.dumps(keys, protocol),
    ]
    for base in (stored[key] for key in keys if key in stored):
        parts += [base.size.to_bytes(8, "little"), base.tobytes("A")]
    return b"".join(parts)


def save_before_zip(path, tree, **how):
    with torch_names() as names:
        Path(path).write_bytes(stream(tree, names, **how))


def save_pickle(path, pickled, deflate=False):
    """What torch.save would write around a pickle without storages."""
    how = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how, compresslevel=1) as z:
        z.writestr("archive/data.pkl", pickled)


# --- torch.distributed.checkpoint


def save_distributed(folder, tensors, objects=(), paths=None, files=2, **how):
    """tensors: {name: (shape, dtype, [(offsets, array)])}, each array saved as a piece; objects: {name: any}. paths:
    planner_data.
    """
    folder = Path(folder)
    folder.mkdir(parents=True)
    contents = [io.BytesIO() for _ in range(files)]
    written = 0

    def write(obj, names):
        nonlocal written
        at = written % files
        written += 1
        data = archive(obj, names, **how)
        info = names.Info(f"__{at}_0.distcp", contents[at].tell(), len(data))
        contents[at].write(data)
        return info

    with torch_names() as names:
        state, storage = {}, {}
        for name, (shape, dtype, pieces) in tensors.items():
            chunks = []
            for i, (offsets, array) in enumerate(pieces):
                chunks.append(names.Chunk(names.Size(offsets), names.Size(array.shape)))
                storage[names.Index(name, names.Size(offsets), i)] = write(array, names)
            state[name] = names.Tensor(names.Properties(names.dtypes[dtype], names), names.Size(shape), chunks)
        for name, obj in dict(objects).items():
            state[name] = names.Bytes()
            storage[names.Index(name, None, None)] = write(obj, names)
        metadata = pickle.dumps(names.Metadata(state, paths, storage, None, "1.0.0"))
    for i, c in enumerate(contents):
        (folder / f"__{i}_0.distcp").write_bytes(c.getvalue())
    (folder / ".metadata").write_bytes(metadata)
