"""Reads a store from a tree of powercut.py in memory, and believes nothing: every byte of every committed step is
decoded and hashed.

Fast because what was checked once is known by the identity of its bytes. Only the formats of docs/format.md are used.
"""

import ctypes
import hashlib
import json
import struct

xxhash = ctypes.CDLL("libxxhash.so.0")
xxhash.XXH3_64bits.restype = ctypes.c_uint64
xxhash.XXH3_64bits.argtypes = ctypes.c_char_p, ctypes.c_size_t
lz4 = ctypes.CDLL("liblz4.so.1")
blosc = ctypes.CDLL("libblosc.so.1")
blosc.blosc_decompress_ctx.argtypes = ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
DIRECTORY = "directory"  # in place of a hash


class Bad(Exception):
    """The store is damaged."""


def need(condition, text):
    if not condition:
        raise Bad(text)


def xxh3(data):
    return xxhash.XXH3_64bits(data, len(data))


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def decode_chunk(codec, data, size):
    out = ctypes.create_string_buffer(size)
    if codec == 1:
        need(len(data) > 4 and struct.unpack("<I", data[:4])[0] == size, "lz4: length")
        n = lz4.LZ4_decompress_safe(data[4:], out, len(data) - 4, size)
    else:
        need(codec == 2 and len(data) >= 16 and struct.unpack("<I", data[12:16])[0] == len(data), "blosc: length")
        n = blosc.blosc_decompress_ctx(data, out, size, 1)
    need(n == size, f"codec {codec}: {n} bytes instead of {size}")
    return out.raw


def decode_object(digest, data, sums):
    """The bytes of an object's file, checked."""
    footer = data[-96:]
    if len(data) >= 96 and footer[:8] == b"CKPTOBJ1" and footer[48:80].hex() == digest:
        need(xxh3(footer[:88]) == struct.unpack("<Q", footer[88:])[0], "footer: checksum")
        version, codec, log2, _, size, chunks, index = struct.unpack("<IIIIQQQ", footer[8:48])
        need(
            version == 1 and chunks == -(-size >> log2) and index + 8 * (chunks + 1) + 8 + 96 == len(data),
            "footer: numbers",
        )
        words = data[index : index + 8 * (chunks + 1)]
        need(xxh3(words) == struct.unpack("<Q", data[-104:-96])[0], "index: checksum")
        at = struct.unpack(f"<{chunks + 1}Q", words)
        made = []
        for n in range(chunks):
            chunk = data[at[n] : at[n + 1] - 8]
            need(xxh3(chunk) == struct.unpack("<Q", data[at[n + 1] - 8 : at[n + 1]])[0], f"chunk {n}: checksum")
            made.append(decode_chunk(codec, chunk, min(1 << log2, size - (n << log2))))
        whole = b"".join(made)
    else:
        whole = data
        need(sums is not None, "no sums")
        need(
            len(sums) >= 64 and sums[:8] == b"CKPTSUM1" and xxh3(sums[:-8]) == struct.unpack("<Q", sums[-8:])[0],
            "sums: checksum",
        )
        version, log2, size = struct.unpack("<IIQ", sums[8:24])
        need(version == 1 and size == len(data) and sums[24:56].hex() == digest, "sums: numbers")
        want = b"".join(struct.pack("<Q", xxh3(data[n : n + (1 << log2)])) for n in range(0, size, 1 << log2))
        need(sums[56:-8] == want, "sums: of the chunks")
    need(sha256(whole) == digest, "not the content that the name says")
    return whole


