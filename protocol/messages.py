"""Messages: what the sealed frames of a connection carry.

A message is one msgpack array of fixed length: its number, then its fields in the order below. The array's head and the
number take one byte each. Nothing is nested; nothing may follow.

| no. | message | fields                                                                                    |
|-----|---------|-------------------------------------------------------------------------------------------|
| 1   | Welcome | received C, applied C, mode, current I, last_crcs S, told C                               |
| 2   | Tails   | tails C, wall_us                                                                          |
| 3   | Batch   | source_site_id, incarnation, batch_seq, first_seq, last_seq, tag (bin), block (bin 32)    |
| 4   | Ack     | batch_seq, received C, applied C, pressure_ms                                             |
| 5   | Nack    | batch_seq, code, origin, incarnation, shard, wanted_seq, wait_ms, detail                  |
| 6   | Ping    | ping_id, sent_us, tails C, applied C, mode                                                |
| 7   | Pong    | ping_id, mode, received C, applied C, tails C, told C, wall_us                            |
| 8   | Query   | query_id, method, args (bin)                                                              |
| 9   | Reply   | query_id, ok, last (else a sign that it is worked on), result (bin)                       |
| 10  | Goodbye | code, detail, wait_ms                                                                     |

C is a cursor vector: bin, as `checkpoint.encode_cursors` writes it; I is bin, as `checkpoint.encode_incarnations` does;
S is bin, an unsigned 32-bit integer, little endian, for each shard.
Site ids are 1 to SITE_ID_MAX, incarnations are unsigned 64-bit, shards 0 to SHARDS_MAX - 1, every other integer 0 to
2^63 - 1 (a Batch's batch_seq and seqs from 1).
`mode` is the value of a `SiteMode`, `code` and `method` are words, `detail` is a short line of text, `ok` and `last`
are booleans.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgpack

from claudefs_repl.batch_auth import TAG_BYTES, BatchTag
from claudefs_repl.block import BLOCK_BYTES_MAX, Block
from claudefs_repl.checkpoint import (
    Cursors,
    decode_cursors,
    decode_incarnations,
    encode_cursors,
    encode_incarnations,
)
from claudefs_repl.error import ProtocolViolation
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import SHARDS_MAX, SITE_ID_MAX, Incarnation, Shard, SiteId
from protocol.frames import Buffer
from protocol.words import DETAIL_BYTES_MAX, cut_detail, is_code

ARGS_BYTES_MAX = 64 * 1024
RESULT_BYTES_MAX = 1 << 20
"""A longer result is sent as several replies."""
CURSORS_BYTES_MAX = 1 << 20
"""A vector of 500 journals at 256 shards, or of 4,096 at 4; a Pong carries four."""
NACK_CODES = frozenset({"gap", "stale", "clock_drift", "limit", "disk_full"})
INTEGER_MAX = (1 << 63) - 1
_MODES = frozenset(mode.value for mode in SiteMode)


@dataclass(frozen=True, slots=True)
class Welcome:
    """Listener to dialler, first on a conduit: the cursors of all journals that it holds, which are the truth.

    It comes again on the same conduit when `current` has changed.

    Attributes:
        current: for each origin that the listener knows, itself included, the incarnation that it holds to be the current
            one: of every other incarnation of these origins it takes entries from any peer.
        last_crcs: for each shard the crc32 of the last entry that the listener holds of the dialler's journal, 0 if it has
            it no longer; empty if it holds nothing of that journal. The dialler compares it with its own entry there.
        told: the highest tails that the dialler ever told the listener of its journals: one whose log ends before that has
            lost entries that were durable.
    """

    received: Cursors
    applied: Cursors
    mode: str
    current: Mapping[SiteId, Incarnation]
    last_crcs: tuple[int, ...]
    told: Cursors


@dataclass(frozen=True, slots=True)
class Tails:
    """Dialler to listener: where its journals end, so that the listener knows what "caught up" means."""

    tails: Cursors
    wall_us: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries of one journal and shard, first_seq to last_seq, which are the block's.

    Attributes:
        source_site_id: the origin of the journal, which is the site that sends it unless the receiver holds the journal's
            incarnation to be a former one; the tag covers it.
        incarnation: of the journal that the entries are from.
        batch_seq: counts the batches of a conduit from 1.
        block: after decoding, a view of the frame that it came in.
    """

    source_site_id: SiteId
    incarnation: Incarnation
    batch_seq: int
    first_seq: int
    last_seq: int
    tag: BatchTag
    block: Block


