"""Messages: golden bytes, round trips, and everything that is not a message."""

from __future__ import annotations

import struct
from dataclasses import fields, replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.batch_auth import BatchTag
from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import ProtocolViolation
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import Incarnation, Inode, JournalId, Op, Shard, SiteId
from protocol.messages import (
    ARGS_BYTES_MAX,
    NACK_CODES,
    RESULT_BYTES_MAX,
    Ack,
    Batch,
    Goodbye,
    Nack,
    Ping,
    Pong,
    Query,
    Reply,
    Tails,
    Welcome,
    decode_message,
    encode_message,
)

ALPHA, BETA = (JournalId(SiteId(site), Incarnation(site * 17)) for site in (1, 2))
CURSORS = {ALPHA: (1, 2), BETA: (0, 3)}
PACKED = encode_cursors(CURSORS, 2)
EMPTY = encode_cursors({}, 0)
ACTIVE = SiteMode.ACTIVE_READ_WRITE.value


def make_block(count=2, first_seq=5, shard=1, payload=b"data", seen=PACKED):
    rows = [NewRow(100 + i, Op.WRITE, Inode(9), payload, 7) for i in range(count)]
    return Block.build(shard=Shard(shard), first_seq=first_seq, rows=rows, seen=seen)


def make_batch(block=None, **changes):
    block = block or make_block()
    numbers = {"source_site_id": SiteId(1), "incarnation": Incarnation(17), "batch_seq": 3}
    seqs = {"first_seq": block.first_seq, "last_seq": block.last_seq}
    return Batch(**(numbers | seqs | {"tag": BatchTag(b"\xee" * 32), "block": block} | changes))


EXAMPLES = [
    (Welcome(CURSORS, {}, ACTIVE, {}, (), {}), [1, PACKED, EMPTY, ACTIVE, b"", b"", EMPTY]),
    (
        Welcome(
            CURSORS, {}, ACTIVE, {SiteId(3): Incarnation(2), SiteId(1): Incarnation(1 << 63)}, (1, 0xFFFFFFFE), CURSORS
        ),
        [
            1,
            PACKED,
            EMPTY,
            ACTIVE,
            bytes.fromhex("0100000000000000000000000000008003000000000000000200000000000000"),
            bytes.fromhex("01000000feffffff"),
            PACKED,
        ],
    ),
    (Tails(CURSORS, 1_700_000_000_000_000), [2, PACKED, 1_700_000_000_000_000]),
    (Ack(3, CURSORS, {}, 40), [4, 3, PACKED, EMPTY, 40]),
    (
        Nack(3, "gap", SiteId(1), Incarnation(17), Shard(1), 8, 250, "seq 8 is wanted"),
        [5, 3, "gap", 1, 17, 1, 8, 250, "seq 8 is wanted"],
    ),
    (Ping(1, 2, CURSORS, CURSORS, ACTIVE), [6, 1, 2, PACKED, PACKED, ACTIVE]),
    (Pong(1, "Offline", CURSORS, {}, CURSORS, {}, 5), [7, 1, "Offline", PACKED, EMPTY, PACKED, EMPTY, 5]),
    (Query(9, "digest", b"\x80"), [8, 9, "digest", b"\x80"]),
    (Reply(9, ok=True, last=False, result=b"\xc0"), [9, 9, True, False, b"\xc0"]),
    (Goodbye("key_retired", "k1 is no longer used", 1000), [10, "key_retired", "k1 is no longer used", 1000]),
]
IDS = [f"{type(message).__name__}-{number}" for number, (message, _) in enumerate(EXAMPLES)]


def encoded(message):
    return b"".join(encode_message(message))


def assert_refused(body, shard_count=None):
    with pytest.raises(ProtocolViolation) as refused:
        decode_message(body, shard_count=shard_count)
    assert refused.value.code == "bad_message"
    assert refused.value.detail.isprintable()
    assert len(refused.value.detail.encode()) <= 512


def accept_or_refuse(body):
    """Whatever the bytes, they are refused as a bad message, or are a message that can be sent on."""
    try:
        message = decode_message(body, shard_count=2)
    except ProtocolViolation:
        assert_refused(body, shard_count=2)
    else:
        assert type(decode_message(encoded(message), shard_count=2)) is type(message)


