"""Validating and folding local operations: from clients' wishes to entries.

Validation and effect are one transaction: each operation sees what the ones before it did. An operation that does not fit
is refused with the error that POSIX has for it and changes nothing.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from claudefs_repl.block import ROW_HEAD_BYTES, Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import (
    DATA_BYTES_MAX,
    FILE_BYTES_MAX,
    ROOT_INODE,
    STAMP_BITS,
    XATTR_VALUE_BYTES_MAX,
    Inode,
    Shard,
    Stamp,
    entry_crc32,
    make_inode,
    shard_of,
)
from claudefs_repl.operations import (
    Create,
    Link,
    MkDir,
    Operation,
    RemoveXattr,
    Rename,
    Replaced,
    SetAttr,
    SetXattr,
    Symlink,
    Truncate,
    Unlink,
    Write,
    check_name,
    path_text,
)
from nodes.store.causality import Cause
from nodes.store.conflict_view import recorded_conflict
from nodes.store.fold import Fold
from nodes.store.local import (
    CreateFile,
    GiveUp,
    LocalFold,
    LocalOp,
    LocalRequest,
    MakeDir,
    MakeLink,
    MakeSymlink,
    Move,
    NameFile,
    OpResult,
    Remove,
    RemoveDir,
    RemoveX,
    RequestOutcome,
    SetAttributes,
    Settle,
    SetX,
    StampSource,
    TruncateFile,
    WriteData,
)
from nodes.store.resolutions import How, is_resolution, resolution_name
from nodes.store.schema import Kind
from nodes.store.view import Claim, View, is_conflict_name
from protocol.payload import OP_OF, PayloadInvalid, decode_payload, encode_payload

_OBJECT = f"""
SELECT kind, named OR kind = {Kind.DIR}, inode = {ROOT_INODE} OR EXISTS (SELECT 1 FROM link l WHERE l.inode = i.inode)
FROM inode i WHERE inode = ? AND kind IS NOT NULL AND gone = 0
"""  # noqa: S608 -- joined from constants only
BLOCK_TARGET_BYTES = 1 << 20
"""A block of new entries is closed at this size: what one batch carries by default."""


def fold_local(fold: Fold, requests: Sequence[LocalRequest], source: StampSource) -> LocalFold:
    """Validate requests and fold what fits; everything that is applied by now is what its entries have `seen`."""
    group = _Group(fold, source)
    outcomes = [group.run(request) for request in requests]
    next_seqs = group.finish()
    return LocalFold(outcomes, group.blocks, next_seqs)


@dataclass(frozen=True, slots=True)
class _Planned:
    """An operation that was found to fit; `inode` is None for an object to be made, `operation` for nothing to do."""

    inode: int | None
    operation: Operation | None


@dataclass(slots=True)
class _OpenBlock:
    rows: list[NewRow] = field(default_factory=list)
    body_bytes: int = 0


class _Group:
    """Requests that become durable together: their entries by shard, all with the same `seen`."""

    def __init__(self, fold: Fold, source: StampSource) -> None:
        applied = fold.cursors_of(source.journal)
        assert source.next_seqs == tuple(seq + 1 for seq in applied), "the journal is ahead of the store"
        assert source.shard_count == fold.shard_count
        # What is written here orders after all that it has seen.
        source.clock.observe(fold.timestamp_us)
        self.blocks: list[Block] = []
        self._fold = fold
        self._source = source
        self._view = View(fold.connection)
        # Of its own journal an entry has seen all that is before it. To tell that would give each group a vector of its own.
        others = {journal: seqs for journal, seqs in fold.applied.items() if journal != source.journal}
        self._seen = encode_cursors(others, source.shard_count)
        self._run = fold.causality.name_of(self._seen)
        self._next_seqs = list(source.next_seqs)
        fold.causality.begin_local(source.next_seqs)
        self._open = [_OpenBlock() for _ in range(source.shard_count)]
        self._made: list[int] = []

    def run(self, request: LocalRequest) -> RequestOutcome:
        """Fold a request up to the first operation that is refused."""
        results: list[OpResult] = []
        self._made = []
        for op in request.ops:
            try:
                result = self._run_one(op)
            except OperationRefused as error:
                return RequestOutcome(results, error)
            results.append(result)
            self._made.append(result.inode)
        return RequestOutcome(results, None)

    def finish(self) -> tuple[int, ...]:
        """Close the blocks and move the journal's applied cursors.

        Returns:
            the next seq of each shard.
        """
        for shard in range(self._source.shard_count):
            self._close_block(Shard(shard))
        self._fold.advance(self._source.journal, tuple(seq - 1 for seq in self._next_seqs))
        self._fold.timestamp_us = max(self._fold.timestamp_us, self._source.clock.last_us)
        self._fold.flush()
        return tuple(self._next_seqs)

    def _run_one(self, op: LocalOp) -> OpResult:
        planned = _PLANS[type(op)](self, op)
        if planned.operation is None:
            assert planned.inode is not None
            return OpResult(planned.inode, shard_of(planned.inode, self._source.shard_count), 0)
        code, payload = OP_OF[type(planned.operation)], encode_payload(planned.operation)
        try:
            # What is folded here is what every other site will decode; what it would not take must not pass here.
            operation = decode_payload(code, payload)
        except PayloadInvalid as error:
            raise OperationRefused(errno.EINVAL, str(error)) from error
        journal = self._source.journal
        timestamp_us = self._source.clock.tick(self._source.wall_us)
        inode = make_inode(journal.origin, timestamp_us) if planned.inode is None else Inode(planned.inode)
        shard = shard_of(inode, self._source.shard_count)
        seq = self._next_seqs[shard]
        stamp = Stamp(timestamp_us, journal.origin, journal.incarnation, shard, seq)
        try:
            self._fold.check_free(stamp, inode)
        except PayloadInvalid as error:
            remedy = "upgrade this site, then use: claudefs-repl deadletters retry"
            raise OperationRefused(errno.EBUSY, f"{inode:x} cannot be changed: the change {error}; {remedy}") from error
        self._fold.apply(Cause(stamp, stamp.pack(), self._seen, self._run, is_local=True), inode, operation)
        crc32 = entry_crc32(seq, shard, journal.origin, timestamp_us, inode, code, payload)
        size = len(payload) + ROW_HEAD_BYTES
        if self._open[shard].body_bytes + size > BLOCK_TARGET_BYTES:
            self._close_block(shard)
        self._next_seqs[shard] += 1
        self._open[shard].rows.append(NewRow(timestamp_us, code, inode, payload, crc32))
        self._open[shard].body_bytes += size
        return OpResult(inode, shard, seq)

    def _close_block(self, shard: Shard) -> None:
        rows = self._open[shard].rows
        if rows:
            first_seq = self._next_seqs[shard] - len(rows)
            block = Block.build(shard=shard, first_seq=first_seq, rows=rows, seen=self._seen)
            journal, last_seq = self._source.journal, block.last_seq
            self._fold.causality.note(journal, shard, first_seq=first_seq, last_seq=last_seq, seen=self._seen)
            self._fold.sums_of(journal).add(shard, folded=len(rows), crcs=block.crcs)
            self.blocks.append(block)
        self._open[shard] = _OpenBlock()

    # What follows finds out whether an operation fits, and changes nothing.

    def _plan_create(self, op: CreateFile | MakeSymlink) -> _Planned:
        parent, name = self._new_place(op.parent, op.name)
        if isinstance(op, CreateFile):
            return _Planned(None, Create(op.mode, op.uid, op.gid, op.mtime_ns, parent, name))
        return _Planned(None, Symlink(op.uid, op.gid, op.mtime_ns, parent, name, op.target))

    def _plan_mkdir(self, op: MakeDir) -> _Planned:
        parent = self._directory(op.parent)
        check_name(op.name)
        there = self._view.find(parent, op.name)
        if there is not None:
            if op.exist_ok and self._kind(there.inode) == Kind.DIR:
                return _Planned(there.inode, None)
            raise OperationRefused(errno.EEXIST, f"there is already a {path_text(op.name)}")
        _check_new_name(op.name)
        return _Planned(None, MkDir(op.mode, op.uid, op.gid, op.mtime_ns, Inode(parent), op.name))

    def _plan_link(self, op: MakeLink) -> _Planned:
        inode = self._no_directory(op.inode)
        parent, name = self._new_place(op.parent, op.name)
        assert parent is not None
        assert name is not None
        return _Planned(inode, Link(parent, name))

    def _plan_remove(self, op: Remove) -> _Planned:
        parent, claim = self._claim(op.parent, op.name)
        if self._kind(claim.inode) == Kind.DIR:
            raise OperationRefused(errno.EISDIR, f"a directory: {path_text(op.name)}")
        return _Planned(claim.inode, Unlink(Inode(parent), claim.name, is_dir=False))

    def _plan_rmdir(self, op: RemoveDir) -> _Planned:
        parent, claim = self._claim(op.parent, op.name)
        if self._kind(claim.inode) != Kind.DIR:
            raise OperationRefused(errno.ENOTDIR, f"not a directory: {path_text(op.name)}")
        if not self._view.is_empty(claim.inode):
            raise OperationRefused(errno.ENOTEMPTY, f"the directory is not empty: {path_text(op.name)}")
        return _Planned(claim.inode, Unlink(Inode(parent), claim.name, is_dir=True))

    def _plan_give_up(self, op: GiveUp) -> _Planned:
        inode = self._nameless(op.inode)
        return _Planned(inode, Unlink(None, None, is_dir=False))

    def _plan_move(self, op: Move) -> _Planned:
        from_parent, claim = self._claim(op.from_parent, op.from_name)
        to_parent = self._directory(op.to_parent)
        check_name(op.to_name)
        is_dir = self._kind(claim.inode) == Kind.DIR
        if is_dir:
            self._check_not_beneath(claim.inode, to_parent, op.from_name)
        there = self._view.find(to_parent, op.to_name)
        if there is not None and there.inode == claim.inode:
            return _Planned(claim.inode, None)
        _check_new_name(op.to_name)
        replaced = self._replaced(there, op.to_name, is_dir=is_dir, may_replace=op.replace)
        return _Planned(
            claim.inode, Rename(Inode(from_parent), claim.name, Inode(to_parent), op.to_name, is_dir, replaced)
        )

    def _plan_name(self, op: NameFile) -> _Planned:
        inode = self._nameless(op.inode)
        to_parent = self._directory(op.to_parent)
        check_name(op.to_name)
        _check_new_name(op.to_name)
        there = self._view.find(to_parent, op.to_name)
        replaced = self._replaced(there, op.to_name, is_dir=False, may_replace=op.replace)
        return _Planned(inode, Rename(None, None, Inode(to_parent), op.to_name, is_dir=False, replaced=replaced))

    def _plan_write(self, op: WriteData) -> _Planned:
        inode = self._file(op.inode)
        if op.offset < 0 or len(op.data) > DATA_BYTES_MAX:
            raise OperationRefused(
                errno.EINVAL, f"a write has at most {DATA_BYTES_MAX} bytes, not {len(op.data)} at {op.offset}"
            )
        if op.offset + len(op.data) > FILE_BYTES_MAX:
            raise OperationRefused(errno.EFBIG, f"a file has at most {FILE_BYTES_MAX} bytes")
        return _Planned(inode, Write(op.offset, op.data))

    def _plan_truncate(self, op: TruncateFile) -> _Planned:
        inode = self._file(op.inode)
        if op.length > FILE_BYTES_MAX:
            raise OperationRefused(errno.EFBIG, f"a file has at most {FILE_BYTES_MAX} bytes")
        return _Planned(inode, Truncate(op.length))

    def _plan_attributes(self, op: SetAttributes) -> _Planned:
        inode = self._inode(op.inode)
        self._kind(inode)
        fields = SetAttr(op.mode, op.uid, op.gid, op.mtime_ns)
        return _Planned(inode, None if fields == SetAttr.only() else fields)

    def _plan_set_xattr(self, op: SetX) -> _Planned:
        inode = self._inode(op.inode)
        self._kind(inode)
        check_name(op.name)
        _check_settable(op.name)
        if len(op.value) > XATTR_VALUE_BYTES_MAX:
            raise OperationRefused(errno.E2BIG, f"an attribute has at most {XATTR_VALUE_BYTES_MAX} bytes")
        return _Planned(inode, SetXattr(op.name, op.value))

    def _plan_remove_xattr(self, op: RemoveX) -> _Planned:
        inode = self._inode(op.inode)
        self._kind(inode)
        _check_settable(op.name)
        if op.name not in self._view.xattrs(inode):
            raise OperationRefused(errno.ENODATA, f"no such attribute: {path_text(op.name)}")
        return _Planned(inode, RemoveXattr(op.name))

    def _plan_settle(self, op: Settle) -> _Planned:
        # One whose object got a name meanwhile is hidden, and settled all the same: it may show again.
        found = recorded_conflict(self._fold.connection, op.conflict)
        if found is None:
            raise OperationRefused(errno.ENOENT, f"no such conflict: {op.conflict.hex()}")
        if found.resolution is not None:
            raise OperationRefused(errno.EALREADY, f"conflict {found.id} is settled already: {found.resolution}")
        how = str(int(How(op.how))).encode()
        return _Planned(found.object, SetXattr(resolution_name(op.conflict), how))

    def _inode(self, inode: int) -> int:
        if inode >= 0:
            return inode
        if -inode > len(self._made):
            raise OperationRefused(errno.EINVAL, f"the request has no result {-inode} yet")
        return self._made[-inode - 1]

    def _kind(self, inode: int) -> int:
        row = self._fold.connection.execute(_OBJECT, (inode,)).fetchone()
        # What its maker does to an object before it has a name is judged against nothing (`nodes.store.judge`), and what
        # has lost its last name may be reclaimed elsewhere already (`nodes.store.forgetting`).
        is_own = row is not None and inode >> STAMP_BITS == self._source.journal.origin
        if row is None or not (row[2] if row[1] else is_own):
            raise OperationRefused(errno.ENOENT, f"no such object: {inode:x}")
        return int(row[0])

    def _file(self, inode: int) -> int:
        inode = self._inode(inode)
        kind = self._kind(inode)
        if kind != Kind.FILE:
            number = errno.EISDIR if kind == Kind.DIR else errno.EINVAL
            raise OperationRefused(number, f"not a regular file: {inode:x}")
        return inode

    def _no_directory(self, inode: int) -> int:
        inode = self._inode(inode)
        if self._kind(inode) == Kind.DIR:
            raise OperationRefused(errno.EPERM, f"a directory has one name only: {inode:x}")
        return inode

    def _nameless(self, inode: int) -> int:
        inode = self._no_directory(inode)
        (named,) = self._fold.connection.execute("SELECT named FROM inode WHERE inode = ?", (inode,)).fetchone()
        if named:
            raise OperationRefused(errno.EINVAL, f"the file has, or had, a name: {inode:x}")
        return inode

    def _directory(self, inode: int) -> int:
        inode = self._inode(inode)
        self._view.check_dir(inode)
        return inode

    def _claim(self, parent: int, name: bytes) -> tuple[int, Claim]:
        parent = self._directory(parent)
        claim = self._view.find(parent, name)
        if claim is None:
            raise OperationRefused(errno.ENOENT, f"no such file or directory: {path_text(name)}")
        return parent, claim

    def _new_place(self, parent: int | None, name: bytes | None) -> tuple[Inode | None, bytes | None]:
        if parent is None and name is None:
            return None, None
        if parent is None or name is None:
            raise OperationRefused(errno.EINVAL, "a parent and a name come together or not at all")
        parent = self._directory(parent)
        check_name(name)
        if self._view.find(parent, name) is not None:
            raise OperationRefused(errno.EEXIST, f"there is already a {path_text(name)}")
        _check_new_name(name)
        return Inode(parent), name

    def _replaced(self, there: Claim | None, name: bytes, *, is_dir: bool, may_replace: bool) -> tuple[Replaced, ...]:
        if there is None:
            return ()
        if not may_replace:
            raise OperationRefused(errno.EEXIST, f"there is already a {path_text(name)}")
        if self._kind(there.inode) == Kind.DIR:
            if not is_dir:
                raise OperationRefused(errno.EISDIR, f"a directory: {path_text(name)}")
            if not self._view.is_empty(there.inode):
                raise OperationRefused(errno.ENOTEMPTY, f"the directory is not empty: {path_text(name)}")
            return (Replaced(Inode(there.inode), is_dir=True),)
        if is_dir:
            raise OperationRefused(errno.ENOTDIR, f"not a directory: {path_text(name)}")
        return (Replaced(Inode(there.inode), is_dir=False),)

    def _check_not_beneath(self, directory: int, target: int, name: bytes) -> None:
        while target != ROOT_INODE:
            if target == directory:
                raise OperationRefused(errno.EINVAL, f"a directory cannot be moved beneath itself: {path_text(name)}")
            places = self._view.names_of(target)
            if not places:
                return
            target = places[0][0]


def _check_new_name(name: bytes) -> None:
    if is_conflict_name(name):
        raise OperationRefused(
            errno.EINVAL, f"names of this form tell conflicts and cannot be given: {path_text(name)}"
        )


def _check_settable(name: bytes) -> None:
    if is_resolution(name):
        raise OperationRefused(
            errno.EPERM,
            f"attributes of this form tell how conflicts were settled and cannot be given: {path_text(name)}",
        )


_PLANS: dict[type, Callable[[_Group, Any], _Planned]] = {
    CreateFile: _Group._plan_create,
    MakeSymlink: _Group._plan_create,
    MakeDir: _Group._plan_mkdir,
    MakeLink: _Group._plan_link,
    Remove: _Group._plan_remove,
    RemoveDir: _Group._plan_rmdir,
    GiveUp: _Group._plan_give_up,
    Move: _Group._plan_move,
    NameFile: _Group._plan_name,
    WriteData: _Group._plan_write,
    TruncateFile: _Group._plan_truncate,
    SetAttributes: _Group._plan_attributes,
    SetX: _Group._plan_set_xattr,
    RemoveX: _Group._plan_remove_xattr,
    Settle: _Group._plan_settle,
}
