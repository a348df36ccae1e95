"""The tree as one number: equal at two sites exactly when they show equal trees.

The canonical order is depth first, names of a directory in byte order. Each object there has a SHA-256 of its own, over
type, mode, uid, gid, mtime, link target, extended attributes by name, size and content; a second name of a hard-linked
object has one over the first name of the group. The tree's is over every (path, object's digest). All fields go in with
their lengths. Content goes in as aligned pieces, those that are all zero left out: a hole is the same as zeros, and a
sparse file costs what it holds. Nothing that depends on order of arrival or on one store's numbers goes in.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from claudefs_repl.journal import ROOT_INODE
from nodes.store.extents import data_runs

if TYPE_CHECKING:
    from nodes.store.view import Stat, View

PIECE_BYTES = 64 * 1024
"""The unit in which zeros are left out; equal to the largest run, so that a piece touches few."""
MANIFEST_MAX = 10_000
"""Objects of one page."""
_ZEROS = bytes(PIECE_BYTES)
_ATTRIBUTES = struct.Struct(">IIIqQ")
_LENGTH = struct.Struct(">Q")
_LINKED = b"link"


def tree_digest(view: View) -> bytes:
    """SHA-256 over the whole visible tree."""
    whole = hashlib.sha256()
    for path, one in _objects(view, None):
        _add(whole, path)
        whole.update(one)
    return whole.digest()


def manifest(view: View, after: bytes | None, limit: int) -> tuple[list[tuple[bytes, bytes]], bool]:
    """A page of (path, object's digest) in canonical order beyond a path, and whether there is more."""
    page: list[tuple[bytes, bytes]] = []
    for path, one in _objects(view, after):
        if len(page) == min(limit, MANIFEST_MAX):
            return page, True
        page.append((path, one))
    return page, False


def _objects(view: View, after: bytes | None) -> Iterator[tuple[bytes, bytes]]:
    first_paths: dict[int, bytes] = {}
    for path, found in _walk(view, after):
        if found.kind != "dir" and found.nlink > 1:
            first = first_paths.get(found.inode)
            if first is None:
                first = first_paths[found.inode] = _first_path(view, found.inode)
            if path != first:
                linked = hashlib.sha256(_LINKED)
                _add(linked, first)
                yield path, linked.digest()
                continue
        yield path, object_digest(view, found)


def _walk(view: View, after: bytes | None) -> Iterator[tuple[bytes, Stat]]:
    """Every path with its object, in canonical order beyond a path."""
    parts = None if after is None else [part for part in after.split(b"/") if part]
    if parts is None:
        yield b"/", view.stat(ROOT_INODE)
        parts = []
    # One frame for each directory that is open: its path, what is left of it, and what is left of `after` in it.
    stack = [(b"", view.walk_dir(ROOT_INODE, low=parts[0] if parts else b""), parts)]
    while stack:
        path, entries, rest = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            continue
        assert entry.name is not None
        entry_path = path + b"/" + entry.name
        is_passed = bool(rest) and entry.name == rest[0]
        if not is_passed:
            yield entry_path, entry
        if entry.kind == "dir":
            below = rest[1:] if is_passed else []
            stack.append((entry_path, view.walk_dir(entry.inode, low=below[0] if below else b""), below))


def object_digest(view: View, found: Stat) -> bytes:
    """SHA-256 over one object: attributes and content, no name."""
    whole = hashlib.sha256(found.kind.encode().ljust(8))
    whole.update(_ATTRIBUTES.pack(found.mode, found.uid, found.gid, found.mtime_ns, found.size))
    _add(whole, found.target or b"")
    xattrs = view.xattrs(found.inode)
    whole.update(_LENGTH.pack(len(xattrs)))
    for name in sorted(xattrs):
        _add(whole, name)
        _add(whole, xattrs[name])
    if found.kind == "file" and found.size:
        whole.update(_content_digest(view, found))
    return whole.digest()


def _content_digest(view: View, found: Stat) -> bytes:
    whole = hashlib.sha256()
    piece, piece_at = bytearray(PIECE_BYTES), 0

    def finish() -> None:
        if piece != _ZEROS:
            whole.update(_LENGTH.pack(piece_at))
            whole.update(piece)

    for at, data in data_runs(view.connection, found.inode, 0, found.size):
        taken = 0
        while taken < len(data):
            offset = at + taken
            aligned = offset - offset % PIECE_BYTES
            if aligned != piece_at:
                finish()
                piece[:], piece_at = _ZEROS, aligned
            within = offset - aligned
            part = data[taken : taken + PIECE_BYTES - within]
            piece[within : within + len(part)] = part
            taken += len(part)
    finish()
    return whole.digest()


def _first_path(view: View, inode: int) -> bytes:
    """The first, in canonical order, of the paths of an object."""
    paths = []
    for parent, name in view.names_of(inode):
        above = _path_of(view, parent)
        if above is not None:
            paths.append([*above, view.shown_name(parent, name, inode)])
    return b"/" + b"/".join(min(paths))


def _path_of(view: View, directory: int) -> list[bytes] | None:
    """The names from the root down to a directory, None if it is not in the tree."""
    names: list[bytes] = []
    while directory != ROOT_INODE:
        places = view.names_of(directory)
        # A forged link may name a file as its parent, and files have several names.
        if not places or view.stat(directory).kind != "dir":
            return None
        ((parent, name),) = places
        names.append(view.shown_name(parent, name, directory))
        directory = parent
    return names[::-1]


def _add(whole: hashlib._Hash, field: bytes) -> None:
    whole.update(_LENGTH.pack(len(field)))
    whole.update(field)
