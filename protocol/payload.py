"""Payloads: an operation's details as msgpack, on the wire and on disk alike.

A payload is one msgpack array: the layout version (1), then the fields of `claudefs_repl.operations` in their order. Types
and ranges are checked while it is decoded; what goes beyond a single field is checked here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from claudefs_repl.journal import FILE_BYTES_MAX, Op
from claudefs_repl.operations import (
    PAYLOAD_VERSION,
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

_FIELD = re.compile(r"(.*) - at `\$\[(\d+)\].*`")
"""What the library tells of a value that it refuses: what is wrong, and at which place of the array."""


class PayloadInvalid(ValueError):
    """A payload that cannot be decoded, or is of an unknown version: the entry is dead-lettered."""


def encode_payload(operation: Operation) -> bytes:
    """The payload of an operation; `decode_payload` is its inverse."""
    return _encode(operation)


def decode_payload(op: int, payload: bytes) -> Operation:
    """The operation that a payload tells.

    Raises:
        PayloadInvalid: not msgpack, another version, another number of fields, or a field out of its range.
    """
    if op not in _DECODERS:
        raise PayloadInvalid(f"operation {op} is not known")
    decode, check = _DECODERS[op]
    try:
        operation = decode(payload)
    except msgspec.DecodeError as error:
        raise PayloadInvalid(_told(op, payload, str(error))) from error
    if check is not None:
        check(operation)
    return operation


def _told(op: int, payload: bytes, error: str) -> str:
    """An error of the library with the names of operation and field; first of all, a version that is not known."""
    try:
        version = _version(payload).version
    except (msgspec.DecodeError, RecursionError):
        version = PAYLOAD_VERSION
    if version != PAYLOAD_VERSION:
        return f"payload version {version} is not known"
    found = _FIELD.fullmatch(error)
    if found is None:
        return f"not the payload of {Op(op).name}: {error}"
    problem, place = found[1], int(found[2])
    field = ("version", *_CLASS_OF[op].__struct_fields__)[place]
    return f"{Op(op).name} has a field out of range, {field}: {problem}"


def _check_name(operation: MkDir | Link | SetXattr | RemoveXattr) -> None:
    name = operation.name
    if _is_not_a_name(name):
        raise _not_a_name(name)


def _check_place(operation: Create | Symlink | Unlink) -> None:
    parent, name = operation.parent, operation.name
    if name is None:
        if parent is not None:
            raise _half_a_place()
    elif parent is None:
        raise _half_a_place()
    elif _is_not_a_name(name):
        raise _not_a_name(name)


def _check_rename(operation: Rename) -> None:
    if (operation.from_parent is None) != (operation.from_name is None):
        raise _half_a_place()
    for name in (operation.from_name, operation.to_name):
        if name is not None and _is_not_a_name(name):
            raise _not_a_name(name)


def _check_end(operation: Write) -> None:
    if operation.offset + len(operation.data) > FILE_BYTES_MAX:
        raise PayloadInvalid("a write ends beyond the largest file")


def _is_not_a_name(name: bytes) -> bool:
    return b"/" in name or b"\0" in name or name in (b".", b"..")


def _not_a_name(name: bytes) -> PayloadInvalid:
    return PayloadInvalid(f"not a name: {name[:60]!r}")


def _half_a_place() -> PayloadInvalid:
    return PayloadInvalid("a parent and a name come together or not at all")


class _Versioned(msgspec.Struct, array_like=True):
    version: int


_version = msgspec.msgpack.Decoder(_Versioned).decode
_encode = msgspec.msgpack.Encoder().encode
_CLASS_OF: dict[int, Any] = {op: kind for kind, op in OP_OF.items()}
_CHECKS: dict[int, Callable[[Any], None]] = {
    Op.CREATE: _check_place,
    Op.UNLINK: _check_place,
    Op.RENAME: _check_rename,
    Op.WRITE: _check_end,
    Op.LINK: _check_name,
    Op.SYMLINK: _check_place,
    Op.MKDIR: _check_name,
    Op.SET_XATTR: _check_name,
    Op.REMOVE_XATTR: _check_name,
}
_DECODERS: dict[int, tuple[Callable[[bytes], Operation], Callable[[Any], None] | None]] = {
    op: (msgspec.msgpack.Decoder(kind).decode, _CHECKS.get(op)) for op, kind in _CLASS_OF.items()
}
