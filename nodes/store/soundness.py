"""What an entry must be by itself to take effect: rules that look at nothing but the entry, so that all sites agree."""

from __future__ import annotations

from claudefs_repl.block import SUPERSEDED
from claudefs_repl.journal import ROOT_INODE, STAMP_BITS, Op, Stamp, make_inode, shard_of
from claudefs_repl.operations import INODE_MAX, Create, Link, MkDir, Operation, Rename, Symlink, Unlink
from claudefs_repl.sync import SUPERSEDABLE
from nodes.store.dead_letters import EntryUnsound

TIMESTAMP_US_MAX = (1 << STAMP_BITS) - 1
"""An inode number holds no greater stamp; the year 2112."""
ANY_TIME = frozenset({Op.WRITE, Op.TRUNCATE, Op.SET_ATTR, Op.SET_XATTR, Op.REMOVE_XATTR})
"""Operations of which `check_entry` looks at nothing but the object's number."""


def check_superseded(stamp: Stamp, inode: int, op: int, flags: int, payload: bytes, shard_count: int) -> None:
    """Refuse an entry with flags that is no superseded one (`claudefs_repl.sync`).

    Raises:
        EntryUnsound: it has a payload or is of a kind that is never emptied, it breaks a rule for every entry, or its
            flags say something else.
    """
    if flags != SUPERSEDED or payload or op not in SUPERSEDABLE:
        raise EntryUnsound(f"flags {flags:#x} on {Op(op).name} with {len(payload)} bytes of payload are not known")
    check_entry(stamp, inode, None, shard_count)


def check_entry(stamp: Stamp, inode: int, operation: Operation | None, shard_count: int) -> None:
    """Refuse an entry that no sound site writes, by rules that look at nothing but the entry.

    Raises:
        EntryUnsound: it breaks a rule on which convergence rests.
    """
    if not 1 <= inode <= INODE_MAX:
        raise EntryUnsound(f"inode {inode} is out of range")
    if stamp.timestamp_us > TIMESTAMP_US_MAX:
        raise EntryUnsound(f"stamp {stamp.timestamp_us} is out of range")
    if shard_of(inode, shard_count) != stamp.shard:
        raise EntryUnsound(f"inode {inode:x} does not belong into shard {stamp.shard}")
    match operation:
        case Create() | MkDir() | Symlink():
            if inode != make_inode(stamp.origin, stamp.timestamp_us):
                raise EntryUnsound(f"inode {inode:x} is not the number that its stamp gives")
            if isinstance(operation, MkDir):
                _check_parent(stamp, operation.parent)
        case Unlink() | Rename() | Link():
            is_root = inode == ROOT_INODE
            if isinstance(operation, Unlink) and operation.parent is None and inode >> STAMP_BITS != stamp.origin:
                raise EntryUnsound("a file without a name is given up by the site that made it")
            if isinstance(operation, Rename):
                is_root = is_root or any(replaced.inode == ROOT_INODE for replaced in operation.replaced)
                if operation.is_dir:
                    _check_parent(stamp, operation.to_parent)
            if is_root:
                raise EntryUnsound("the root is neither named nor removed")
        case _:
            pass


def _check_parent(stamp: Stamp, parent: int) -> None:
    if parent & TIMESTAMP_US_MAX >= stamp.timestamp_us:
        raise EntryUnsound("a directory is placed into one that is younger than the entry")
