"""The handshake: each side proves the key of its ordered pair of sites over everything that was said, the dialler last.

    dialler  -> listener   HELLO
    listener -> dialler    ANSWER, or REFUSAL and the end of the connection
    dialler  -> listener   PROOF, or REFUSAL and the end of the connection

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

`T` = SHA-256(length (4) || HELLO body || length (4) || ANSWER body without its proof). Proofs, the keys of both
directions and the key of the batch tags are `keys.derive(secret, T, label)`, each with a label of its own. So nothing
that was said can be changed (no downgrade), no proof serves for the other side (no reflection), and with fresh nonces
from both sides none serves twice. A REFUSAL is not authenticated: it can only do what cutting the connection can.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass

from claudefs_repl.batch_auth import BatchAuthKey
from claudefs_repl.error import PeerError, PeerRefused, ProtocolViolation
from claudefs_repl.journal import SITE_ID_MAX, Incarnation, SiteId
from protocol.frames import Buffer, FrameOpener, FrameSealer, plain_frame
from protocol.keys import KeyRing, PairKey, derive, is_key_id
from protocol.words import CODE_BYTES_MAX, DETAIL_BYTES_MAX, cut_detail, is_code

PROTOCOL_VERSIONS = (1,)
"""Those that this code speaks."""
NONCE_BYTES = 32
WAIT_MS_MAX = 3_600_000
"""An hour: a refusal is not authenticated, so it must not silence a dialler for longer."""

_MAGIC = b"CFSR"
_VERSIONS_MAX = 16
_SHORT_TEXT_BYTES_MAX = 255
_PROOF_BYTES = 32
_HELLO_FIXED = struct.Struct(f">BQQQI{NONCE_BYTES}s")
_ANSWER_FIXED = struct.Struct(f">BQQ{NONCE_BYTES}s")
_LENGTH = struct.Struct(">I")

_LISTENER_PROOF = b"claudefs-repl listener proof"
_DIALER_PROOF = b"claudefs-repl dialer proof"
_TO_LISTENER = b"claudefs-repl frames dialer to listener"
_TO_DIALER = b"claudefs-repl frames listener to dialer"
_BATCH_TAG = b"claudefs-repl batch tag"


class Role(enum.IntEnum):
    """What a connection is for; it serves nothing else."""

    CONDUIT = 0
    PROBE = 1
    QUERY = 2


class _Kind(enum.IntEnum):
    HELLO = 1
    ANSWER = 2
    PROOF = 3
    REFUSAL = 4


class State(enum.Enum):
    """Where a handshake is."""

    START = enum.auto()
    AWAITING_ANSWER = enum.auto()
    AWAITING_PROOF = enum.auto()
    DONE = enum.auto()
    FAILED = enum.auto()


class Event(enum.Enum):
    """What moves a handshake."""

    HELLO_MADE = enum.auto()
    HELLO_ACCEPTED = enum.auto()
    ANSWER_ACCEPTED = enum.auto()
    PROOF_ACCEPTED = enum.auto()
    REFUSED = enum.auto()


TRANSITIONS: dict[tuple[State, Event], State] = {
    # the dialler
    (State.START, Event.HELLO_MADE): State.AWAITING_ANSWER,
    (State.AWAITING_ANSWER, Event.ANSWER_ACCEPTED): State.DONE,
    (State.AWAITING_ANSWER, Event.REFUSED): State.FAILED,
    # the listener
    (State.START, Event.HELLO_ACCEPTED): State.AWAITING_PROOF,
    (State.START, Event.REFUSED): State.FAILED,
    (State.AWAITING_PROOF, Event.PROOF_ACCEPTED): State.DONE,
    (State.AWAITING_PROOF, Event.REFUSED): State.FAILED,
}
"""A pair that is not here is an error of ours."""


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """What a site says of itself in each handshake."""

    cluster_id: str
    shard_count: int
    site_id: SiteId
    incarnation: Incarnation


@dataclass(slots=True)
class Session:
    """What both sides have after the handshake. The dialler's is proven by the first frame that its opener accepts.

    Attributes:
        peer: the authenticated site at the other end.
        peer_incarnation: that of its current journal.
        sealer: for the frames that this side sends.
        opener: for those that it receives.
        batch_key: for the tags of the connection's batches; the owner closes it with the connection.
    """

    peer: SiteId
    peer_incarnation: Incarnation
    role: Role
    key_id: str
    version: int
    sealer: FrameSealer
    opener: FrameOpener
    batch_key: BatchAuthKey


@dataclass(frozen=True, slots=True)
class _Hello:
    role: Role
    dialer: SiteId
    incarnation: Incarnation
    listener: SiteId
    shard_count: int
    nonce: bytes
    cluster_id: str
    key_id: str


class _Machine:
    """The state of one side, and the one way to change it."""

    def __init__(self) -> None:
        self.state = State.START

    def _advance(self, event: Event) -> None:
        assert (self.state, event) in TRANSITIONS, f"{event} cannot come in {self.state}"
        self.state = TRANSITIONS[self.state, event]

    def _expect(self, state: State) -> None:
        assert self.state is state, f"the handshake is in {self.state}, not in {state}"


class DialerHandshake(_Machine):
    """The side that opened the connection. Owned by one task, for one connection."""

    def __init__(
        self,
        identity: LocalIdentity,
        *,
        peer: SiteId,
        role: Role,
        keys: KeyRing,
        nonce: bytes,
        versions: Sequence[int] = PROTOCOL_VERSIONS,
    ) -> None:
        """Begin a handshake with a fresh random nonce.

        Raises:
            PeerRefused: `key_missing`; there is no use in connecting.
        """
        super().__init__()
        assert len(nonce) == NONCE_BYTES
        self._key = keys.to_use(peer)
        self._peer = peer
        self._role = role
        self._versions = bytes(versions)
        hello = _Hello(
            role,
            identity.site_id,
            identity.incarnation,
            peer,
            identity.shard_count,
            nonce,
            identity.cluster_id,
            self._key.key_id,
        )
        self._hello = _encode_hello(hello, self._versions)

    def hello(self) -> bytes:
        """The frame to send first."""
        self._advance(Event.HELLO_MADE)
        return plain_frame(self._hello)

    def receive(self, frame: Buffer) -> tuple[bytes, Session]:
        """Judge the listener's frame: the frame to send next, and the session that begins after it.

        Raises:
            PeerRefused: the listener declined, with its code, detail and wait.
            ProtocolViolation: `bad_magic`, `bad_handshake`, or `bad_proof`: the listener has another key under this id,
                or is somebody else. Telling it so with `refusal_frame` lets its log say the same.
        """
        self._expect(State.AWAITING_ANSWER)
        try:
            accepted = self._judge(frame)
        except PeerError:
            self._advance(Event.REFUSED)
            raise
        self._advance(Event.ANSWER_ACCEPTED)
        return accepted

    def _judge(self, frame: Buffer) -> tuple[bytes, Session]:
        reader = _Reader(frame)
        kind = reader.kind()
        if kind is _Kind.REFUSAL:
            raise _read_refusal(reader)
        if kind is not _Kind.ANSWER:
            raise _bad(f"the listener sent {kind.name} where its answer was due")
        version, site_id, incarnation, _nonce = reader.unpack(_ANSWER_FIXED)
        proof = reader.take(_PROOF_BYTES)
        reader.end()
        if version not in self._versions:
            raise _bad(f"the listener chose version {version}, which was not offered")
        if site_id != self._peer:
            raise _bad(f"site {site_id} answered where site {self._peer} was dialled")
        transcript = _transcript(self._hello, reader.body[:-_PROOF_BYTES])
        if not hmac.compare_digest(proof, derive(self._key.secret, transcript, _LISTENER_PROOF)):
            raise ProtocolViolation(
                "bad_proof",
                f"site {self._peer} did not prove key {self._key.key_id!r}: its key is another, or it is not it",
            )
        body = _body(_Kind.PROOF, derive(self._key.secret, transcript, _DIALER_PROOF))
        session = Session(
            peer=self._peer,
            peer_incarnation=Incarnation(incarnation),
            role=self._role,
            key_id=self._key.key_id,
            version=version,
            sealer=FrameSealer(derive(self._key.secret, transcript, _TO_LISTENER)),
            opener=FrameOpener(derive(self._key.secret, transcript, _TO_DIALER)),
            batch_key=BatchAuthKey(derive(self._key.secret, transcript, _BATCH_TAG)),
        )
        return plain_frame(body), session


class ListenerHandshake(_Machine):
    """The side that accepted the connection. Owned by one task, for one connection.

    Attributes:
        peer: who the other side says it is, once its hello was read (also when it was refused); not proven before DONE.
        role: what it says the connection is for.
    """

    def __init__(
        self,
        identity: LocalIdentity,
        *,
        keys: KeyRing,
        known: Container[SiteId],
        nonce: bytes,
        versions: Sequence[int] = PROTOCOL_VERSIONS,
    ) -> None:
        super().__init__()
        assert len(nonce) == NONCE_BYTES
        self._identity = identity
        self._keys = keys
        self._known = known
        self._nonce = nonce
        self._versions = versions
        self.peer: SiteId | None = None
        self.role: Role | None = None
        self._pending: tuple[PairKey, _Hello, int, bytes] | None = None

    def receive_hello(self, frame: Buffer) -> bytes:
        """Judge the dialler's first frame: the answer to send.

        Raises:
            PeerRefused: `version_unsupported`, `cluster_mismatch`, `shard_count_mismatch`, `self_connection`,
                `site_unknown`, `wrong_site` or `key_unknown`; `refusal_frame` tells the dialler.
            ProtocolViolation: `bad_magic` or `bad_handshake`; nothing is answered.
        """
        self._expect(State.START)
        try:
            answer = self._judge_hello(frame)
        except PeerError:
            self._advance(Event.REFUSED)
            raise
        self._advance(Event.HELLO_ACCEPTED)
        return answer

    def receive_proof(self, frame: Buffer) -> Session:
        """Judge the dialler's proof: the session that begins now.

        Raises:
            PeerRefused: the dialler declined, with its code and detail.
            ProtocolViolation: `bad_proof` or `bad_handshake`.
        """
        self._expect(State.AWAITING_PROOF)
        try:
            session = self._judge_proof(frame)
        except PeerError:
            self._advance(Event.REFUSED)
            raise
        self._advance(Event.PROOF_ACCEPTED)
        return session

    def _judge_hello(self, frame: Buffer) -> bytes:
        reader = _Reader(frame)
        kind = reader.kind()
        if kind is not _Kind.HELLO:
            raise _bad(f"the dialler sent {kind.name} where its hello was due")
        version = self._choose_version(_read_versions(reader))
        hello = _read_hello(reader)
        self.peer, self.role = hello.dialer, hello.role
        key = self._check(hello)
        unproven = _body(
            _Kind.ANSWER,
            _ANSWER_FIXED.pack(version, self._identity.site_id, self._identity.incarnation, self._nonce),
        )
        transcript = _transcript(reader.body, unproven)
        self._pending = (key, hello, version, transcript)
        return plain_frame(unproven + derive(key.secret, transcript, _LISTENER_PROOF))

    def _choose_version(self, offered: bytes) -> int:
        common = [version for version in self._versions if version in offered]
        if not common:
            raise PeerRefused(
                "version_unsupported",
                f"versions {list(offered)} are offered, site {self._identity.site_id} speaks {list(self._versions)}",
            )
        return max(common)

    def _check(self, hello: _Hello) -> PairKey:
        mine = self._identity
        if hello.cluster_id != mine.cluster_id:
            raise PeerRefused(
                "cluster_mismatch",
                f"site {hello.dialer} is of cluster {hello.cluster_id!r}, site {mine.site_id} of {mine.cluster_id!r}",
            )
        if hello.shard_count != mine.shard_count:
            raise PeerRefused(
                "shard_count_mismatch",
                f"site {hello.dialer} has {hello.shard_count} shards, site {mine.site_id} has {mine.shard_count}",
            )
        if hello.dialer == mine.site_id:
            raise PeerRefused("self_connection", f"the dialler says it is site {mine.site_id}, which it dialled")
        if hello.dialer not in self._known:
            raise PeerRefused("site_unknown", f"site {mine.site_id} does not know a site {hello.dialer}")
        if hello.listener != mine.site_id:
            raise PeerRefused("wrong_site", f"site {hello.listener} was dialled, this is site {mine.site_id}")
        key = self._keys.find(hello.key_id, dialer=hello.dialer, listener=mine.site_id)
        if key is None:
            raise PeerRefused(
                "key_unknown", f"site {mine.site_id} has no key {hello.key_id!r} for connections of site {hello.dialer}"
            )
        return key

    def _judge_proof(self, frame: Buffer) -> Session:
        assert self._pending is not None
        key, hello, version, transcript = self._pending
        self._pending = None
        reader = _Reader(frame)
        kind = reader.kind()
        if kind is _Kind.REFUSAL:
            raise _read_refusal(reader)
        if kind is not _Kind.PROOF:
            raise _bad(f"the dialler sent {kind.name} where its proof was due")
        proof = reader.take(_PROOF_BYTES)
        reader.end()
        if not hmac.compare_digest(proof, derive(key.secret, transcript, _DIALER_PROOF)):
            raise ProtocolViolation("bad_proof", f"who says it is site {hello.dialer} did not prove key {key.key_id!r}")
        return Session(
            peer=hello.dialer,
            peer_incarnation=hello.incarnation,
            role=hello.role,
            key_id=key.key_id,
            version=version,
            sealer=FrameSealer(derive(key.secret, transcript, _TO_DIALER)),
            opener=FrameOpener(derive(key.secret, transcript, _TO_LISTENER)),
            batch_key=BatchAuthKey(derive(key.secret, transcript, _BATCH_TAG)),
        )


def refusal_frame(error: PeerRefused | ProtocolViolation) -> bytes:
    """What a side that declines sends before it closes."""
    assert is_code(error.code), error.code
    wait_ms = min(getattr(error, "wait_ms", 0), WAIT_MS_MAX)
    code, detail = error.code.encode(), cut_detail(error.detail).encode()
    fields = struct.pack(f">IB{len(code)}sH{len(detail)}s", wait_ms, len(code), code, len(detail), detail)
    return plain_frame(_body(_Kind.REFUSAL, fields))


class _Reader:
    """Takes the fields of one frame's body in order."""

    def __init__(self, frame: Buffer) -> None:
        self.body = bytes(frame)
        self._at = 0

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self.body):
            raise _bad("a field is cut off")
        taken = self.body[self._at : end]
        self._at = end
        return taken

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self.take(layout.size))

    def text(self, length_bytes: int, limit: int) -> str:
        length = int.from_bytes(self.take(length_bytes), "big")
        if length > limit:
            raise _bad(f"a text has at most {limit} bytes here, not {length}")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise _bad("a text is not UTF-8") from None

    def kind(self) -> _Kind:
        if self.body[: len(_MAGIC)] != _MAGIC:
            raise ProtocolViolation("bad_magic", f"not this protocol: {self.body[:8]!r}")
        self._at = len(_MAGIC)
        (number,) = self.take(1)
        try:
            return _Kind(number)
        except ValueError:
            raise _bad(f"frame kind {number} is not known") from None

    def end(self) -> None:
        if self._at != len(self.body):
            raise _bad(f"{len(self.body) - self._at} bytes follow the last field")


