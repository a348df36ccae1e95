"""Payloads: an operation's details as msgpack, on the wire and on disk alike.

A payload is one msgpack array: the layout version (1), then the fields of the operation's dataclass in their order.
Integers are non-negative but for times; `replaced` is an array of [inode, is_dir].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgpack

from claudefs_repl.journal import (
    DATA_BYTES_MAX,
    FILE_BYTES_MAX,
    NAME_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    SYMLINK_BYTES_MAX,
    XATTR_VALUE_BYTES_MAX,
    Inode,
    Op,
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
)

VERSION = 1
MODE_MAX = 0o7777
ID_MAX = 0xFFFF_FFFF
TIME_NS_LIMIT = 1 << 63
INODE_MAX = (1 << 63) - 1
REPLACED_MAX = 64
"""One name shows one object, and its concurrent rivals as conflict names: a Rename never replaces more than a few."""

WRITE_OFFSET_MAX = FILE_BYTES_MAX - DATA_BYTES_MAX
"""A write that begins no later ends within the largest file, however long it is."""
_unpack = partial(
    msgpack.unpackb,
    use_list=False,
    raw=False,
    strict_map_key=True,
    max_bin_len=PAYLOAD_BYTES_MAX,
    max_str_len=0,
    max_array_len=REPLACED_MAX,
    max_map_len=0,
    max_ext_len=0,
)

OP_OF: dict[type, Op] = {
    Create: Op.CREATE,
    Unlink: Op.UNLINK,
    Rename: Op.RENAME,
    Write: Op.WRITE,
    Truncate: Op.TRUNCATE,
    SetAttr: Op.SET_ATTR,
    Link: Op.LINK,
    Symlink: Op.SYMLINK,
    MkDir: Op.MKDIR,
    SetXattr: Op.SET_XATTR,
    RemoveXattr: Op.REMOVE_XATTR,
}


class PayloadInvalid(ValueError):
    """A payload that cannot be decoded, or is of an unknown version: the entry is dead-lettered."""


def encode_payload(operation: Operation) -> bytes:
    """The payload of an operation; `decode_payload` is its inverse."""
    match operation:
        case Write(offset, data):
            fields: list[Any] = [VERSION, offset, data]
        case Rename():
            replaced = [[r.inode, r.is_dir] for r in operation.replaced]
            fields = [
                VERSION,
                operation.from_parent,
                operation.from_name,
                operation.to_parent,
                operation.to_name,
                operation.is_dir,
                replaced,
            ]
        case _:
            fields = [VERSION, *[getattr(operation, name) for name in operation.__slots__]]
    packed: bytes = msgpack.packb(fields, use_bin_type=True)
    return packed


def decode_payload(op: int, payload: bytes) -> Operation:
    """The operation that a payload tells.

    Raises:
        PayloadInvalid: not msgpack, another version, another number of fields, or a field out of its range.
    """
    try:
        fields = _unpack(payload)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise PayloadInvalid(f"not a payload: {error}") from error
    quick = _QUICK.get(op)
    if quick is not None and type(fields) is tuple:
        operation = quick(fields)
        if operation is not None:
            return operation
    if not isinstance(fields, tuple) or not fields:
        raise PayloadInvalid("a payload is an array that begins with its version")
    if fields[0] != VERSION or type(fields[0]) is not int:
        raise PayloadInvalid(f"payload version {_show(fields[0])} is not known")
    if op not in _SCHEMAS:
        raise PayloadInvalid(f"operation {op} is not known")
    decoder, checks = _SCHEMAS[op]
    if len(fields) != len(checks) + 1:
        raise PayloadInvalid(f"{Op(op).name} has {len(checks)} fields, not {len(fields) - 1}")
    for field, check in zip(fields[1:], checks, strict=True):
        if not check(field):
            raise PayloadInvalid(f"{Op(op).name} has a field out of range: {_show(field)}")
    operation = decoder(*fields[1:])
    if isinstance(operation, Create | Symlink | Unlink) and (operation.parent is None) != (operation.name is None):
        raise PayloadInvalid("a parent and a name come together or not at all")
    if isinstance(operation, Rename) and (operation.from_parent is None) != (operation.from_name is None):
        raise PayloadInvalid("a parent and a name come together or not at all")
    if isinstance(operation, Write) and operation.offset + len(operation.data) > FILE_BYTES_MAX:
        raise PayloadInvalid("a write ends beyond the largest file")
    return operation


def _decode_write(fields: tuple[Any, ...]) -> Write | None:
    """A write whose fields are in their ranges, beyond doubt; None leaves it to the schema, which tells what is wrong."""
    if len(fields) == 3:
        version, offset, data = fields
        if (
            type(version) is type(offset) is int
            and type(data) is bytes
            and version == VERSION
            and 0 <= offset <= WRITE_OFFSET_MAX
            and len(data) <= DATA_BYTES_MAX
        ):
            return Write(offset, data)
    return None


def _decode_create(fields: tuple[Any, ...]) -> Create | None:
    """Likewise a file that is made with a name."""
    if len(fields) == 7:
        version, mode, uid, gid, mtime_ns, parent, name = fields
        if (
            type(version) is type(mode) is type(uid) is type(gid) is type(mtime_ns) is int
            and type(parent) is int
            and version == VERSION
            and 0 <= mode <= MODE_MAX
            and 0 <= uid <= ID_MAX
            and 0 <= gid <= ID_MAX
            and -TIME_NS_LIMIT <= mtime_ns < TIME_NS_LIMIT
            and 1 <= parent <= INODE_MAX
            and _name(name)
        ):
            return Create(mode, uid, gid, mtime_ns, Inode(parent), name)
    return None


def _decode_attributes(fields: tuple[Any, ...]) -> SetAttr | None:
    """Likewise new attributes."""
    if len(fields) == 5:
        version, mode, uid, gid, mtime_ns = fields
        if (
            type(version) is int
            and version == VERSION
            and (mode is None or (type(mode) is int and 0 <= mode <= MODE_MAX))
            and (uid is None or (type(uid) is int and 0 <= uid <= ID_MAX))
            and (gid is None or (type(gid) is int and 0 <= gid <= ID_MAX))
            and (mtime_ns is None or (type(mtime_ns) is int and -TIME_NS_LIMIT <= mtime_ns < TIME_NS_LIMIT))
        ):
            return SetAttr(mode, uid, gid, mtime_ns)
    return None


def _show(field: Any) -> str:
    # nested arrays are named, not shown: their repr could recurse without end
    return repr(field)[:60] if isinstance(field, int | bytes) else type(field).__name__


def _int_up_to(maximum: int, minimum: int = 0) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and minimum <= value <= maximum


def _bytes_up_to(maximum: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is bytes and len(value) <= maximum


def _name(value: Any) -> bool:
    return (
        type(value) is bytes
        and 0 < len(value) <= NAME_BYTES_MAX
        and b"/" not in value
        and b"\0" not in value
        and value not in (b".", b"..")
    )


def _optional(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or check(value)


def _bool(value: Any) -> bool:
    return type(value) is bool


def _replaced(value: Any) -> bool:
    return type(value) is tuple and all(
        type(item) is tuple and len(item) == 2 and _inode(item[0]) and _bool(item[1]) for item in value
    )


def _make_rename(*fields: Any) -> Rename:
    from_parent, from_name, to_parent, to_name, is_dir, replaced = fields
    objects = tuple(Replaced(Inode(inode), of_dir) for inode, of_dir in replaced)
    return Rename(from_parent, from_name, to_parent, to_name, is_dir, objects)


_inode = _int_up_to(INODE_MAX, 1)
_mode = _int_up_to(MODE_MAX)
_id = _int_up_to(ID_MAX)
_time = _int_up_to(TIME_NS_LIMIT - 1, -TIME_NS_LIMIT)
_length = _int_up_to(FILE_BYTES_MAX)

_QUICK: dict[int, Callable[[tuple[Any, ...]], Operation | None]] = {
    Op.WRITE: _decode_write,
    Op.CREATE: _decode_create,
    Op.SET_ATTR: _decode_attributes,
}
"""Nearly all entries are writes, new files and their attributes: they take a short way."""
_SCHEMAS: dict[int, tuple[Callable[..., Operation], tuple[Callable[[Any], bool], ...]]] = {
    Op.CREATE: (Create, (_mode, _id, _id, _time, _optional(_inode), _optional(_name))),
    Op.UNLINK: (Unlink, (_optional(_inode), _optional(_name), _bool)),
    Op.RENAME: (_make_rename, (_optional(_inode), _optional(_name), _inode, _name, _bool, _replaced)),
    Op.WRITE: (Write, (_length, _bytes_up_to(DATA_BYTES_MAX))),
    Op.TRUNCATE: (Truncate, (_length,)),
    Op.SET_ATTR: (SetAttr, (_optional(_mode), _optional(_id), _optional(_id), _optional(_time))),
    Op.LINK: (Link, (_inode, _name)),
    Op.SYMLINK: (Symlink, (_id, _id, _time, _optional(_inode), _optional(_name), _bytes_up_to(SYMLINK_BYTES_MAX))),
    Op.MKDIR: (MkDir, (_mode, _id, _id, _time, _inode, _name)),
    Op.SET_XATTR: (SetXattr, (_name, _bytes_up_to(XATTR_VALUE_BYTES_MAX))),
    Op.REMOVE_XATTR: (RemoveXattr, (_name,)),
}
