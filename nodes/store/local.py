"""Local operations: what clients ask of a site's tree, and what becomes of it; `nodes.store.validate` answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from claudefs_repl.block import Block
from claudefs_repl.clock import HybridClock
from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import JournalId
from nodes.store.resolutions import How


@dataclass(frozen=True, slots=True)
class CreateFile:
    """A new empty file; without a parent and a name it is invisible until it is named."""

    parent: int | None
    name: bytes | None
    mode: int
    uid: int
    gid: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class MakeDir:
    """A new directory; with `exist_ok` one that is there already will do."""

    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    exist_ok: bool = False


@dataclass(frozen=True, slots=True)
class MakeSymlink:
    """A new symbolic link; without a parent and a name it is invisible until it is named."""

    parent: int | None
    name: bytes | None
    uid: int
    gid: int
    mtime_ns: int
    target: bytes


@dataclass(frozen=True, slots=True)
class MakeLink:
    """Another name for a file or symbolic link."""

    inode: int
    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Remove:
    """A name of a file or symbolic link goes."""

    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class RemoveDir:
    """An empty directory goes."""

    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A file that was never named goes with its data."""

    inode: int


@dataclass(frozen=True, slots=True)
class Move:
    """A name goes and another comes; with `replace` what shows the new name makes way."""

    from_parent: int
    from_name: bytes
    to_parent: int
    to_name: bytes
    replace: bool = False


@dataclass(frozen=True, slots=True)
class NameFile:
    """A file that has no name gets one; with `replace` the file that shows it makes way."""

    inode: int
    to_parent: int
    to_name: bytes
    replace: bool = False


@dataclass(frozen=True, slots=True)
class WriteData:
    """Bytes at an offset of a file."""

    inode: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class TruncateFile:
    """A new size of a file."""

    inode: int
    length: int


@dataclass(frozen=True, slots=True)
class SetAttributes:
    """New values for the attributes that are not None."""

    inode: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class SetX:
    """An extended attribute gets a value."""

    inode: int
    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class RemoveX:
    """An extended attribute goes."""

    inode: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Settle:
    """A conflict is settled: accepted as it is, or its loser was restored by the operations before."""

    conflict: bytes
    how: How


LocalOp = (
    CreateFile
    | MakeDir
    | MakeSymlink
    | MakeLink
    | Remove
    | RemoveDir
    | GiveUp
    | Move
    | NameFile
    | WriteData
    | TruncateFile
    | SetAttributes
    | SetX
    | RemoveX
    | Settle
)
"""An inode in it may be -k: the object of the k-th result, from 1, of the same request."""


@dataclass(frozen=True, slots=True)
class LocalRequest:
    """Operations in order; the first that is refused ends the request, those before it stand."""

    ops: Sequence[LocalOp]


@dataclass(frozen=True, slots=True)
class OpResult:
    """One operation's effect.

    Attributes:
        inode: the object acted on.
        shard: of the object.
        seq: of the entry; 0 if there was nothing to do.
    """

    inode: int
    shard: int
    seq: int


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What became of a request: a result for each operation up to the first that was refused, and why it was."""

    results: list[OpResult]
    error: OperationRefused | None


@dataclass(frozen=True, slots=True)
class StampSource:
    """What new entries are stamped with.

    Attributes:
        journal: the journal that they go into.
        shard_count: of the cluster.
        next_seqs: for each shard.
        clock: it has observed everything that is applied.
        wall_us: the time of day, for all of the group.
    """

    journal: JournalId
    shard_count: int
    next_seqs: tuple[int, ...]
    clock: HybridClock
    wall_us: int


@dataclass(frozen=True, slots=True)
class LocalFold:
    """What became of a group of requests.

    Attributes:
        outcomes: one for each request.
        blocks: the entries to journal, in seq order for each shard.
        next_seqs: for the next group.
    """

    outcomes: list[RequestOutcome]
    blocks: list[Block]
    next_seqs: tuple[int, ...]
