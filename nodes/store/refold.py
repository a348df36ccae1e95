"""Folding again: entries of a closed journal that nobody else has become new local operations, as far as they still fit."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass, replace

from claudefs_repl.block import Block
from claudefs_repl.error import OperationRefused
from claudefs_repl.operations import (
    Create,
    Link,
    MkDir,
    Operation,
    RemoveXattr,
    Rename,
    SetAttr,
    SetXattr,
    Symlink,
    Truncate,
    Unlink,
    Write,
    path_text,
)
from nodes.store.fold import Fold
from nodes.store.local import (
    CreateFile,
    GiveUp,
    LocalOp,
    LocalRequest,
    MakeDir,
    MakeLink,
    MakeSymlink,
    Move,
    NameFile,
    Remove,
    RemoveDir,
    RemoveX,
    SetAttributes,
    SetX,
    StampSource,
    TruncateFile,
    WriteData,
)
from nodes.store.validate import fold_local
from nodes.store.view import View
from protocol.payload import PayloadInvalid, decode_payload


@dataclass(frozen=True, slots=True, order=True)
class OldEntry:
    """An entry of a closed journal; such entries compare in the order in which they were made."""

    timestamp_us: int
    shard: int
    seq: int
    inode: int
    op: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class RefusedEntry:
    """An entry that was not journaled again, and why."""

    entry: OldEntry
    reason: str


@dataclass(frozen=True, slots=True)
class Refold:
    """What became of some entries.

    Attributes:
        blocks: the new entries, to be journaled.
        next_seqs: for the next of them.
        refused: those that no longer fit.
    """

    blocks: list[Block]
    next_seqs: tuple[int, ...]
    refused: list[RefusedEntry]


def refold(fold: Fold, entries: Sequence[OldEntry], source: StampSource, numbers: dict[int, int]) -> Refold:
    """Fold entries as if clients asked for the same again now.

    Args:
        fold: the open transaction.
        entries: in the order in which they were made.
        source: of the new stamps and seqs.
        numbers: for each object made again its old inode number and the new one; it grows.
    """
    blocks: list[Block] = []
    refused: list[RefusedEntry] = []
    view = View(fold.connection)
    for entry in entries:
        try:
            op = _local_op(view, entry, decode_payload(entry.op, entry.payload), numbers)
        except (OperationRefused, PayloadInvalid) as error:
            refused.append(RefusedEntry(entry, str(error)))
            continue
        done = fold_local(fold, [LocalRequest([op])], source)
        source = replace(source, next_seqs=done.next_seqs)
        blocks += done.blocks
        (outcome,) = done.outcomes
        if outcome.error is not None:
            refused.append(RefusedEntry(entry, str(outcome.error)))
        elif isinstance(op, CreateFile | MakeDir | MakeSymlink):
            numbers[entry.inode] = outcome.results[0].inode
    return Refold(blocks, source.next_seqs, refused)


def _local_op(view: View, entry: OldEntry, operation: Operation, numbers: dict[int, int]) -> LocalOp:
    """What a client would ask to get the same effect.

    Raises:
        OperationRefused: the name that it acts on shows another object by now, or nothing.
    """

    def now(inode: int) -> int:
        return numbers.get(inode, inode)

    inode = now(entry.inode)
    match operation:
        case Create(mode, uid, gid, mtime_ns, parent, name):
            return CreateFile(None if parent is None else now(parent), name, mode, uid, gid, mtime_ns)
        case MkDir(mode, uid, gid, mtime_ns, parent, name):
            return MakeDir(now(parent), name, mode, uid, gid, mtime_ns)
        case Symlink(uid, gid, mtime_ns, parent, name, target):
            return MakeSymlink(None if parent is None else now(parent), name, uid, gid, mtime_ns, target)
        case Link(parent, name):
            return MakeLink(inode, now(parent), name)
        case Unlink(parent, name, is_dir):
            if parent is None or name is None:
                return GiveUp(inode)
            shown = _shown(view, inode, now(parent), name)
            return RemoveDir(now(parent), shown) if is_dir else Remove(now(parent), shown)
        case Rename():
            return _rename(view, inode, operation, numbers)
        case Write(offset, data):
            return WriteData(inode, offset, data)
        case Truncate(length):
            return TruncateFile(inode, length)
        case SetAttr(mode, uid, gid, mtime_ns):
            return SetAttributes(inode, mode, uid, gid, mtime_ns)
        case SetXattr(name, value):
            return SetX(inode, name, value)
        case RemoveXattr(name):
            return RemoveX(inode, name)


def _rename(view: View, inode: int, operation: Rename, numbers: dict[int, int]) -> LocalOp:
    to_parent = numbers.get(operation.to_parent, operation.to_parent)
    there = view.find(to_parent, operation.to_name)
    replaced = {numbers.get(one.inode, one.inode) for one in operation.replaced}
    if there is not None and there.inode != inode and there.inode not in replaced:
        raise OperationRefused(errno.EEXIST, f"another object has the name {path_text(operation.to_name)} by now")
    if operation.from_parent is None or operation.from_name is None:
        return NameFile(inode, to_parent, operation.to_name, replace=True)
    from_parent = numbers.get(operation.from_parent, operation.from_parent)
    shown = _shown(view, inode, from_parent, operation.from_name)
    return Move(from_parent, shown, to_parent, operation.to_name, replace=True)


def _shown(view: View, inode: int, parent: int, name: bytes) -> bytes:
    """The name under which an object shows that has, or shares, a name."""
    if (parent, name) not in view.names_of(inode):
        raise OperationRefused(errno.ENOENT, f"the object no longer has the name {path_text(name)}")
    return view.shown_name(parent, name, inode)