def _body(kind: _Kind, fields: bytes) -> bytes:
    return _MAGIC + bytes((kind,)) + fields


def _bad(detail: str) -> ProtocolViolation:
    return ProtocolViolation("bad_handshake", detail)


def _transcript(*bodies: bytes) -> bytes:
    transcript = hashlib.sha256()
    for body in bodies:
        transcript.update(_LENGTH.pack(len(body)))
        transcript.update(body)
    return transcript.digest()


def _encode_hello(hello: _Hello, versions: bytes) -> bytes:
    assert 1 <= len(versions) <= _VERSIONS_MAX
    cluster_id, key_id = hello.cluster_id.encode(), hello.key_id.encode()
    assert len(cluster_id) <= _SHORT_TEXT_BYTES_MAX
    fixed = _HELLO_FIXED.pack(
        hello.role, hello.dialer, hello.incarnation, hello.listener, hello.shard_count, hello.nonce
    )
    texts = (bytes((len(cluster_id),)), cluster_id, bytes((len(key_id),)), key_id)
    return _body(_Kind.HELLO, b"".join((bytes((len(versions),)), versions, fixed, *texts)))


def _read_versions(reader: _Reader) -> bytes:
    (count,) = reader.take(1)
    if not 1 <= count <= _VERSIONS_MAX:
        raise _bad(f"1 to {_VERSIONS_MAX} versions are offered, not {count}")
    return reader.take(count)


