"""Payloads: golden bytes, round trips, and everything that must be dead-lettered rather than applied."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    REPLACED_MAX,
    Create,
    Link,
    MkDir,
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
from protocol.payload import OP_OF, PayloadInvalid, decode_payload, encode_payload

EXAMPLES = [
    (Create(0o644, 1000, 100, -5, Inode(1), b"name"), [1, 0o644, 1000, 100, -5, 1, b"name"]),
    (Create(0o644, 0, 0, 0, None, None), [1, 0o644, 0, 0, 0, None, None]),
    (MkDir(0o755, 0, 0, 7, Inode(1), b"dir"), [1, 0o755, 0, 0, 7, 1, b"dir"]),
    (Symlink(0, 0, 7, Inode(1), b"link", b"../to"), [1, 0, 0, 7, 1, b"link", b"../to"]),
    (Link(Inode(1), b"other"), [1, 1, b"other"]),
    (Unlink(Inode(1), b"name", is_dir=False), [1, 1, b"name", False]),
    (Unlink(None, None, is_dir=False), [1, None, None, False]),
    (
        Rename(Inode(1), b"a", Inode(2), b"b", False, (Replaced(Inode(9), True),)),
        [1, 1, b"a", 2, b"b", False, [[9, True]]],
    ),
    (Rename(None, None, Inode(2), b"b", False, ()), [1, None, None, 2, b"b", False, []]),
    (Write(10, b"data"), [1, 10, b"data"]),
    (Truncate(10), [1, 10]),
    (SetAttr.only(mode=0o600), [1, 0o600, None, None, None]),
    (SetAttr(0, 1, 2, 3), [1, 0, 1, 2, 3]),
    (SetXattr(b"user.a", b""), [1, b"user.a", b""]),
    (RemoveXattr(b"user.a"), [1, b"user.a"]),
]
IDS = [f"{type(operation).__name__}-{index}" for index, (operation, _) in enumerate(EXAMPLES)]


def op_of(operation):
    return OP_OF[type(operation)]


def refuse(op, payload):
    with pytest.raises(PayloadInvalid) as refused:
        decode_payload(op, payload)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize(("operation", "array"), EXAMPLES, ids=IDS)
def test_golden_vectors(operation, array):
    """A payload is the msgpack array of its version and the operation's fields, in their order."""
    assert encode_payload(operation) == msgpack.packb(array, use_bin_type=True)
    assert decode_payload(op_of(operation), msgpack.packb(array, use_bin_type=True)) == operation


def test_every_operation_has_an_example():
    """The examples cover all eleven operations, and each operation has one number."""
    assert {op_of(operation) for operation, _ in EXAMPLES} == set(Op) == set(OP_OF.values())


names = st.binary(min_size=1, max_size=NAME_BYTES_MAX).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
inodes = st.integers(1, (1 << 63) - 1)
ids = st.integers(0, (1 << 32) - 1)
modes = st.integers(0, 0o7777)
times = st.integers(-(1 << 63), (1 << 63) - 1)
places = st.tuples(inodes, names) | st.just((None, None))
operations = st.one_of(
    st.builds(lambda place, *rest: Create(*rest, *place), places, modes, ids, ids, times),
    st.builds(MkDir, modes, ids, ids, times, inodes, names),
    st.builds(
        lambda place, target, *rest: Symlink(*rest, *place, target), places, st.binary(max_size=99), ids, ids, times
    ),
    st.builds(Link, inodes, names),
    st.builds(lambda place, is_dir: Unlink(*place, is_dir), places, st.booleans()),
    st.builds(
        lambda source, to_parent, to_name, is_dir, gone: Rename(*source, to_parent, to_name, is_dir, tuple(gone)),
        places,
        inodes,
        names,
        st.booleans(),
        st.lists(st.builds(Replaced, inodes, st.booleans()), max_size=4),
    ),
    st.builds(Write, st.integers(0, FILE_BYTES_MAX - 200), st.binary(max_size=200)),
    st.builds(Truncate, st.integers(0, FILE_BYTES_MAX)),
    st.builds(SetAttr, st.none() | modes, st.none() | ids, st.none() | ids, st.none() | times),
    st.builds(SetXattr, names, st.binary(max_size=200)),
    st.builds(RemoveXattr, names),
)