@pytest.mark.parametrize(("message", "array"), EXAMPLES, ids=IDS)
def test_golden_vectors(message, array):
    """A message is the msgpack array of its number and its fields, in their order."""
    assert encoded(message) == msgpack.packb(array, use_bin_type=True)
    assert decode_message(msgpack.packb(array, use_bin_type=True)) == message


def test_batch_golden_vector():
    """A batch is the array of its fields, with the block as a bin 32 at the end, whatever its size."""
    block = make_block()
    head = [3, 1, 17, 3, 5, 6, b"\xee" * 32]
    packed = b"\x98" + b"".join(msgpack.packb(value, use_bin_type=True) for value in head)
    packed += b"\xc6" + struct.pack(">I", len(block.encoded)) + bytes(block.encoded)
    assert encoded(make_batch(block)) == packed
    assert msgpack.unpackb(packed) == [*head, bytes(block.encoded)]
    assert packed[:9].hex() == "980301110305" + "06" + "c420"


tails = st.tuples(*[st.integers(0, (1 << 63) - 1)] * 3).filter(any)
journals = st.builds(JournalId, st.integers(1, 2047), st.integers(0, (1 << 64) - 1))
cursors = st.dictionaries(journals, tails, max_size=4)
counts = st.integers(0, (1 << 63) - 1)
currents = st.dictionaries(st.integers(1, 2047), st.integers(0, (1 << 64) - 1), max_size=4)
crcs = st.lists(st.integers(0, (1 << 32) - 1), max_size=4).map(tuple)
modes = st.sampled_from([mode.value for mode in SiteMode])
words = st.from_regex(r"[a-z][a-z0-9_]{0,31}", fullmatch=True)
details = st.text(st.characters(categories=["L", "N", "P"]), max_size=120)
sites = st.integers(1, 2047)
incarnations = st.integers(0, (1 << 64) - 1)
messages = st.one_of(
    st.builds(Welcome, cursors, cursors, modes, currents, crcs, cursors),
    st.builds(Tails, cursors, counts),
    st.builds(Ack, counts, cursors, cursors, counts),
    st.builds(
        Nack,
        counts,
        st.sampled_from(sorted(NACK_CODES)),
        sites,
        incarnations,
        st.integers(0, 255),
        counts,
        counts,
        details,
    ),
    st.builds(Ping, counts, counts, cursors, cursors, modes),
    st.builds(Pong, counts, modes, cursors, cursors, cursors, cursors, counts),
    st.builds(Query, counts, words, st.binary(max_size=100)),
    st.builds(Reply, counts, st.booleans(), st.booleans(), st.binary(max_size=100)),
    st.builds(Goodbye, words, details, counts),
)


@given(messages)
def test_messages_round_trip(message):
    """Every message comes back as it was, at the cluster's shard count."""
    assert decode_message(encoded(message), shard_count=3) == message


@given(
    sites,
    incarnations,
    st.integers(1, (1 << 63) - 1),
    st.integers(1, 1 << 62),
    st.lists(st.binary(max_size=30), min_size=1, max_size=4),
    st.binary(min_size=32, max_size=32),
)
def test_batches_round_trip(site, incarnation, batch_seq, first_seq, payloads, tag):
    """Every batch comes back as it was, block and all."""
    rows = [NewRow(1, Op.WRITE, Inode(4), payload, 0) for payload in payloads]
    block = Block.build(shard=Shard(2), first_seq=first_seq, rows=rows, seen=encode_cursors({ALPHA: (1, 2, 3)}, 3))
    batch = Batch(site, incarnation, batch_seq, first_seq, first_seq + len(rows) - 1, BatchTag(tag), block)
    decoded = decode_message(encoded(batch), shard_count=3)
    assert isinstance(decoded, Batch)
    assert replace(decoded, block=block) == batch
    assert decoded.block.encoded == block.encoded


def test_block_is_not_copied():
    """A block goes out as the view that it is, and comes in as a view of the frame."""
    block = make_block()
    assert encode_message(make_batch(block))[1] is block.encoded
    frame = encoded(make_batch(block))
    decoded = decode_message(memoryview(frame))
    assert decoded.block.encoded.obj is frame


@pytest.mark.parametrize("message", [*[m for m, _ in EXAMPLES], make_batch()], ids=[*IDS, "Batch"])
def test_every_truncation_and_trailing_byte_is_refused(message):
    """A message that is cut off anywhere, or followed by anything, is refused."""
    body = encoded(message)
    for length in range(len(body)):
        assert_refused(body[:length])
    for rest in (b"\0", b"\xc0", body):
        assert_refused(body + rest)