def _read_hello(reader: _Reader) -> _Hello:
    role, dialer, incarnation, listener, shard_count, nonce = _HELLO_FIXED.unpack(reader.take(_HELLO_FIXED.size))
    cluster_id = reader.text(1, _SHORT_TEXT_BYTES_MAX)
    key_id = reader.text(1, _SHORT_TEXT_BYTES_MAX)
    reader.end()
    if role not in Role.__members__.values():
        raise _bad(f"role {role} is not known")
    for site_id in (dialer, listener):
        if not 1 <= site_id <= SITE_ID_MAX:
            raise _bad(f"a site id is 1 to {SITE_ID_MAX}, not {site_id}")
    if not is_key_id(key_id):
        raise _bad("not a key id")
    return _Hello(
        Role(role), SiteId(dialer), Incarnation(incarnation), SiteId(listener), shard_count, nonce, cluster_id, key_id
    )


def _read_refusal(reader: _Reader) -> PeerRefused:
    wait_ms = int.from_bytes(reader.take(4), "big")
    code = reader.text(1, CODE_BYTES_MAX)
    detail = reader.text(2, DETAIL_BYTES_MAX)
    reader.end()
    if not is_code(code):
        raise _bad("not a refusal's code")
    return PeerRefused(code, cut_detail(detail), wait_ms=min(wait_ms, WAIT_MS_MAX))