@given(operations)
def test_operations_round_trip(operation):
    """Every operation comes back as it was."""
    assert decode_payload(op_of(operation), encode_payload(operation)) == operation


@pytest.mark.parametrize(
    "operation",
    [
        Write(FILE_BYTES_MAX - DATA_BYTES_MAX, bytes(DATA_BYTES_MAX)),
        SetXattr(b"n" * NAME_BYTES_MAX, bytes(XATTR_VALUE_BYTES_MAX)),
        Symlink(0, 0, 0, Inode(1), b"n" * NAME_BYTES_MAX, bytes(SYMLINK_BYTES_MAX)),
        Rename(
            Inode((1 << 63) - 1),
            b"n" * NAME_BYTES_MAX,
            Inode((1 << 63) - 1),
            b"m" * NAME_BYTES_MAX,
            True,
            (Replaced(Inode((1 << 63) - 1), True),) * REPLACED_MAX,
        ),
    ],
)
def test_widest_operations_fit(operation):
    """The widest form of each operation fits the limit of a payload and comes back."""
    payload = encode_payload(operation)
    assert len(payload) <= PAYLOAD_BYTES_MAX
    assert decode_payload(op_of(operation), payload) == operation


@pytest.mark.parametrize(("operation", "array"), EXAMPLES, ids=IDS)
def test_every_truncation_and_trailing_byte_is_refused(operation, array):
    """A payload that is cut off anywhere, or followed by anything, is not applied."""
    payload = msgpack.packb(array, use_bin_type=True)
    for length in range(len(payload)):
        refuse(op_of(operation), payload[:length])
    refuse(op_of(operation), payload + b"\0")


@pytest.mark.parametrize(("operation", "array"), EXAMPLES, ids=IDS)
def test_wrong_version_or_number_of_fields_is_refused(operation, array):
    """Another version, or a field too few or too many, is not guessed at."""
    op = op_of(operation)
    for version in (0, 2, True, 1.0, None, b"1"):
        refuse(op, msgpack.packb([version, *array[1:]], use_bin_type=True))
    refuse(op, msgpack.packb(array[:-1], use_bin_type=True))
    refuse(op, msgpack.packb([*array, 0], use_bin_type=True))
    refuse(op, msgpack.packb([], use_bin_type=True))
    refuse(op, msgpack.packb({1: 2}, strict_types=True))


ALIENS = [
    -(1 << 63),
    1 << 63,
    1.0,
    float("nan"),
    "text",
    b"/",
    b"a\0b",
    b".",
    b"..",
    b"n" * (NAME_BYTES_MAX + 1),
    [1],
    [[1, True, 2]],
    [[0, True]],
    [[1, 1]],
    {},
    msgpack.Timestamp(1, 0),
    msgpack.ExtType(5, b"x"),
]
ACCEPTED = {
    ("Create", 4): int,
    ("MkDir", 4): int,
    ("Symlink", 3): int,
    ("SetAttr", 4): int,
    ("Write", 2): bytes,
    ("Symlink", 6): bytes,
    ("SetXattr", 2): bytes,
}


@pytest.mark.parametrize("alien", ALIENS, ids=lambda alien: f"{type(alien).__name__}-{str(alien)[:12]}")
@pytest.mark.parametrize(("operation", "array"), EXAMPLES, ids=IDS)
def test_alien_value_in_any_field_is_refused(operation, array, alien):
    """Every field has one type and one range: times may be negative, data may hold anything, nothing else."""
    for at in range(1, len(array)):
        kind = ACCEPTED.get((type(operation).__name__, at))
        if type(alien) is kind and not (kind is int and alien >= 1 << 63):
            continue
        refuse(op_of(operation), msgpack.packb([*array[:at], alien, *array[at + 1 :]], use_bin_type=True))