@dataclass(frozen=True, slots=True)
class Ack:
    """What is durable at the receiver, cumulative.

    Attributes:
        batch_seq: the highest batch that it covers, 0 if none.
        pressure_ms: how long the sender is asked to pause.
    """

    batch_seq: int
    received: Cursors
    applied: Cursors
    pressure_ms: int


@dataclass(frozen=True, slots=True)
class Nack:
    """A batch was not taken: why, and from where to go on.

    Attributes:
        code: one of NACK_CODES.
        wanted_seq: the seq that the receiver lacks first.
    """

    batch_seq: int
    code: str
    origin: SiteId
    incarnation: Incarnation
    shard: Shard
    wanted_seq: int
    wait_ms: int
    detail: str


@dataclass(frozen=True, slots=True)
class Ping:
    """A probe, with what the prober has."""

    ping_id: int
    sent_us: int
    tails: Cursors
    applied: Cursors
    mode: str


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a probe, with what its site says of itself, and what it was ever told of the prober's journals."""

    ping_id: int
    mode: str
    received: Cursors
    applied: Cursors
    tails: Cursors
    told: Cursors
    wall_us: int


@dataclass(frozen=True, slots=True)
class Query:
    """A question of one site to another; `args` is msgpack."""

    query_id: int
    method: str
    args: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a query, msgpack; or, when it is not the `last`, a sign that it is being worked on, without a result."""

    query_id: int
    ok: bool
    last: bool
    result: bytes


@dataclass(frozen=True, slots=True)
class Goodbye:
    """Why this side closes the connection, and how long the other should wait before it tries again."""

    code: str
    detail: str
    wait_ms: int = 0


Message = Welcome | Tails | Batch | Ack | Nack | Ping | Pong | Query | Reply | Goodbye


def encode_message(message: Message) -> list[Buffer]:
    """The parts of a message, to be sealed in one frame. A batch's block is a part of its own and not copied."""
    number = _NUMBERS[type(message)]
    schema = _SCHEMAS[number][1]
    head = bytes((_ARRAY_HEAD | len(schema) + 1, number))
    packed = []
    for name, kind in schema:
        if kind is _BLOCK:
            break
        value = kind.encode(getattr(message, name))
        assert kind.holds(value), f"{type(message).__name__}.{name} is out of range"
        packed.append(msgpack.packb(value, use_bin_type=True))
    if isinstance(message, Batch):
        assert (message.first_seq, message.last_seq) == (message.block.first_seq, message.block.last_seq)
        packed.append(_BIN_HEAD.pack(_BIN32, len(message.block.encoded)))
        return [b"".join((head, *packed)), message.block.encoded]
    return [b"".join((head, *packed))]


def decode_message(body: Buffer, *, shard_count: int | None = None) -> Message:
    """The message of a frame's body, after the frame was verified.

    Args:
        body: the frame's body; it must not change while a decoded batch is used.
        shard_count: the cluster's; vectors of another count and blocks of a shard beyond it are refused.

    Raises:
        ProtocolViolation: `bad_message`.
    """
    try:
        return _decode(memoryview(body), shard_count)
    except (ValueError, msgpack.UnpackException) as error:
        raise ProtocolViolation("bad_message", cut_detail(str(error) or type(error).__name__)) from error


