# SPDX-License-Identifier: Apache-2.0
"""Keys of a tree as names of files, and names of steps. docs/using.md, "Names", has the rules."""

from __future__ import annotations

import hashlib
import re

NAME_MAX = 255
SUFFIX = {"array": ".npy", "value": ".json"}
_ESCAPED = re.compile(r"[\x00-\x1f\x7f/%]")
_SEQUENCE = re.compile(rb"%[0-9A-F]{2}")
_SLICE = re.compile(r"@(?=[-0-9:,.\s]+$)")  # the key of an array would be taken for a piece
_STEP = re.compile(r"(?:[^./]+(?:[_=]|-(?<![_=-]-)(?<![0-9][eE]-)))?(?P<number>[0-9]+)")  # a "-" that is no minus


def _hex(match: re.Match) -> str:
    return "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def escape(key: str, kind: str = "dict") -> str:
    """The name of a key's node, cut to 255 bytes with its suffix. kind: array, value, blob, or that of a container.

    Escaped where the contract says, and also where the name would mean something else: a piece of an array, a view,
    another kind of leaf.
    """
    suffix = SUFFIX.get(kind, "")
    if not key:
        name = "%"
    elif key in (".", ".."):
        name = key.replace(".", "%2E")
    else:
        name = _ESCAPED.sub(_hex, key)
    if kind == "array":
        name = _SLICE.sub("%40", name)
    elif kind == "value" and name == ".tree":
        name = "%2Etree"
    elif kind == "blob" and name.endswith((".npy", ".json")):
        stem, _, ending = name.rpartition(".")
        name = f"{stem}%2E{ending}"
    return _cut(name, key, suffix) + suffix


def _cut(name: str, key: str, suffix: str) -> str:
    """A name that fits with its suffix: its beginning, and a hash of the key, so that keys that begin alike differ."""
    room = NAME_MAX - len(suffix)
    if len(name.encode("utf-8", "surrogateescape")) <= room:
        return name
    mark = "%~" + hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    used, kept = 0, []
    for part in re.findall(r"(?:%[0-9A-F]{2}|[\s\S])", name):
        used += len(part.encode("utf-8", "surrogateescape"))
        if used > room - len(mark):
            break
        kept.append(part)
    return "".join(kept) + mark


def unescape(name: str) -> str:
    """The key of a name. Of a name that was cut the key is lost: it stays as it is."""
    if name == "%":
        return ""
    raw = _SEQUENCE.sub(lambda m: bytes([int(m[0][1:], 16)]), name.encode("utf-8", "surrogateescape"))
    return raw.decode("utf-8", "surrogateescape")


def step_number(name: str) -> int | None:
    """7 of "7", "step_000007", "step-7" and "epoch=3-step=7"; None of what is no step's name."""
    match = _STEP.fullmatch(name)
    return int(match["number"]) if match else None


def step_name(step: int, prefix: str | None = None, digits: int | None = None) -> str:
    """The name of a step: its number, with leading zeros up to `digits`, behind `prefix` and a "_".

    ValueError for what is no whole number from 0 on.
    """
    if isinstance(step, bool) or int(step) != step or step < 0:
        raise ValueError(f"a step is a number from 0 on, not {step!r}")
    number = str(int(step)).zfill(digits or 0)
    return f"{prefix}_{number}" if prefix else number