@pytest.mark.parametrize("message", [*[m for m, _ in EXAMPLES], make_batch()], ids=[*IDS, "Batch"])
def test_every_changed_byte_is_refused_or_another_message(message):
    """No change of a byte leads to anything but a refusal or another valid message."""
    body = bytearray(encoded(message))
    for at in range(len(body)):
        for flip in (0x01, 0x10, 0x40, 0x80, 0xFF):
            body[at] ^= flip
            accept_or_refuse(bytes(body))
            body[at] ^= flip


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(noise):
    """No bytes lead to anything but a refusal or a message."""
    for number in range(12):
        for body in (noise, bytes([0x90 | number % 10, number]) + noise, bytes([0x94, number]) + noise):
            accept_or_refuse(body)


ALIENS = [
    pytest.param(True, id="true"),
    pytest.param(False, id="false"),
    pytest.param(None, id="nil"),
    pytest.param(-1, id="negative"),
    pytest.param(1.0, id="float"),
    pytest.param(float("nan"), id="nan"),
    pytest.param(1 << 63, id="2^63"),
    pytest.param("", id="empty text"),
    pytest.param("1", id="text"),
    pytest.param("Active\x1b[2J", id="escape"),
    pytest.param(b"", id="empty bin"),
    pytest.param(b"1", id="bin"),
    pytest.param([], id="empty array"),
    pytest.param([1], id="array"),
    pytest.param({}, id="empty map"),
    pytest.param({"a": 1}, id="map"),
    pytest.param(msgpack.ExtType(5, b""), id="ext"),
    pytest.param(msgpack.ExtType(5, b"12345678"), id="long ext"),
    pytest.param(msgpack.Timestamp(1, 0), id="timestamp"),
]
# what is not alien to a field after all: a text is a detail, and so on
WELCOME_GUESTS = {
    ("Welcome", "current"): {b""},
    ("Welcome", "last_crcs"): {b""},
    ("Nack", "detail"): {"", "1", "Active\x1b[2J"},
    ("Goodbye", "detail"): {"", "1", "Active\x1b[2J"},
    ("Nack", "incarnation"): {1 << 63},
    ("Query", "args"): {b"", b"1"},
    ("Reply", "result"): {b"", b"1"},
    ("Reply", "ok"): {True, False},
    ("Reply", "last"): {True, False},
}


@pytest.mark.parametrize("alien", ALIENS)
@pytest.mark.parametrize(("message", "array"), EXAMPLES, ids=IDS)
def test_alien_value_in_any_field_is_refused(message, array, alien):
    """Every field has one type and one range: a bool is no integer, a float is none, a text is no bytes."""
    for at, field in enumerate(fields(message), 1):
        guests = WELCOME_GUESTS.get((type(message).__name__, field.name), set())
        if any(type(alien) is type(guest) and alien == guest for guest in guests):
            continue
        assert_refused(msgpack.packb([*array[:at], alien, *array[at + 1 :]], use_bin_type=True))


@pytest.mark.parametrize("alien", ALIENS)
def test_alien_value_in_any_field_of_a_batch_is_refused(alien):
    """The fields of a batch have one type and one range each, and the block is a bin 32."""
    head = [3, 1, 17, 3, 5, 6, b"\xee" * 32, bytes(make_block().encoded)]
    for at in range(1, 8):
        if at == 2 and alien == 1 << 63:
            continue
        changed = [*head[:at], alien, *head[at + 1 :]]
        parts = [msgpack.packb(value, use_bin_type=True) for value in changed[:7]]
        block = b"\xc6" + struct.pack(">I", len(head[7])) + head[7]
        parts.append(block if at < 7 else msgpack.packb(alien, use_bin_type=True))
        assert_refused(b"\x98" + b"".join(parts))


@pytest.mark.parametrize("number", [0, 11, 0x7F, 0x80, 0xC2, 0xFF])
def test_unknown_message_is_refused(number):
    """A number that no message has is refused."""
    assert_refused(bytes([0x92, number, 0]))


