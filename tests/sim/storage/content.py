"""What a powered-off device holds, independent of how it came to hold it."""

from __future__ import annotations

import hashlib
from typing import Any

from tests.sim.storage.units import DIRECTORY, State

Content = dict[tuple[Any, ...], bytes]
"""Like a state, but files by path: `("file", path)` and `("directory", path)` instead of inodes and names.

`("link", path)` -> first path: a second name of the same clusters, which only a cut rename on FAT leaves."""

EVIDENCE = ".corrupt-"
"""Damaged documents are kept under a name with the wall clock in it; nobody reads them, so they tell no two contents apart."""

_digests: dict[tuple[Any, bytes], int] = {}


def content_of(state: State) -> Content:
    """`state` without what no name leads to."""
    content: Content = {}
    names: dict[str, list[tuple[str, int]]] = {}
    for key, value in state.items():
        kind = key[0]
        if kind == "name":
            names.setdefault(key[1], []).append((key[2], value))
        elif kind != "inode":
            content[key] = value
    first: dict[int, str] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        for name, inode in names.get(folder or "/", ()):
            path = f"{folder}/{name}"
            if inode == DIRECTORY:
                content["directory", path] = b""
                folders.append(path)
            elif first.setdefault(inode, path) != path:
                content["link", path] = first[inode].encode()
            else:
                content["file", path] = state.get(("inode", inode), b"")
    return content


def state_of(content: Content) -> State:
    """A durable state that holds exactly `content`."""
    state: State = {}
    for inode, (key, value) in enumerate(sorted(content.items(), key=_by_key), start=1):
        if key[0] == "directory":
            folder, _, name = key[1].rpartition("/")
            state[("name", folder or "/", name)] = DIRECTORY
        elif key[0] == "file":
            folder, _, name = key[1].rpartition("/")
            state[("name", folder or "/", name)] = inode
            state[("inode", inode)] = value
        elif key[0] == "link":  # sorted behind all files
            folder, _, name = key[1].rpartition("/")
            origin, _, target = value.decode().rpartition("/")
            state[("name", folder or "/", name)] = state[("name", origin or "/", target)]
        else:
            state[key] = value
    return state


def _by_key(item: tuple[tuple[Any, ...], bytes]) -> str:
    return repr(item[0])


def fingerprint(content: Content) -> int:
    """128 bits that two different contents do not share."""
    total = 0
    for item in content.items():
        digest = _digests.get(item)
        if digest is None:
            key, value = item
            if EVIDENCE in repr(key):
                continue
            raw = hashlib.blake2b(repr(key).encode() + b"\0" + value, digest_size=16).digest()
            digest = _digests[item] = int.from_bytes(raw, "big")
        total += digest
    return total % 2**128