def _decode(body: memoryview, shard_count: int | None) -> Message:
    if len(body) < 2:
        raise ValueError("a message has at least 2 bytes")
    cls, schema = _SCHEMAS.get(body[1]) or (None, ())
    if cls is None:
        raise ValueError(f"message {body[1]} is not known")
    if body[0] != _ARRAY_HEAD | len(schema) + 1:
        raise ValueError(f"{cls.__name__} is not an array of {len(schema) + 1}")
    if cls is Batch:
        return _decode_batch(body, shard_count)
    if len(body) > _SMALL_BYTES_MAX:
        raise ValueError(f"{cls.__name__} has at most {_SMALL_BYTES_MAX} bytes, not {len(body)}")
    values, end = _unpack_fields(body[2:], schema, shard_count)
    if end != len(body) - 2:
        raise ValueError(f"{len(body) - 2 - end} bytes follow {cls.__name__}")
    message: Message = cls(*values)
    return message


def _decode_batch(body: memoryview, shard_count: int | None) -> Batch:
    make, schema = _SCHEMAS[_NUMBERS[Batch]]
    values, end = _unpack_fields(body[2 : 2 + _BATCH_HEAD_BYTES_MAX], schema[:-1], shard_count)
    at = 2 + end
    if len(body) < at + _BIN_HEAD.size:
        raise ValueError("a block is cut off")
    marker, length = _BIN_HEAD.unpack_from(body, at)
    encoded = body[at + _BIN_HEAD.size :]
    if marker != _BIN32 or length != len(encoded) or length > BLOCK_BYTES_MAX:
        raise ValueError(f"{len(encoded)} bytes are there where a block of {length} is told")
    block = Block(encoded)
    batch: Batch = make(*values, block)
    if (batch.first_seq, batch.last_seq) != (block.first_seq, block.last_seq):
        raise ValueError(
            f"{batch.first_seq} to {batch.last_seq} are told, the block has {block.first_seq} to {block.last_seq}"
        )
    if block.shard >= (SHARDS_MAX if shard_count is None else shard_count):
        raise ValueError(f"shard {block.shard} is out of range")
    block.check_rows()
    for seen in block.seen_table:
        _check_shards(decode_cursors(seen), shard_count)
    return batch


def _unpack_fields(packed: memoryview, schema: _Schema, shard_count: int | None) -> tuple[list[Any], int]:
    unpacker = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=len(packed) or 1,
        max_str_len=DETAIL_BYTES_MAX,
        max_bin_len=CURSORS_BYTES_MAX,
        max_array_len=0,
        max_map_len=0,
        max_ext_len=0,
    )
    unpacker.feed(packed)
    values = []
    for name, kind in schema:
        value = unpacker.unpack()
        if not kind.holds(value):
            raise ValueError(f"{name} is out of range: {value!r:.60}")
        decoded = kind.decode(value)
        if kind is _CURSORS:
            _check_shards(decoded, shard_count)
        values.append(decoded)
    return values, unpacker.tell()


def _check_shards(cursors: Cursors, shard_count: int | None) -> None:
    for seqs in cursors.values():
        if len(seqs) != (shard_count or len(seqs)):
            raise ValueError(f"a vector has {len(seqs)} shards, not {shard_count}")


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """How one kind of field is written, checked and read."""

    holds: Callable[[Any], bool]
    encode: Callable[[Any], Any] = lambda value: value
    decode: Callable[[Any], Any] = lambda value: value


def _integer(minimum: int, maximum: int) -> _Kind:
    return _Kind(lambda value: type(value) is int and minimum <= value <= maximum)


