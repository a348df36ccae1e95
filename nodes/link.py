"""An authenticated connection: messages over a stream, each frame verified before it is decoded."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from claudefs_repl.error import PeerRefused, ProtocolViolation
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import SiteConfig
from nodes.seams import Entropy
from protocol.frames import FRAME_BYTES_MAX, HANDSHAKE_BYTES_MAX, FrameCutter
from protocol.handshake import (
    DialerHandshake,
    ListenerHandshake,
    LocalIdentity,
    Role,
    Session,
    refusal_frame,
)
from protocol.keys import KeyRing
from protocol.messages import Goodbye, Message, decode_message, encode_message

READ_BYTES = 256 * 1024
"""One read from the socket: large enough that a megabyte batch costs a handful of calls."""
NONCE_BYTES = 32

NETWORK_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a connection may end with at any await, through no fault of ours."""


M = TypeVar("M")


class LinkClosed(Exception):
    """The other side closed the connection, or a crash or a network did."""


LINK_ERRORS = (ProtocolViolation, LinkClosed, trio.TooSlowError, *NETWORK_ERRORS)
"""What ends a link and leads to a new one; `PeerRefused` comes only from the handshake."""


@contextmanager
def one_link_error(*others: type[Exception]) -> Iterator[None]:
    """Turn a nursery's group of link errors, and `others` that are expected, into the first of them.

    When anything else is in the group, a cancellation or an error of ours, that is raised and the link errors, its
    consequences, are dropped.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        types: tuple[type[Exception], ...] = (*LINK_ERRORS, *others)
        expected, rest = group.split(types)
        if rest is not None:
            raise rest from None
        leaf: BaseException = expected if expected is not None else group
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        raise leaf from None


def describe_failure(error: BaseException) -> str:
    """A connection's end in words."""
    match error:
        case LinkClosed():
            return str(error) or "the peer closed the connection"
        case trio.TooSlowError():
            return "the peer did not answer in time"
        case trio.BrokenResourceError():
            cause = error.__cause__
            return "connection lost" + (
                f": {os.strerror(cause.errno)}" if isinstance(cause, OSError) and cause.errno else ""
            )
        case OSError():
            cause = error.__cause__
            if isinstance(cause, BaseExceptionGroup):
                cause = cause.exceptions[0]
            number = cause.errno if isinstance(cause, OSError) else error.errno
            return os.strerror(number) if number else str(cause or error)
    return str(error) or type(error).__name__


class Link:
    """A stream with a session. Sending is for one task, receiving for one task."""

    def __init__(
        self, stream: trio.SocketStream, session: Session, cutter: FrameCutter, shard_count: int, *, is_dialer: bool
    ) -> None:
        self._stream = stream
        self._cutter = cutter
        self._shard_count = shard_count
        self.session = session
        self.is_dialer = is_dialer

    def has_key_in(self, keys: KeyRing) -> bool:
        """Whether the key that this link was made with is still one of ours."""
        own, peer = keys.site_id, self.session.peer
        dialer, listener = (own, peer) if self.is_dialer else (peer, own)
        return keys.find(self.session.key_id, dialer=dialer, listener=listener) is not None

    async def send(self, message: Message) -> None:
        """Seal and send one message. After a cancellation the connection is of no more use."""
        await self._stream.send_all(b"".join(self.session.sealer.seal(encode_message(message))))

    async def receive(self) -> Message:
        """The next message.

        Raises:
            ProtocolViolation: the frame was not authentic, or not a message.
            LinkClosed: the other side closed.
        """
        frame = await _next_frame(self._stream, self._cutter)
        return decode_message(self.session.opener.open(frame), shard_count=self._shard_count)

    async def expect(self, kind: type[M]) -> M:
        """The next message, which must be of a kind.

        Raises:
            PeerRefused: the other side says goodbye instead, and why.
            ProtocolViolation: another message came.
            LinkClosed: the other side closed.
        """
        message = await self.receive()
        if isinstance(message, Goodbye):
            raise PeerRefused(message.code, message.detail, wait_ms=message.wait_ms)
        if not isinstance(message, kind):
            raise ProtocolViolation("unexpected", f"{type(message).__name__} where {kind.__name__} was due")
        return message

    async def hang_up(self) -> None:
        """End the connection under whoever uses it, who meets a closed stream, and closes the link."""
        await trio.aclose_forcefully(self._stream)

    async def aclose(self) -> None:
        """Close the connection and forget its keys; for its user, who may need them until then."""
        self.session.batch_key.close()
        await trio.aclose_forcefully(self._stream)


async def _next_frame(stream: trio.SocketStream, cutter: FrameCutter) -> memoryview | bytes:
    while (frame := cutter.next_frame()) is None:
        data = await stream.receive_some(READ_BYTES)
        if not data:
            # A process that is killed ends like this as well: it is nobody's fault, and nothing of the frame is used.
            raise LinkClosed("" if cutter.at_boundary() else "the connection ended inside a frame")
        cutter.feed(data)
    return frame


async def dial(
    *,
    identity: LocalIdentity,
    local_address: str,
    peer: SiteConfig,
    role: Role,
    keys: KeyRing,
    entropy: Entropy,
    timeout_s: float,
) -> Link:
    """Connect to a peer and prove each other's keys.

    Raises:
        OSError: no connection.
        trio.TooSlowError: not done in time.
        PeerRefused: the peer declined, with its reason.
        ProtocolViolation: what answered is not that peer.
    """
    handshake = DialerHandshake(identity, peer=peer.site_id, role=role, keys=keys, nonce=entropy(NONCE_BYTES))
    with trio.fail_after(timeout_s):
        stream = await trio.open_tcp_stream(peer.address, peer.port, local_address=local_address)
        try:
            cutter = FrameCutter(bytes_max=HANDSHAKE_BYTES_MAX)
            await stream.send_all(handshake.hello())
            reply = await _next_frame(stream, cutter)
            try:
                proof, session = handshake.receive(reply)
            except ProtocolViolation as violation:
                # The listener learns why: two sites with one key id and two secrets is what it usually is.
                await stream.send_all(refusal_frame(violation))
                raise
            await stream.send_all(proof)
            cutter.bytes_max = FRAME_BYTES_MAX
            return Link(stream, session, cutter, identity.shard_count, is_dialer=True)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise


async def welcome_dialer(
    stream: trio.SocketStream,
    *,
    identity: LocalIdentity,
    keys: KeyRing,
    known: Container[SiteId],
    entropy: Entropy,
    timeout_s: float,
) -> Link:
    """The listener's side of `dial`, on a connection that was accepted; a refusal is told to the dialler.

    Raises:
        trio.TooSlowError: the whole handshake was not done in time.
        PeerRefused: the dialler is not one of ours.
        ProtocolViolation: what dialled does not speak the protocol, or has not the key.
        LinkClosed: it went away.
    """
    with trio.fail_after(timeout_s):
        handshake = ListenerHandshake(identity, keys=keys, known=known, nonce=entropy(NONCE_BYTES))
        cutter = FrameCutter(bytes_max=HANDSHAKE_BYTES_MAX)
        try:
            reply = handshake.receive_hello(await _next_frame(stream, cutter))
        except PeerRefused as refusal:
            await stream.send_all(refusal_frame(refusal))
            raise
        await stream.send_all(reply)
        session = handshake.receive_proof(await _next_frame(stream, cutter))
        cutter.bytes_max = FRAME_BYTES_MAX
        return Link(stream, session, cutter, identity.shard_count, is_dialer=False)
