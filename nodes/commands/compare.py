"""Two local trees side by side, byte for byte: what `demo` relies on when it says that a copy is equal.

Names, types, content, modes, mtimes, link targets, extended attributes, and which names are one object are compared;
owners and access times are not, because a copy need not have them.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from nodes.commands.tree import Kind, LocalNode, look, read_xattrs, scan_directory

DIFFERENCES_MAX = 100
"""A wholly different tree need not fill the memory with its differences: these many tell enough."""
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not equal.

    Attributes:
        path: relative to both roots; empty for the roots themselves.
        what: how the second differs from the first.
    """

    path: bytes
    what: str


@dataclass(slots=True)
class Comparison:
    """What comparing two trees found.

    Attributes:
        objects: pairs that were compared.
        file_bytes: content that was compared, bytes.
        differences: at most DIFFERENCES_MAX of them, in the order of the paths.
    """

    objects: int = 0
    file_bytes: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    @property
    def full(self) -> bool:
        """Whether there is room for no further difference."""
        return len(self.differences) >= DIFFERENCES_MAX

    def add(self, path: bytes, what: str) -> None:
        """Note a difference, if there is room."""
        if not self.full:
            self.differences.append(Difference(path, what))


def compare_trees(one: bytes, other: bytes) -> Comparison:
    """Compare two local trees, down to every byte, until there are DIFFERENCES_MAX differences.

    Raises:
        OSError: one of them cannot be read.
    """
    found = Comparison()
    pending = [(b"", look(one), look(other))]
    first_names: dict[tuple[int, int], bytes] = {}
    other_first_names: dict[tuple[int, int], bytes] = {}
    while pending and not found.full:
        path, first, second = pending.pop()
        found.objects += 1
        _compare_nodes(path, first, second, found)
        if first.kind is not second.kind:
            continue
        if first.kind is Kind.DIR:
            pending += reversed(_children(path, first, second, found))
        elif first_names.setdefault(first.key, path) != other_first_names.setdefault(second.key, path):
            found.add(path, "it is a name of another object than in the first tree (hard links)")
    return found


def _children(
    path: bytes, first: LocalNode, second: LocalNode, found: Comparison
) -> list[tuple[bytes, LocalNode, LocalNode]]:
    """The pairs that two directories share; what only one of them has is a difference."""
    ours = {node.name: node for node in scan_directory(first.path)[0]}
    theirs = {node.name: node for node in scan_directory(second.path)[0]}
    pairs = []
    for name in sorted(ours.keys() | theirs.keys()):
        child = os.path.join(path, name)
        if name not in theirs:
            found.add(child, "it is missing in the second tree")
        elif name not in ours:
            found.add(child, "it is in the second tree only")
        else:
            pairs.append((child, ours[name], theirs[name]))
    return pairs


def _compare_nodes(path: bytes, first: LocalNode, second: LocalNode, found: Comparison) -> None:
    if first.kind is not second.kind:
        found.add(path, f"a {first.kind.value} is a {second.kind.value}")
        return
    if first.kind is not Kind.SYMLINK and first.mode != second.mode:
        found.add(path, f"mode {first.mode:04o} is {second.mode:04o}")
    if first.mtime_ns != second.mtime_ns:
        found.add(path, f"mtime {first.mtime_ns} ns is {second.mtime_ns} ns")
    if first.kind is Kind.SYMLINK and os.readlink(first.path) != os.readlink(second.path):
        found.add(path, "the link's target differs")
    if read_xattrs(first) != read_xattrs(second):
        found.add(path, "extended attributes differ")
    if first.kind is Kind.FILE:
        _compare_content(path, first, second, found)


def _compare_content(path: bytes, first: LocalNode, second: LocalNode, found: Comparison) -> None:
    if first.size != second.size:
        found.add(path, f"{first.size} bytes are {second.size}")
        return
    with open(first.path, "rb") as one, open(second.path, "rb") as other:
        offset = 0
        while True:
            ours, theirs = one.read(_READ_BYTES), other.read(_READ_BYTES)
            if ours != theirs:
                place = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), 0)
                found.add(path, f"content differs at byte {offset + place}")
                return
            if not ours:
                break
            offset += len(ours)
    found.file_bytes += first.size
