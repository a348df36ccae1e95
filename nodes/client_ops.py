"""Clients' operations: from the maps of a submit request to the store's local operations, checked field by field."""

from __future__ import annotations

import errno
import reprlib
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import Any

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import DATA_BYTES_MAX, FILE_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_VALUE_BYTES_MAX
from nodes.store.conflict_view import CONFLICT_CURSOR_BYTES
from nodes.store.conflicts import ID_BYTES, ConflictKind
from nodes.store.local import (
    CreateFile,
    GiveUp,
    LocalOp,
    MakeDir,
    MakeLink,
    MakeSymlink,
    Move,
    NameFile,
    Remove,
    RemoveDir,
    RemoveX,
    SetAttributes,
    Settle,
    SetX,
    TruncateFile,
    WriteData,
)
from nodes.store.resolutions import How

OPS_MAX = 1024
"""Operations of one request: a group commit takes many requests, none of which may hold it up."""
REQUEST_DATA_MAX = 1 << 20
"""Data bytes of one request."""

Check = Callable[[Any], bool]


def bad_request(detail: str) -> OperationRefused:
    """A request that no well-made client sends."""
    return OperationRefused(errno.EINVAL, detail)


def parse_ops(args: dict[str, Any]) -> list[LocalOp]:
    """The operations of a submit request.

    Raises:
        OperationRefused: EINVAL, naming the operation and the field.
    """
    ops = args.get("ops")
    if not isinstance(ops, list) or not 1 <= len(ops) <= OPS_MAX:
        raise bad_request(f"a submit has 1 to {OPS_MAX} operations")
    parsed = [_parse_op(index, op) for index, op in enumerate(ops)]
    data_bytes = sum(len(op.data) for op in parsed if isinstance(op, WriteData))
    if data_bytes > REQUEST_DATA_MAX:
        raise bad_request(f"a submit carries at most {REQUEST_DATA_MAX} bytes of data, not {data_bytes}")
    return parsed


def _parse_op(index: int, op: Any) -> LocalOp:
    if not isinstance(op, dict) or type(op.get("op")) is not str or op["op"] not in _SCHEMAS:
        raise bad_request(f"operation {index}: one of {', '.join(_SCHEMAS)}")
    make, checks = _SCHEMAS[op["op"]]
    unknown = set(op) - set(checks) - {"op"}
    if unknown:
        raise bad_request(f"operation {index} ({op['op']}): unknown fields {sorted(map(str, unknown))}")
    return make(**check_fields(f"operation {index} ({op['op']})", op, checks))


def check_fields(what: str, given: Mapping[str, Any], checks: Mapping[str, Check]) -> dict[str, Any]:
    """The fields of a request that have a check, all of them as they may be; what is not given is None.

    Raises:
        OperationRefused: EINVAL, naming the field.
    """
    fields = {name: given.get(name) for name in checks}
    for name, value in fields.items():
        if not checks[name](value):
            # A client's value may be nested deeper than `repr` goes.
            raise bad_request(f"{what}: {name} is out of range: {reprlib.repr(value):.60}")
    return fields


def _int(minimum: int, maximum: int) -> Check:
    return lambda value: type(value) is int and minimum <= value <= maximum


def _bytes(maximum: int) -> Check:
    return lambda value: type(value) is bytes and len(value) <= maximum


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _bool(value: Any) -> bool:
    return type(value) is bool


def _conflict(value: Any) -> bool:
    return type(value) is bytes and len(value) == ID_BYTES


def _one_of(kinds: type[IntEnum]) -> Check:
    words = [kind.name.lower() for kind in kinds]
    return lambda value: type(value) is str and value in words


def _settle(conflict: bytes, how: str) -> Settle:
    return Settle(conflict, How[how.upper()])


_inode = _int(-OPS_MAX, (1 << 63) - 1)
_mode = _int(0, 0o7777)
_id = _int(0, 0xFFFF_FFFF)
_time = _int(-(1 << 63), (1 << 63) - 1)
_length = _int(0, FILE_BYTES_MAX)
_name = _bytes(1 << 16)

_object = _int(0, (1 << 63) - 1)
_path = _bytes(1 << 20)

READS: dict[str, dict[str, Check]] = {
    "resolve": {"path": _path, "as_written": _optional(_bool)},
    "stat": {"inode": _object, "as_written": _optional(_bool)},
    "list": {
        "inode": _object,
        "after": _optional(_name),
        "limit": _int(0, 1 << 31),
        "as_written": _optional(_bool),
    },
    "read": {"inode": _object, "offset": _object, "length": _int(0, 1 << 31)},
    "xattrs": {"inode": _object},
    "conflicts": {
        "after": _optional(_bytes(CONFLICT_CURSOR_BYTES)),
        "limit": _int(1, 1 << 31),
        "kind": _optional(_one_of(ConflictKind)),
        "path": _optional(_path),
        "since_us": _optional(_object),
        "is_open": _optional(_bool),
    },
    "conflict": {"id": lambda value: type(value) is str and len(value) <= 2 * ID_BYTES},
    "lost": {"id": _conflict, "offset": _object, "length": _int(0, 1 << 31)},
    "manifest": {"after": _optional(_path), "limit": _optional(_int(1, 1 << 31))},
}
"""The arguments of the requests that only read."""

_SCHEMAS: dict[str, tuple[Callable[..., LocalOp], dict[str, Check]]] = {
    "create": (
        CreateFile,
        {
            "parent": _optional(_inode),
            "name": _optional(_name),
            "mode": _mode,
            "uid": _id,
            "gid": _id,
            "mtime_ns": _time,
        },
    ),
    "mkdir": (
        MakeDir,
        {
            "parent": _inode,
            "name": _name,
            "mode": _mode,
            "uid": _id,
            "gid": _id,
            "mtime_ns": _time,
            "exist_ok": _bool,
        },
    ),
    "symlink": (
        MakeSymlink,
        {
            "parent": _inode,
            "name": _name,
            "uid": _id,
            "gid": _id,
            "mtime_ns": _time,
            "target": _bytes(SYMLINK_BYTES_MAX),
        },
    ),
    "link": (MakeLink, {"inode": _inode, "parent": _inode, "name": _name}),
    "remove": (Remove, {"parent": _inode, "name": _name}),
    "rmdir": (RemoveDir, {"parent": _inode, "name": _name}),
    "give_up": (GiveUp, {"inode": _inode}),
    "move": (
        Move,
        {"from_parent": _inode, "from_name": _name, "to_parent": _inode, "to_name": _name, "replace": _bool},
    ),
    "name": (NameFile, {"inode": _inode, "to_parent": _inode, "to_name": _name, "replace": _bool}),
    "write": (WriteData, {"inode": _inode, "offset": _length, "data": _bytes(DATA_BYTES_MAX)}),
    "truncate": (TruncateFile, {"inode": _inode, "length": _length}),
    "setattr": (
        SetAttributes,
        {
            "inode": _inode,
            "mode": _optional(_mode),
            "uid": _optional(_id),
            "gid": _optional(_id),
            "mtime_ns": _optional(_time),
        },
    ),
    "setxattr": (SetX, {"inode": _inode, "name": _name, "value": _bytes(XATTR_VALUE_BYTES_MAX)}),
    "removexattr": (RemoveX, {"inode": _inode, "name": _name}),
    "settle": (_settle, {"conflict": _conflict, "how": _one_of(How)}),
}
