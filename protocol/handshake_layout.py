"""The frames of the handshake as bytes; `protocol.handshake` says who sends which, and when.

Plain frames (`protocol.frames`) of at most HANDSHAKE_BYTES_MAX bytes. Integers are big endian. The layout of REFUSAL,
and of HELLO up to the offered versions, is the same in every version; the rest is that of version 1. Bytes beyond the
last field are refused.

| bytes | every frame | | bytes | HELLO                      | | bytes | ANSWER               |
|-------|-------------| |-------|----------------------------| |-------|----------------------|
| 4     | `CFSR`      | | 1     | number of versions, 1 to 16| | 1     | version chosen       |
| 1     | 1 HELLO,    | | 1 each| versions offered           | | 8     | listener's site id   |
|       | 2 ANSWER,   | | 1     | role                       | | 8     | its incarnation      |
|       | 3 PROOF,    | | 8     | dialler's site id          | | 32    | its nonce            |
|       | 4 REFUSAL   | | 8     | its incarnation            | | 32    | its proof            |
|       |             | | 8     | site id that it dials      |
| bytes | PROOF       | | 4     | shard count                | | bytes | REFUSAL              |
|-------|-------------| | 32    | its nonce                  | |-------|----------------------|
| 32    | dialler's   | | 1, n  | cluster id, UTF-8          | | 4     | wait, ms             |
|       | proof       | | 1, n  | key id, ASCII              | | 1, n  | code, ASCII          |
|       |             | |       |                            | | 2, n  | detail, UTF-8        |
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from claudefs_repl.error import PeerRefused, ProtocolViolation
from claudefs_repl.journal import SITE_ID_MAX, Incarnation, SiteId
from protocol.frames import Buffer
from protocol.keys import is_key_id
from protocol.words import CODE_BYTES_MAX, DETAIL_BYTES_MAX, cut_detail, is_code

NONCE_BYTES = 32
PROOF_BYTES = 32
WAIT_MS_MAX = 3_600_000
"""An hour: a refusal is not authenticated, so it must not silence a dialler for longer."""
ANSWER_FIXED = struct.Struct(f">BQQ{NONCE_BYTES}s")

_MAGIC = b"CFSR"
_VERSIONS_MAX = 16
_SHORT_TEXT_BYTES_MAX = 255
_HELLO_FIXED = struct.Struct(f">BQQQI{NONCE_BYTES}s")


class Role(enum.IntEnum):
    """What a connection is for; it serves nothing else."""

    CONDUIT = 0
    PROBE = 1
    QUERY = 2


class Kind(enum.IntEnum):
    """The frames."""

    HELLO = 1
    ANSWER = 2
    PROOF = 3
    REFUSAL = 4


@dataclass(frozen=True, slots=True)
class Hello:
    """What the dialler says first, but for the versions."""

    role: Role
    dialer: SiteId
    incarnation: Incarnation
    listener: SiteId
    shard_count: int
    nonce: bytes
    cluster_id: str
    key_id: str


class Reader:
    """Takes the fields of one frame's body in order; every method raises `ProtocolViolation` for what is not there."""

    def __init__(self, frame: Buffer) -> None:
        self.body = bytes(frame)
        self._at = 0

    def take(self, count: int) -> bytes:
        """So many bytes."""
        end = self._at + count
        if end > len(self.body):
            raise violation("a field is cut off")
        taken = self.body[self._at : end]
        self._at = end
        return taken

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """Fields of fixed size."""
        return layout.unpack(self.take(layout.size))

    def text(self, length_bytes: int, limit: int) -> str:
        """A text of UTF-8 behind its length."""
        length = int.from_bytes(self.take(length_bytes), "big")
        if length > limit:
            raise violation(f"a text has at most {limit} bytes here, not {length}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise violation("a text is not UTF-8") from None

    def kind(self) -> Kind:
        """The magic and what kind of frame follows."""
        if self.body[: len(_MAGIC)] != _MAGIC:
            raise ProtocolViolation("bad_magic", f"not this protocol: {self.body[:8]!r}")
        self._at = len(_MAGIC)
        (number,) = self.take(1)
        try:
            return Kind(number)
        except ValueError:
            raise violation(f"frame kind {number} is not known") from None

    def end(self) -> None:
        """Nothing may be left."""
        if self._at != len(self.body):
            raise violation(f"{len(self.body) - self._at} bytes follow the last field")


def make_body(kind: Kind, fields: bytes) -> bytes:
    """The body of a frame."""
    return _MAGIC + bytes((kind,)) + fields


def violation(detail: str) -> ProtocolViolation:
    """The error for what is not a frame of the handshake."""
    return ProtocolViolation("bad_handshake", detail)


def encode_hello(hello: Hello, versions: bytes) -> bytes:
    """HELLO\'s body."""
    assert 1 <= len(versions) <= _VERSIONS_MAX
    cluster_id, key_id = hello.cluster_id.encode(), hello.key_id.encode()
    assert len(cluster_id) <= _SHORT_TEXT_BYTES_MAX
    fixed = _HELLO_FIXED.pack(
        hello.role, hello.dialer, hello.incarnation, hello.listener, hello.shard_count, hello.nonce
    )
    texts = (bytes((len(cluster_id),)), cluster_id, bytes((len(key_id),)), key_id)
    return make_body(Kind.HELLO, b"".join((bytes((len(versions),)), versions, fixed, *texts)))


def read_versions(reader: Reader) -> bytes:
    """The versions that a HELLO offers, whatever version it is of."""
    (count,) = reader.take(1)
    if not 1 <= count <= _VERSIONS_MAX:
        raise violation(f"1 to {_VERSIONS_MAX} versions are offered, not {count}")
    return reader.take(count)


def read_hello(reader: Reader) -> Hello:
    """The rest of a HELLO."""
    role, dialer, incarnation, listener, shard_count, nonce = _HELLO_FIXED.unpack(reader.take(_HELLO_FIXED.size))
    cluster_id = reader.text(1, _SHORT_TEXT_BYTES_MAX)
    key_id = reader.text(1, _SHORT_TEXT_BYTES_MAX)
    reader.end()
    if role not in Role.__members__.values():
        raise violation(f"role {role} is not known")
    for site_id in (dialer, listener):
        if not 1 <= site_id <= SITE_ID_MAX:
            raise violation(f"a site id is 1 to {SITE_ID_MAX}, not {site_id}")
    if not is_key_id(key_id):
        raise violation("not a key id")
    return Hello(
        Role(role), SiteId(dialer), Incarnation(incarnation), SiteId(listener), shard_count, nonce, cluster_id, key_id
    )


def read_refusal(reader: Reader) -> PeerRefused:
    """The error that a REFUSAL tells."""
    wait_ms = int.from_bytes(reader.take(4), "big")
    code = reader.text(1, CODE_BYTES_MAX)
    detail = reader.text(2, DETAIL_BYTES_MAX)
    reader.end()
    if not is_code(code):
        raise violation("not a refusal's code")
    return PeerRefused(code, cut_detail(detail), wait_ms=min(wait_ms, WAIT_MS_MAX))


def encode_refusal(error: PeerRefused | ProtocolViolation) -> bytes:
    """REFUSAL's body."""
    assert is_code(error.code), error.code
    wait_ms = min(getattr(error, "wait_ms", 0), WAIT_MS_MAX)
    code, detail = error.code.encode(), cut_detail(error.detail).encode()
    fields = struct.pack(f">IB{len(code)}sH{len(detail)}s", wait_ms, len(code), code, len(detail), detail)
    return make_body(Kind.REFUSAL, fields)