@pytest.mark.parametrize(("operation", "array"), EXAMPLES, ids=IDS)
def test_bools_and_integers_are_not_mixed(operation, array):
    """True is not 1 and 1 is not True."""
    for at in range(1, len(array)):
        if type(array[at]) is int:
            refuse(op_of(operation), msgpack.packb([*array[:at], True, *array[at + 1 :]], use_bin_type=True))
        elif type(array[at]) is bool:
            refuse(op_of(operation), msgpack.packb([*array[:at], 1, *array[at + 1 :]], use_bin_type=True))


@pytest.mark.parametrize(
    ("op", "array"),
    [
        (Op.CREATE, [1, 0, 0, 0, 0, None, b"name"]),
        (Op.CREATE, [1, 0, 0, 0, 0, 1, None]),
        (Op.SYMLINK, [1, 0, 0, 0, None, b"name", b""]),
        (Op.UNLINK, [1, 1, None, False]),
        (Op.RENAME, [1, None, b"a", 1, b"b", False, []]),
        (Op.MKDIR, [1, 0, 0, 0, 0, None, None]),
        (Op.WRITE, [1, FILE_BYTES_MAX, b"x"]),
        (Op.WRITE, [1, 0, bytes(DATA_BYTES_MAX + 1)]),
        (Op.SYMLINK, [1, 0, 0, 0, None, None, bytes(SYMLINK_BYTES_MAX + 1)]),
        (Op.TRUNCATE, [1, FILE_BYTES_MAX + 1]),
        (Op.CREATE, [1, 0o10000, 0, 0, 0, None, None]),
        (Op.CREATE, [1, 0, 1 << 32, 0, 0, None, None]),
        (Op.LINK, [1, 0, b"name"]),
        (Op.RENAME, [1, 1, b"a", 2, b"b", False, [[9, True]] * (REPLACED_MAX + 1)]),
    ],
)
def test_what_does_not_go_together_is_refused(op, array):
    """A place is whole or absent, and every size has its limit."""
    refuse(op, msgpack.packb(array, use_bin_type=True))


@pytest.mark.parametrize("op", [*Op, 11, 255, -1])
@pytest.mark.parametrize(
    "value",
    [
        b"\x91" * 60_000,
        b"\x91" * 1023 + b"\x01",
        b"\x91" * 1000 + b"\x01",
        b"\x91" * 600 + b"\x01",
        b"\x81" * 1000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc1",
    ],
    ids=lambda value: f"{value[:5].hex()}-{len(value)}",
)
def test_huge_or_deep_value_is_refused(op, value):
    """A declared size of gigabytes, a nesting of any depth, an unknown operation: an ordinary refusal."""
    for fields in range(1, 8):
        for at in range(fields):
            refuse(op, bytes([0x91 + fields]) + b"\x01" + b"\x01" * at + value + b"\x01" * (fields - at - 1))
    refuse(op, value)


@given(st.integers(0, 12), st.binary(max_size=100))
def test_random_bytes_are_refused_or_an_operation(op, noise):
    """No bytes lead to anything but a refusal or an operation of that number."""
    for payload in (noise, b"\x93\x01" + noise):
        try:
            operation = decode_payload(op, payload)
        except PayloadInvalid:
            continue
        assert op_of(operation) == op
        assert decode_payload(op, encode_payload(operation)) == operation


@given(operations, st.data())
def test_changed_byte_is_refused_or_another_operation(operation, data):
    """A changed byte leads to a refusal or to another operation within the ranges."""
    payload = bytearray(encode_payload(operation))
    payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        other = decode_payload(op_of(operation), bytes(payload))
    except PayloadInvalid:
        return
    assert decode_payload(op_of(other), encode_payload(other)) == other
    assert type(other) is type(operation)