def _binary(minimum: int, maximum: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is bytes and minimum <= len(value) <= maximum


def _is_word(value: Any) -> bool:
    return type(value) is str and is_code(value)


def _is_detail(value: Any) -> bool:
    return type(value) is str and len(value.encode()) <= DETAIL_BYTES_MAX


def _encode_cursors(cursors: Cursors) -> bytes:
    return encode_cursors(cursors, len(next(iter(cursors.values()), ())))


def _decode_crcs(packed: bytes) -> tuple[int, ...]:
    if len(packed) % 4:
        raise ValueError(f"{len(packed)} bytes are no 32-bit integers")
    return struct.unpack(f"<{len(packed) // 4}I", packed)


_Schema = tuple[tuple[str, _Kind], ...]

_SITE = _integer(1, SITE_ID_MAX)
_INCARNATION = _integer(0, (1 << 64) - 1)
_SHARD = _integer(0, SHARDS_MAX - 1)
_COUNT = _integer(0, INTEGER_MAX)
_FROM_ONE = _integer(1, INTEGER_MAX)
_WORD = _Kind(_is_word)
_MODE = _Kind(lambda value: type(value) is str and value in _MODES)
_DETAIL = _Kind(_is_detail, encode=cut_detail, decode=cut_detail)
_NACK_CODE = _Kind(lambda value: type(value) is str and value in NACK_CODES)
_BOOL = _Kind(lambda value: type(value) is bool)
_CURSORS = _Kind(_binary(4, CURSORS_BYTES_MAX), encode=_encode_cursors, decode=decode_cursors)
_INCARNATIONS = _Kind(_binary(0, 16 * SITE_ID_MAX), encode=encode_incarnations, decode=decode_incarnations)
_CRCS = _Kind(
    _binary(0, 4 * SHARDS_MAX),
    encode=lambda crcs: struct.pack(f"<{len(crcs)}I", *crcs),
    decode=_decode_crcs,
)
_TAG = _Kind(_binary(TAG_BYTES, TAG_BYTES), encode=lambda tag: tag.bytes, decode=BatchTag)
_ARGS = _Kind(_binary(0, ARGS_BYTES_MAX))
_RESULT = _Kind(_binary(0, RESULT_BYTES_MAX))
_BLOCK = _Kind(lambda _: False)
"""The end of a Batch, which is handled apart so that it is not copied."""


def _schema(cls: type[Any], *kinds: _Kind) -> tuple[Callable[..., Any], _Schema]:
    return cls, tuple(zip((field.name for field in fields(cls)), kinds, strict=True))


_SCHEMAS: dict[int, tuple[Any, _Schema]] = {
    1: _schema(Welcome, _CURSORS, _CURSORS, _MODE, _INCARNATIONS, _CRCS, _CURSORS),
    2: _schema(Tails, _CURSORS, _COUNT),
    3: _schema(Batch, _SITE, _INCARNATION, _FROM_ONE, _FROM_ONE, _FROM_ONE, _TAG, _BLOCK),
    4: _schema(Ack, _COUNT, _CURSORS, _CURSORS, _COUNT),
    5: _schema(Nack, _COUNT, _NACK_CODE, _SITE, _INCARNATION, _SHARD, _COUNT, _COUNT, _DETAIL),
    6: _schema(Ping, _COUNT, _COUNT, _CURSORS, _CURSORS, _MODE),
    7: _schema(Pong, _COUNT, _MODE, _CURSORS, _CURSORS, _CURSORS, _CURSORS, _COUNT),
    8: _schema(Query, _COUNT, _WORD, _ARGS),
    9: _schema(Reply, _COUNT, _BOOL, _BOOL, _RESULT),
    10: _schema(Goodbye, _WORD, _DETAIL, _COUNT),
}
_NUMBERS: dict[type[Any], int] = {cls: number for number, (cls, _) in _SCHEMAS.items()}

_ARRAY_HEAD = 0x90
_BIN32 = 0xC6
_BIN_HEAD = struct.Struct(">BI")
_BATCH_HEAD_BYTES_MAX = 5 * 9 + 2 + TAG_BYTES
"""Five integers of the widest form and the tag."""
_SMALL_BYTES_MAX = 4 * CURSORS_BYTES_MAX + 4096
"""Every message but a Batch."""