@pytest.mark.parametrize(("message", "array"), EXAMPLES, ids=IDS)
def test_wrong_number_of_fields_is_refused(message, array):
    """A field too few or too many is refused."""
    assert_refused(msgpack.packb(array[:-1], use_bin_type=True))
    assert_refused(msgpack.packb([*array, 0], use_bin_type=True))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x90", id="empty array"),
        pytest.param(b"\x80\x01", id="map"),
        pytest.param(b"\xdc\x00\x04\x0a", id="array 16"),
        pytest.param(b"\xdd\x00\x00\x00\x04\x0a", id="array 32"),
        pytest.param(b"\xdd\xff\xff\xff\xff", id="2^32 items"),
        pytest.param(b"\x92\xcc\x01", id="number in two bytes"),
        pytest.param(b"\xc1\xc1\xc1", id="reserved"),
    ],
)
def test_what_is_no_array_of_ours_is_refused(body):
    """The head of a message has one form."""
    assert_refused(body)


HUGE = [
    pytest.param(b"\xdd\xff\xff\xff\xff", id="array32"),
    pytest.param(b"\xdf\xff\xff\xff\xff", id="map32"),
    pytest.param(b"\xc6\xff\xff\xff\xff", id="bin32"),
    pytest.param(b"\xdb\xff\xff\xff\xff", id="str32"),
    pytest.param(b"\xc9\xff\xff\xff\xff\x01", id="ext32"),
    pytest.param(b"\xc6\x7f\xff\xff\xff", id="bin32 of 2 GiB"),
    pytest.param(b"\x91" * 10_000, id="10,000 arrays deep"),
    pytest.param(b"\x81" * 10_000, id="10,000 maps deep"),
    pytest.param(b"\x91" * 600 + b"\x01", id="600 arrays deep"),
    pytest.param(b"\x82\xa1a\x01\xa1a\x02", id="map with one key twice"),
    pytest.param(b"\xa2\xff\xfe", id="not UTF-8"),
]


@pytest.mark.parametrize("huge", HUGE)
@pytest.mark.parametrize(("message", "array"), EXAMPLES, ids=IDS)
def test_huge_or_deep_value_is_refused(message, array, huge):
    """A declared size of gigabytes or a nesting of thousands is refused in any field, with an ordinary refusal."""
    for at in range(1, len(array)):
        parts = [msgpack.packb(value, use_bin_type=True) for value in array]
        assert_refused(bytes([0x90 | len(array)]) + b"".join([*parts[:at], huge, *parts[at + 1 :]]))


@pytest.mark.parametrize("huge", HUGE)
def test_huge_or_deep_value_in_a_batch_is_refused(huge):
    """The same holds for each field of a batch, its block too."""
    values = [1, 17, 3, 5, 6, b"\xee" * 32, bytes(make_block().encoded)]
    parts = [b"\x03", *[msgpack.packb(value, use_bin_type=True) for value in values]]
    for at in range(1, len(parts)):
        assert_refused(b"\x98" + b"".join([*parts[:at], huge, *parts[at + 1 :]]))


@pytest.mark.parametrize(
    ("message", "body"),
    [
        (Query(1, "m", bytes(ARGS_BYTES_MAX)), [8, 1, "m", bytes(ARGS_BYTES_MAX + 1)]),
        (Reply(1, ok=True, last=True, result=bytes(RESULT_BYTES_MAX)), [9, 1, True, True, bytes(RESULT_BYTES_MAX + 1)]),
        (Goodbye("a" * 32, "é" * 256), [10, "a" * 33, "", 0]),
        (Goodbye("a" * 32, "x" * 512), [10, "a", "x" * 513, 0]),
    ],
)
def test_limits_are_inclusive(message, body):
    """A field at its limit passes, one byte beyond it is refused."""
    assert decode_message(encoded(message)) == message
    assert_refused(msgpack.packb(body, use_bin_type=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"first_seq": 4},
        {"first_seq": 6},
        {"last_seq": 5},
        {"last_seq": 7},
        {"batch_seq": 0},
        {"source_site_id": 0},
        {"source_site_id": 2048},
        {"incarnation": -1},
    ],
)
def test_batch_fields_must_fit_its_block(changes):
    """The range that a batch tells is its block's, and its numbers have their ranges."""
    values = {"source_site_id": 1, "incarnation": 17, "batch_seq": 3, "first_seq": 5, "last_seq": 6} | changes
    block = make_block()
    parts = [msgpack.packb(value) for value in values.values()]
    tail = msgpack.packb(bytes(32), use_bin_type=True) + b"\xc6" + struct.pack(">I", len(block.encoded))
    assert_refused(b"\x98\x03" + b"".join(parts) + tail + bytes(block.encoded))
    with pytest.raises(AssertionError):
        encode_message(make_batch(block, **changes))


