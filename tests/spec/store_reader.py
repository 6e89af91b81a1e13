#!/usr/bin/env python3
"""Reads a store of ckptfs. Written from docs/format.md alone, to show that the page is enough: no code or constant
comes from elsewhere.

    store_reader.py ROOT [STEP]      checks everything, and prints the leaves with their SHA-256

Slow and simple: objects are read as a whole. Whatever does not hold raises Damaged or Unsupported.
"""

import ast
import hashlib
import io
import json
import re
import stat
import struct
import sys
from pathlib import Path

import blosc
import lz4.block
import ml_dtypes
import numpy as np
import xxhash

HASH = re.compile(r"[0-9a-f]{64}")
STEP = re.compile(rb"(?:[^/]+_|[^./]+(?:=|-(?<![_=-]-)(?<![0-9][eE]-)))?([0-9]+)", re.S)
KINDS = ("dir", "array", "value", "blob")
CONTAINERS = ("dict", "list", "tuple", "namedtuple", "object")
CODECS = {1: "lz4", 2: "blosc", 3: "sparse"}
MAX_CHUNK = 1 << 24
BLOCK = 1 << 16  # of which the name of a sparse object is made


class Damaged(Exception):
    pass


class Unsupported(Exception):
    pass


def must(condition, what):
    if not condition:
        raise Damaged(what)


def known(condition, what):
    if not condition:
        raise Unsupported(what)


def xxh3(data):
    return xxhash.xxh3_64_intdigest(data)


def read_file(path):
    must(stat.S_ISREG(path.lstat().st_mode), f"{path} is no regular file")
    return path.read_bytes()


def parse(text, what):
    def members(pairs):
        must(len({key for key, _ in pairs}) == len(pairs), f"{what}: a member is there twice")
        return dict(pairs)

    try:
        return json.loads(text.decode(), object_pairs_hook=members)
    except ValueError as e:
        raise Damaged(f"{what}: {e}") from e


def check_head(head, kind):
    must(head.get("format") == kind, f"its format is not {kind}")
    known(head.get("version") == 1, "another version")
    features = {"ckptfs-step": {"sparse", "whole"}, "ckptfs-store": {"step_names"}}
    known(set(head.get("required", [])) <= features[kind], "something is required")
    must(re.fullmatch("[0-9a-f]{32}", head.get("id", "")), "no id")


def name_of(record):
    must(("name" in record) != ("name_hex" in record), "exactly one name is wanted")
    return record["name"].encode() if "name" in record else bytes.fromhex(record["name_hex"])


def equal(number, dtype):
    """Has the type an element that is equal to the number?"""
    try:
        return number != number or np.array(number).astype(dtype).item() == number
    except (OverflowError, TypeError, ValueError):
        return False