class Reader:
    """Remembers what it has checked, across all trees of one disk."""

    def __init__(self):
        self.known = {}

    def once(self, function, *args):
        """A result by the identity of the bytes among the arguments; they are kept, so that no others get their
        identity.
        """
        key = function, *(id(a) if isinstance(a, bytes) else a for a in args)
        if key not in self.known:
            try:
                self.known[key] = function(*args), None, args
            except Bad as e:
                self.known[key] = None, e, args
        result, error, _ = self.known[key]
        if error:
            raise error
        return result

    def call(self, files, function, *args):
        if all(f is None or f.settled for f in files):
            return self.once(function, *args)
        return function(*args)

    # --- committed steps

    def steps(self, store):
        """{name: content} of a store's committed steps; content is {path: hash, or DIRECTORY}."""
        found = {}
        for name, file in store["steps"].items():
            if name.endswith(".json"):
                step = name.removesuffix(".json")
                try:
                    found[step] = self.step(store, file)
                except Bad as e:
                    raise Bad(f"step {step}: {e}") from None
        return found

    def step(self, store, file):
        content, leaves, _ = self.call([file], manifest, file.data)
        for path, digest, size, name, offset in leaves:
            try:
                self.leaf(store, digest, size, name, offset)
            except Bad as e:
                raise Bad(f"{path}: {e}") from None
        return content

    def leaf(self, store, digest, size, name, offset):
        whole = self.object(store, name)
        need(self.once(slice_hash, whole, offset, size) == digest, f"bytes of object {name} at {offset}")

    def object(self, store, name, *elsewhere):
        """The bytes of an object: of objects/ or trash/objects/, as a reader looks for them, or of `elsewhere`."""
        wrong = Bad("is missing")
        for folder in (*elsewhere, store["objects"].get(name[:2], {}), store["trash"].get("objects", {})):
            if name in folder:
                file, sums = folder[name], folder.get(f"{name}.sums")
                try:
                    return self.call([file, sums], decode_object, name, file.data, sums and sums.data)
                except Bad as e:
                    wrong = e
        raise Bad(f"object {name}: {wrong}")

    # --- staged ones

    def staged(self, store):
        """A list of Staged: what a mount will take over."""
        ids = {self.call([f], manifest, f.data)[2] for name, f in store["steps"].items() if name.endswith(".json")}
        found = []
        for folder in store["staging"].values():
            commit = folder.get("commit")
            if "name" in folder and not (commit and commit.data.decode() in ids):
                found.append(Staged(self, store, folder))
        return found


class Staged:
    """A staged step that no manifest has made committed."""

    def __init__(self, reader, store, folder):
        self.reader, self.store, self.hold = reader, store, folder.get("hold", {})
        self.name = folder["name"].data.decode()
        self.base = folder["base"].data.decode() if "base" in folder else None
        self.ready = "ready" in folder
        self.files = {}

        def walk(tree, path):
            for name, node in tree.items():
                at = f"{path}/{name}" if path else name
                if isinstance(node, dict):
                    self.files[at] = DIRECTORY
                    walk(node, at)
                else:
                    self.files[at] = node

        walk(folder.get("tree", {}), "")

    def hash(self, path):
        """Of a file's bytes, also where it stands for stored content; DIRECTORY, or None if it is not there."""
        file = self.files.get(path)
        if file is None or file is DIRECTORY:
            return file
        text = file.xattrs.get("user.ckptfs.ref")
        if not text:
            return self.reader.call([file], sha256, file.data)
        ref = parse_ref(text)
        need(ref, f"{path}: its reference is damaged")
        whole = self.reader.object(self.store, ref["object"], self.hold)
        need(self.reader.once(slice_hash, whole, ref["offset"], ref["size"]) == ref["sha256"], f"{path}: its reference")
        return ref["sha256"]

    def is_held(self, path):
        """Is the content of a reference safe from gc, once no step has it any more?"""
        text = self.files[path].xattrs.get("user.ckptfs.ref")
        ref = parse_ref(text) if text else None
        return not ref or ref["object"] in self.hold


def slice_hash(whole, offset, size):
    need(offset + size <= len(whole), "beyond the object's end")
    return sha256(whole[offset : offset + size])


def manifest(data):
    """(content, leaves as (path, hash, size, object, offset), id) of a manifest."""
    at = data.rfind(b'],"count"')
    need(at >= 0, "the manifest is cut short")
    try:
        m = json.loads(data)
    except ValueError as e:
        raise Bad(f"the manifest is no JSON: {e}") from None
    need(m["format"] == "ckptfs-step" and m["version"] == 1, "manifest: version")
    need(m["xxh3"] == f"{xxh3(data[:at]):016x}", "manifest: checksum")
    need(m["count"] == len(m["nodes"]), f"manifest: count {m['count']} of {len(m['nodes'])} nodes")
    paths, content, leaves = {0: ""}, {}, []
    for number, node in enumerate(m["nodes"], 1):
        name = bytes.fromhex(node["name_hex"]).decode(errors="surrogateescape") if "name_hex" in node else node["name"]
        path = paths[node["parent"]] + name
        if node["kind"] == "dir":
            paths[number] = f"{path}/"
            content[path] = DIRECTORY
            continue
        content[path] = node["sha256"]
        if "text" in node:
            text = node["text"].encode()
            need(sha256(text) == node["sha256"] and len(text) == node["size"], f"{path}: its text")
        elif node["size"]:
            leaves.append(
                (path, node["sha256"], node["size"], node.get("object", node["sha256"]), node.get("offset", 0))
            )
        else:
            need(node["sha256"] == sha256(b""), f"{path}: nothing has another hash")
    return content, leaves, m["id"]


def parse_ref(text):
    """The attribute of a file that stands for stored content."""
    try:
        kind, sha, name, size, offset, _, _ = text.decode().split(" ")
    except ValueError:
        return None
    return {"sha256": sha, "object": name, "size": int(size), "offset": int(offset)} if kind == "ref1" else None