def test_batch_with_a_broken_block_is_refused():
    """A block whose arithmetic does not hold, or whose body has other seqs than its head tells, is refused."""
    body = encoded(make_batch())
    for at in range(len(body) - 200, len(body)):
        changed = bytearray(body)
        changed[at] ^= 0x80
        try:
            decoded = decode_message(bytes(changed), shard_count=2)
        except ProtocolViolation:
            continue
        assert [row.seq for row in decoded.block.rows()] == [5, 6]
    wrong_seq = bytearray(body)
    wrong_seq[-20] ^= 1
    assert_refused(bytes(wrong_seq))


@pytest.mark.parametrize("told", [-1, 1, 1 << 31])
def test_block_length_must_be_what_is_there(told):
    """The length that a batch tells of its block is that of the bytes that follow."""
    head, block = encode_message(make_batch())
    length = struct.pack(">I", len(block) + told)
    assert_refused(b"".join((head[:-4], length, block)))


@pytest.mark.parametrize("shard_count", [1, 3, 256])
def test_vectors_of_another_shard_count_are_refused(shard_count):
    """Cursors and blocks must be of the cluster's shard count, so that no actor meets another."""
    for message, _ in EXAMPLES:
        if any(getattr(message, field.name) == CURSORS for field in fields(message)):
            assert_refused(encoded(message), shard_count=shard_count)
            assert decode_message(encoded(message), shard_count=2) == message
    assert_refused(encoded(make_batch()), shard_count=shard_count)
    assert decode_message(encoded(make_batch()), shard_count=2)


@pytest.mark.parametrize(("shard", "shard_count"), [(2, 2), (256, None), ((1 << 32) - 1, None)])
def test_block_of_a_shard_beyond_the_cluster_is_refused(shard, shard_count):
    """A block's shard is one of the cluster's."""
    block = make_block(shard=shard)
    assert_refused(encoded(make_batch(block)), shard_count=shard_count)


NEVER_WRITTEN = [
    struct.pack("<HHQQQQ", 1, 2, 0, 1, 1, 1),
    struct.pack("<HHQQQQ", 1, 2, 1, 1, 1 << 63, 1),
    struct.pack("<HHQQQQQQ", 2, 1, 1, 1, 1, 1, 1, 1),
]


@pytest.mark.parametrize("vector", [*NEVER_WRITTEN, PACKED[:-1], PACKED + b"\0", struct.pack("<HH", 65535, 256)])
def test_broken_cursors_are_refused(vector):
    """A cursor vector that no encoder writes is refused."""
    assert_refused(msgpack.packb([2, vector, 0], use_bin_type=True))


@pytest.mark.parametrize("vector", NEVER_WRITTEN)
def test_broken_cursors_in_a_block_are_refused(vector):
    """A `seen` vector that no encoder writes is refused, so that applying the block cannot fail on it."""
    assert_refused(encoded(make_batch(make_block(seen=vector))))


@pytest.mark.parametrize(
    "message",
    [
        Welcome({}, {}, "starting", {}, (), {}),
        Tails({}, -1),
        Tails({}, True),
        Ack(1 << 63, {}, {}, 0),
        Nack(0, "no_such_code", SiteId(1), Incarnation(0), Shard(0), 0, 0, ""),
        Nack(0, "gap", SiteId(1), Incarnation(0), Shard(256), 0, 0, ""),
        Query(1, "Not A Word", b""),
        Query(1, "m", bytes(ARGS_BYTES_MAX + 1)),
        Reply(1, ok=1, last=True, result=b""),
        Goodbye("", ""),
    ],
)
def test_sending_what_would_be_refused_is_our_error(message):
    """No message is encoded that its receiver would have to refuse."""
    with pytest.raises(AssertionError):
        encode_message(message)


@given(st.text(max_size=600))
def test_details_cannot_move_a_cursor(detail):
    """A detail comes over as one printable line, cut to its limit."""
    decoded = decode_message(encoded(Goodbye("bye", detail)))
    assert decoded.detail.isprintable()
    assert len(decoded.detail.encode()) <= 512


def test_hostile_detail_is_cleaned_on_arrival():
    """A peer that sends escape sequences gets them into nobody's terminal."""
    decoded = decode_message(msgpack.packb([10, "bye", "a\x1b[2Jb\r\nc\u202e", 0]))
    assert decoded.detail == "a?[2Jb??c?"