class Store:
    def __init__(self, root):
        self.dir = Path(root) / ".ckptstore"
        self.config = parse(read_file(self.dir / "store.json"), "store.json")
        check_head(self.config, "ckptfs-store")

    def steps(self):
        """Names of the steps, by number; the last is the latest."""
        found = []
        for path in (self.dir / "steps").iterdir():
            name = bytes(path)[len(bytes(path.parent)) + 1 :]
            match = STEP.fullmatch(name[:-5]) if name.endswith(b".json") and len(name) <= 245 else None
            if match:
                found.append((int(match[1]), name[:-5]))
        return [name.decode(errors="surrogateescape") for _, name in sorted(found)]

    def pinned(self, step):
        return (self.dir / "steps" / f"{step}.pin").exists()

    def step(self, name):
        return Step(self, name)

    # --- objects ---

    def find(self, name):
        for path in (self.dir / "objects" / name[:2] / name, self.dir / "trash/objects" / name):
            if path.exists():
                return path
        raise Damaged(f"{name} is missing")

    def object(self, name):
        """The decoded bytes of an object, everything checked."""
        must(HASH.fullmatch(name), f"{name} is no hash")
        data = read_file(self.find(name))
        footer = data[-96:]
        if len(data) >= 96 and footer[:8] == b"CKPTOBJ1" and footer[48:80].hex() == name:
            must(struct.unpack_from("<I", footer, 12)[0] != 3, f"{name}: a sparse object, where its SHA-256 is told")
            _, decoded = self.decode(data, footer)
            decoded = b"".join(chunk for _, chunk in decoded)
        else:
            self.check_sums(name, data)
            decoded = data
        must(hashlib.sha256(decoded).hexdigest() == name, f"{name}: another SHA-256")
        return decoded

    def sparse(self, name):
        """The size of a sparse object, and those of its chunks that are not zeros: pairs of offset and bytes."""
        must(HASH.fullmatch(name), f"{name} is no hash")
        data = read_file(self.find(name))
        footer = data[-96:]
        must(
            len(data) >= 96 and footer[:8] == b"CKPTOBJ1" and footer[48:80].hex() == name, f"{name}: no encoded object"
        )
        must(struct.unpack_from("<I", footer, 12)[0] == 3, f"{name}: no sparse object")
        size, chunks = self.decode(data, footer)
        hashed = hashlib.sha256(b"ckptfs sparse 1\n" + struct.pack("<Q", size))
        for offset, chunk in chunks:
            for at in range(0, len(chunk), BLOCK):
                if any(block := chunk[at : at + BLOCK]):
                    hashed.update(struct.pack("<Q", (offset + at) // BLOCK) + block)
        must(bytes(byte ^ 0xFF for byte in hashed.digest()).hex() == name, f"{name}: another name")
        return size, chunks

    def check_sums(self, name, data):
        sums = read_file(self.find(name + ".sums"))
        must(len(sums) >= 64 and sums[:8] == b"CKPTSUM1", f"{name}.sums: not sums")
        version, log2, size = struct.unpack_from("<IIQ", sums, 8)
        known(version == 1 and 12 <= log2 <= 24, f"{name}.sums: version {version}, chunks of 2^{log2}")
        must(size == len(data) and sums[24:56].hex() == name, f"{name}.sums: of another object")
        chunks = [data[i : i + (1 << log2)] for i in range(0, size, 1 << log2)]
        must(len(sums) == 56 + 8 * len(chunks) + 8, f"{name}.sums: another length")
        *words, last = struct.unpack_from(f"<{len(chunks) + 1}Q", sums, 56)
        must(last == xxh3(sums[:-8]), f"{name}.sums: damaged")
        must(words == [xxh3(chunk) for chunk in chunks], f"{name}: a chunk is damaged")

    def decode(self, data, footer):
        version, codec, log2, typesize, size, count, index = struct.unpack_from("<IIIIQQQ", footer, 8)
        must(xxh3(footer[:88]) == struct.unpack_from("<Q", footer, 88)[0], "the footer is damaged")
        known(version == 1 and codec in CODECS and footer[80:88] == bytes(8), f"version {version}, codec {codec}")
        sparse = CODECS[codec] == "sparse"
        known((16 if sparse else 12) <= log2 <= 24, f"chunks of 2^{log2}")
        must(CODECS[codec] == "lz4" or 1 <= typesize <= 255, "bytes of an element")
        all_chunks = -(-size >> log2)
        must(count <= all_chunks if sparse else count == all_chunks, "the number of chunks")
        words = 2 * count + 1 if sparse else count + 1
        must(len(data) == index + 8 * words + 8 + 96, "the length of the file")
        *offsets, sum_of_index = struct.unpack_from(f"<{words + 1}Q", data, index)
        must(sum_of_index == xxh3(data[index : index + 8 * words]), "the index is damaged")
        offsets, numbers = offsets[: count + 1], offsets[count + 1 :] if sparse else range(count)
        must(offsets[0] == 0 and offsets[-1] == index, "where the chunks begin and end")
        must(all(a < b for a, b in zip(numbers, [*numbers[1:], all_chunks])), "the numbers of the chunks")
        chunks = []
        for i, begin, end in zip(numbers, offsets, offsets[1:]):
            must(end - begin > 8, "an offset of the index")
            encoded = data[begin : end - 8]
            must(struct.unpack_from("<Q", data, end - 8)[0] == xxh3(encoded), f"chunk {i} is damaged")
            want = min(1 << log2, size - (i << log2))
            chunk = self.decode_chunk(CODECS[codec], encoded, want)
            must(len(chunk) == want, f"chunk {i} has {len(chunk)} bytes")
            chunks.append((i << log2, chunk))
        return size, chunks

    @staticmethod
    def decode_chunk(codec, encoded, want):
        if codec == "lz4":
            must(len(encoded) >= 4 and struct.unpack_from("<I", encoded)[0] == want, "the size of an LZ4 chunk")
            return lz4.block.decompress(encoded[4:], uncompressed_size=want)
        must(len(encoded) >= 16 and struct.unpack_from("<I", encoded, 4)[0] == want, "the size of a Blosc chunk")
        return blosc.decompress(encoded)


class Node:
    """A record of a manifest; path is bytes from the top of the step."""

    def __init__(self, record, parent):
        self.record, self.parent = record, parent
        self.kind = record["kind"]
        self.name = name_of(record)
        self.path = parent.path + b"/" + self.name if parent.parent else self.name
        self.children = {}

    def __getattr__(self, name):
        return self.record.get(name)


class Top(Node):
    def __init__(self, record):
        self.record, self.parent, self.kind, self.name, self.path, self.children = record, None, "dir", b"", b"", {}


class Step:
    def __init__(self, store, name):
        self.store, self.name, self.objects = store, name, {}
        data = read_file(store.dir / "steps" / f"{name}.json")
        begin = data.rfind(b"\n]") + 1
        must(begin > 0 and data.endswith(b"}\n"), "the manifest has no end")
        must(data.count(b"\n", begin) == 1, "something follows its end")
        lines = data[:begin].split(b"\n")[:-1]
        head, records = lines[0], lines[1:]
        end = parse(b"{" + data[begin + 2 :], "end")
        must(end["xxh3"] == f"{xxh3(data[:begin]):016x}", "the manifest is damaged")
        must(end["count"] == len(records), "the number of records")
        must(head.endswith(b'"nodes":['), "the nodes do not begin at the end of the first line")
        self.head = parse(head + b"]}", "head")
        check_head(self.head, "ckptfs-step")
        name_of(self.head)
        must(isinstance(self.head.get("time"), int) and isinstance(self.head.get("metadata", {}), dict), "the head")
        must(not {"parent", "name", "name_hex", "kind"} & self.head["top"].keys(), "the top")
        assert json.loads(data)["nodes"] == [
            json.loads(line.rstrip(b",")) for line in records
        ]  # it is one JSON object, too
        self.nodes = [Top(self.head["top"])]
        for i, line in enumerate(records):
            must(line.endswith(b",") == (i < len(records) - 1), "a comma between records")
            self.add(parse(line.rstrip(b","), f"record {i + 1}"))

    def add(self, record):
        known(record.get("kind") in KINDS, "an unknown kind")
        must(
            isinstance(record.get("parent"), int) and 0 <= record["parent"] < len(self.nodes),
            "a parent comes before what is in it",
        )
        parent = self.nodes[record["parent"]]
        node = Node(record, parent)
        name = node.name
        must(parent.kind == "dir" and name not in parent.children, "a name is there twice, or in a file")
        must(0 < len(name) <= 255 and b"/" not in name and b"\0" not in name and name not in (b".", b".."), "a name")
        must(
            all(type(record.get(key)) is int for key in ("mode", "uid", "gid", "mtime"))
            and 0 <= record["mode"] <= 0o7777,
            "attributes",
        )
        if node.kind == "dir":
            known(record.get("container") in CONTAINERS, "an unknown container")
        else:
            node.sparse = record.get("codec") == "sparse" and node.kind != "value"
            must(
                type(record.get("size")) is int
                and HASH.fullmatch(record.get("object" if node.sparse else "sha256", "")),
                "size or hash",
            )
            must(
                not node.sparse or not {"sha256", "offset"} & record.keys(),
                "a sparse leaf has no SHA-256, and no offset",
            )
            known(
                not node.sparse or "sparse" in self.head.get("required", []),
                "a sparse leaf that the head does not tell of",
            )
            known(
                not record.get("whole") or "whole" in self.head.get("required", []),
                "a leaf that is named like a piece, and that the head does not tell of",
            )
            node.told = self.told(node)
        if node.kind in ("array", "blob"):
            known(record.get("codec") in ("none", *CODECS.values()), "an unknown codec")
            must(type(record.get("stored")) is int, "stored")
        must(node.kind != "array" or name.endswith(b".npy"), "an array's name")
        must(node.kind != "value" or name.endswith(b".json"), "a value's name")
        for value in record.get("xattrs", {}).values():
            bytes.fromhex(value)
        parent.children[name] = node
        self.nodes.append(node)

    @staticmethod
    def told(node):
        """What the bytes do not tell of a leaf: dtype and shape of a value or blob, prng_impl of an array."""
        record, words = node.record, re.compile("[!-~]{1,63}")
        told = {}
        if node.kind == "array" and words.fullmatch(record.get("prng_impl", "")):
            told["prng_impl"] = record["prng_impl"]
        if node.kind == "blob" and words.fullmatch(record.get("dtype", "")):
            told = {key: record[key] for key in ("dtype", "shape") if key in record}
        if node.kind == "value" and "dtype" in record:
            number, dtype = (
                json.loads(record["text"]),
                getattr(np, record["dtype"], None) or getattr(ml_dtypes, record["dtype"], None),
            )
            with np.errstate(all="ignore"):
                if isinstance(number, (int, float)) and dtype and equal(number, dtype):
                    told["dtype"] = record["dtype"]
        return told

    def leaves(self):
        return [node for node in self.nodes if node.kind != "dir"]

    def read_sparse(self, node):
        """The bytes of a sparse leaf's file that are not zeros: pairs of offset and bytes."""
        size, chunks = self.store.sparse(node.object)
        must(size == node.size, "a leaf has another size")
        if node.kind == "array":
            self.check_array(node, chunks[0][1] if chunks and chunks[0][0] == 0 else b"")
        return chunks

    def read(self, node):
        """The bytes of a leaf's file, which must not be sparse."""
        if node.kind == "value":
            data = node.text.encode()
        else:
            name = node.object or node.sha256
            if name not in self.objects:
                self.objects = {name: self.store.object(name)}  # packs are read many times in a row
            begin = node.offset or 0
            data = self.objects[name][begin : begin + node.size]
        must(len(data) == node.size, "a leaf is too short")
        must(hashlib.sha256(data).hexdigest() == node.sha256, "a leaf has another SHA-256")
        if node.kind == "array":
            self.check_array(node, data)
        return data

    @staticmethod
    def check_array(node, data):
        file = io.BytesIO(data)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read:  # NumPy has no public reader of 3.0
            shape, fortran, dtype = read(file, max_header_size=1 << 20)
            must(file.tell() == node.header, "the length of the header")
            must(list(shape) == node.shape and fortran == bool(node.fortran), "the shape of an array")
            descr = ast.literal_eval(node.descr) if node.descr.startswith("[") else node.descr
            must(np.lib.format.descr_to_dtype(descr) == dtype, f"descr {node.descr}, not {dtype}")
            must(node.header + int(np.prod(shape, dtype=object)) * dtype.itemsize == node.size, "the size of an array")


def main(root, *steps):
    store = Store(root)
    for name in steps or store.steps():
        step = store.step(name)
        for node in step.leaves():
            step.read_sparse(node) if node.sparse else step.read(node)
            print(node.object if node.sparse else node.sha256, f"{name}/{node.path.decode(errors='backslashreplace')}")


if __name__ == "__main__":
    main(*sys.argv[1:])
