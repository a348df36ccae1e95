"""The handshake: each side proves the key of its ordered pair of sites over everything that was said, the dialler last.

    dialler  -> listener   HELLO
    listener -> dialler    ANSWER, or REFUSAL and the end of the connection
    dialler  -> listener   PROOF, or REFUSAL and the end of the connection

`protocol.handshake_layout` has the bytes of each frame.

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
from claudefs_repl.journal import Incarnation, SiteId
from protocol.frames import Buffer, FrameOpener, FrameSealer, plain_frame
from protocol.handshake_layout import (
    ANSWER_FIXED,
    NONCE_BYTES,
    PROOF_BYTES,
    WAIT_MS_MAX,
    Hello,
    Kind,
    Reader,
    Role,
    encode_hello,
    encode_refusal,
    make_body,
    read_hello,
    read_refusal,
    read_versions,
    violation,
)
from protocol.keys import KeyRing, PairKey, derive

__all__ = [
    "NONCE_BYTES",
    "PROTOCOL_VERSIONS",
    "TRANSITIONS",
    "WAIT_MS_MAX",
    "DialerHandshake",
    "Event",
    "ListenerHandshake",
    "LocalIdentity",
    "Role",
    "Session",
    "State",
    "refusal_frame",
]

PROTOCOL_VERSIONS = (1,)
"""Those that this code speaks."""
_LENGTH = struct.Struct(">I")

_LISTENER_PROOF = b"claudefs-repl listener proof"
_DIALER_PROOF = b"claudefs-repl dialer proof"
_TO_LISTENER = b"claudefs-repl frames dialer to listener"
_TO_DIALER = b"claudefs-repl frames listener to dialer"
_BATCH_TAG = b"claudefs-repl batch tag"


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
        hello = Hello(
            role,
            identity.site_id,
            identity.incarnation,
            peer,
            identity.shard_count,
            nonce,
            identity.cluster_id,
            self._key.key_id,
        )
        self._hello = encode_hello(hello, self._versions)

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
        reader = Reader(frame)
        kind = reader.kind()
        if kind is Kind.REFUSAL:
            raise read_refusal(reader)
        if kind is not Kind.ANSWER:
            raise violation(f"the listener sent {kind.name} where its answer was due")
        version, site_id, incarnation, _nonce = reader.unpack(ANSWER_FIXED)
        proof = reader.take(PROOF_BYTES)
        reader.end()
        if version not in self._versions:
            raise violation(f"the listener chose version {version}, which was not offered")
        if site_id != self._peer:
            raise violation(f"site {site_id} answered where site {self._peer} was dialled")
        transcript = _transcript(self._hello, reader.body[:-PROOF_BYTES])
        if not hmac.compare_digest(proof, derive(self._key.secret, transcript, _LISTENER_PROOF)):
            raise ProtocolViolation(
                "bad_proof",
                f"site {self._peer} did not prove key {self._key.key_id!r}: its key is another, or it is not it",
            )
        body = make_body(Kind.PROOF, derive(self._key.secret, transcript, _DIALER_PROOF))
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
        self._pending: tuple[PairKey, Hello, int, bytes] | None = None

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
        reader = Reader(frame)
        kind = reader.kind()
        if kind is not Kind.HELLO:
            raise violation(f"the dialler sent {kind.name} where its hello was due")
        version = self._choose_version(read_versions(reader))
        hello = read_hello(reader)
        self.peer, self.role = hello.dialer, hello.role
        key = self._check(hello)
        unproven = make_body(
            Kind.ANSWER,
            ANSWER_FIXED.pack(version, self._identity.site_id, self._identity.incarnation, self._nonce),
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

    def _check(self, hello: Hello) -> PairKey:
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
        reader = Reader(frame)
        kind = reader.kind()
        if kind is Kind.REFUSAL:
            raise read_refusal(reader)
        if kind is not Kind.PROOF:
            raise violation(f"the dialler sent {kind.name} where its proof was due")
        proof = reader.take(PROOF_BYTES)
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
    return plain_frame(encode_refusal(error))


def _transcript(*bodies: bytes) -> bytes:
    transcript = hashlib.sha256()
    for body in bodies:
        transcript.update(_LENGTH.pack(len(body)))
        transcript.update(body)
    return transcript.digest()