LARGEST = (1 << 63) - 1
EDGES = {
    "mode": ([0, 0o7777], [-1, 0o10000]),
    "uid": ([0, 0xFFFF_FFFF], [-1, 1 << 32]),
    "gid": ([0, 0xFFFF_FFFF], [-1, 1 << 32]),
    "mtime_ns": ([-(1 << 63), LARGEST], [1 << 63]),
    "parent": ([1, LARGEST], [-1, 0, 1 << 63]),
    "from_parent": ([1, LARGEST], [-1, 0, 1 << 63]),
    "to_parent": ([1, LARGEST], [-1, 0, 1 << 63]),
    "name": ([b"a", b"n" * NAME_BYTES_MAX], [b"", b"n" * 256, b".", b"..", b"a/b", b"a\0"]),
    "from_name": ([b"a", b"n" * NAME_BYTES_MAX], [b"", b"n" * 256, b".", b"..", b"a/b", b"a\0"]),
    "to_name": ([b"a", b"n" * NAME_BYTES_MAX], [b"", b"n" * 256, b".", b"..", b"a/b", b"a\0"]),
    "target": ([b"", bytes(SYMLINK_BYTES_MAX)], [bytes(SYMLINK_BYTES_MAX + 1)]),
    "is_dir": ([False, True], [0, 1, None]),
    "replaced": ([[], [[LARGEST, True]] * REPLACED_MAX], [[[0, True]], [[1, True]] * (REPLACED_MAX + 1), [[1]], None]),
    "offset": ([0, FILE_BYTES_MAX - 4], [-1, FILE_BYTES_MAX - 3, FILE_BYTES_MAX, FILE_BYTES_MAX + 1]),
    "data": ([b"", bytes(DATA_BYTES_MAX)], [bytes(DATA_BYTES_MAX + 1)]),
    "length": ([0, FILE_BYTES_MAX], [-1, FILE_BYTES_MAX + 1]),
    "value": ([b"", bytes(XATTR_VALUE_BYTES_MAX)], [bytes(XATTR_VALUE_BYTES_MAX + 1)]),
}


@pytest.mark.parametrize(("operation", "array"), EXAMPLES, ids=IDS)
def test_every_field_is_taken_up_to_its_edges_and_refused_beyond(operation, array):
    """The least and the greatest value of each field are decoded, their neighbours beyond are refused by its name."""
    for at, field in enumerate(operation.__struct_fields__, 1):
        accepted, refused = EDGES[field]
        if array[at] is None and type(operation) is not SetAttr:
            continue  # half of a place; the examples have a whole one as well
        for value in accepted:
            decoded = decode_payload(op_of(operation), msgpack.packb([*array[:at], value, *array[at + 1 :]]))
            found = getattr(decoded, field)
            assert found == (tuple(Replaced(*item) for item in value) if field == "replaced" else value)
        for value in refused:
            refuse(op_of(operation), msgpack.packb([*array[:at], value, *array[at + 1 :]]))


@pytest.mark.parametrize(
    ("op", "array", "reason"),
    [
        (Op.CREATE, [2, 0, 0, 0, 0, None, None], "payload version 2 is not known"),
        (Op.CREATE, [3, {}], "payload version 3 is not known"),
        (Op.CREATE, [1, 0o10000, 0, 0, 0, None, None], "CREATE has a field out of range, mode: Expected `int` <= 4095"),
        (Op.TRUNCATE, [1, 2, 3], "not the payload of TRUNCATE: Expected `array` of at most length 1, got 2"),
        (Op.MKDIR, [1, 0, 0, 0, 0, 1, b".."], "not a name: b'..'"),
        (Op.UNLINK, [1, 1, None, False], "a parent and a name come together or not at all"),
    ],
)
def test_refusal_names_operation_and_field(op, array, reason):
    """Whoever reads of a dead letter learns which field of which operation is wrong, and how."""
    with pytest.raises(PayloadInvalid) as refused:
        decode_payload(op, msgpack.packb(array))
    assert str(refused.value) == reason
