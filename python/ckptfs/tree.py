# SPDX-License-Identifier: Apache-2.0
"""Pytrees: what is in a node, and the same node around other children.

dicts, lists, tuples and named tuples are walked here; other nodes as JAX's registry says, if the program has imported
JAX (what it has not imported cannot be in its trees), and dataclasses by their fields. None is a leaf.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import sys
from typing import Any, Callable, Iterator

import numpy as np

Path = tuple[str, ...]
Rebuild = Callable[[list], Any]


def jax_module():
    """jax, if the program has imported it."""
    jax = sys.modules.get("jax")
    return jax if jax is not None and hasattr(jax, "tree_util") else None


def children(node: Any) -> tuple[str, list[tuple[str, Any]], Rebuild] | None:
    """(kind, [(key, child)], rebuild) of a container; None of a leaf. kind is dict, list or tuple."""
    if node is None or isinstance(node, (str, bytes, int, float, complex, np.ndarray, np.generic)):
        return None
    kind = type(node)
    if kind is dict or kind is collections.OrderedDict:
        keys = list(node)
        return "dict", [(str(key), node[key]) for key in keys], lambda new: kind(zip(keys, new))
    if kind is list or kind is tuple:
        return kind.__name__, [(str(i), child) for i, child in enumerate(node)], kind
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return "dict", list(zip(node._fields, node)), lambda new: kind(*new)
    registered = _registered(node)
    if registered:
        return registered
    if isinstance(node, collections.defaultdict):
        keys = list(node)
        return "dict", [(str(key), node[key]) for key in keys], lambda new: kind(node.default_factory, zip(keys, new))
    if dataclasses.is_dataclass(node) and not isinstance(node, type) and not hasattr(node, "dtype"):
        return _dataclass(node)
    return None


def _registered(node: Any) -> tuple[str, list[tuple[str, Any]], Rebuild] | None:
    """A node that is registered with JAX."""
    jax = jax_module()
    if jax is None:
        return None
    found, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if len(found) == 1 and not found[0][0]:
        return None
    keys = [path[0] for path, _ in found]
    names = [str(next(getattr(key, name) for name in ("key", "name", "idx") if hasattr(key, name))) for key in keys]
    sequence = bool(keys) and all(
        not hasattr(key, "name") and isinstance(getattr(key, "idx", getattr(key, "key", None)), int) for key in keys
    )
    kind = "list" if sequence and names == [str(i) for i in range(len(names))] else "dict"
    return kind, list(zip(names, (child for _, child in found))), treedef.unflatten


def _dataclass(node: Any) -> tuple[str, list[tuple[str, Any]], Rebuild]:
    """A dataclass: its fields, but for those that Flax or JAX mark as no part of the tree."""
    names = [
        field.name
        for field in dataclasses.fields(node)
        if field.metadata.get("pytree_node", True) and not field.metadata.get("static", False)
    ]

    def rebuild(new: list) -> Any:
        other = copy.copy(node)
        for name, child in zip(names, new):
            object.__setattr__(other, name, child)
        return other

    return "dict", [(name, getattr(node, name)) for name in names], rebuild


def walk(node: Any, path: Path = ()) -> Iterator[tuple[Path, str | None, Any]]:
    """(path, kind, node) of each node, containers before what is in them; kind is None for leaves."""
    inside = children(node)
    yield path, inside and inside[0], node
    for key, child in inside[1] if inside else ():
        yield from walk(child, (*path, key))


def rebuild(node: Any, new: dict[Path, Any], path: Path = ()) -> Any:
    """The same tree with other leaves: those of `new`, which has one for each path."""
    inside = children(node)
    if inside is None:
        return new[path]
    return inside[2]([rebuild(child, new, (*path, key)) for key, child in inside[1]])


def raw(kinds: dict[Path, str], leaves: dict[Path, Any]) -> Any:
    """A tree of dicts, lists and tuples from the kinds of its containers and its leaves. Sequences that have gaps
    become dicts.
    """
    if not kinds:
        return leaves[()]
    inside: dict[Path, dict] = {path: {} for path in kinds}
    for path, leaf in leaves.items():
        inside[path[:-1]][path[-1]] = leaf
    for path in sorted(kinds, key=len, reverse=True):  # what is deepest first
        made: Any = inside[path]
        if kinds[path] in ("list", "tuple") and all(str(i) in made for i in range(len(made))):
            made = [made[str(i)] for i in range(len(made))]
            made = tuple(made) if kinds[path] == "tuple" else made
        if not path:
            return made
        inside[path[:-1]][path[-1]] = made
    raise KeyError("the tree has no top")
