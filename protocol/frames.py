"""Frames: how a stream of bytes is cut, and how every frame after the handshake is authenticated.

| bytes    | field                                                                                  |
|----------|----------------------------------------------------------------------------------------|
| 4        | length of what follows, big endian, at least 1                                         |
| as told  | body                                                                                   |
| 32       | only once sealed: HMAC-SHA256(direction's key, counter (8, BE) || length (4) || body)  |

The counter is not sent: each direction of a connection counts its own sealed frames from 0. A frame that is replayed,
reordered, dropped, reflected or taken from another connection therefore has a wrong MAC. Frames of the handshake are
not sealed.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Sequence

from claudefs_repl.block import BLOCK_BYTES_MAX
from claudefs_repl.error import ProtocolViolation

Buffer = bytes | bytearray | memoryview

MAC_BYTES = 32
FRAME_BYTES_MAX = BLOCK_BYTES_MAX + 64 * 1024
"""Limit on the length field once a peer is authenticated: a batch of the largest block, with its other fields."""
HANDSHAKE_BYTES_MAX = 4096
"""Limit on the length field before: what a stranger can make this site hold. The first bytes of an HTTP request, an SSH
banner or a TLS hello, read as a length, are far beyond it."""

_LENGTH = struct.Struct(">I")
LENGTH_BYTES = _LENGTH.size
_COUNTED = struct.Struct(">QI")


class FrameCutter:
    """Cuts a stream into frames, in whatever pieces it arrives.

    Take frames until there are none before more is fed: then at most one unfinished frame and one piece are held. Each
    byte is copied twice, whatever the sizes of pieces and frames.

    Attributes:
        bytes_max: the greatest length accepted; raised by the owner when the handshake is done.
    """

    __slots__ = ("_buffer", "bytes_max")

    def __init__(self, *, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._buffer = bytearray()

    def feed(self, data: Buffer) -> None:
        """Take the next piece of the stream."""
        self._buffer += data

    def next_frame(self) -> bytes | None:
        """What follows the length field of the next frame; None if more bytes are needed.

        Raises:
            ProtocolViolation: `frame_empty` or `frame_too_long`, as soon as the length is there. It is raised again by
                every later call: the stream cannot be cut any more.
        """
        if len(self._buffer) < LENGTH_BYTES:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length == 0:
            raise ProtocolViolation("frame_empty", "a frame has at least 1 byte")
        if length > self.bytes_max:
            raise ProtocolViolation("frame_too_long", f"a frame has at most {self.bytes_max} bytes here, not {length}")
        end = LENGTH_BYTES + length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as view:
            frame = bytes(view[LENGTH_BYTES:end])
        del self._buffer[:end]
        return frame

    @property
    def buffered(self) -> int:
        """Bytes fed and not yet given out in a frame."""
        return len(self._buffer)

    def at_boundary(self) -> bool:
        """Whether the stream may end here without cutting a frame."""
        return not self._buffer


class _DirectionMac:
    """The MACs of one direction's frames, in order."""

    __slots__ = ("_counter", "_keyed")

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod="sha256")
        self._counter = 0

    def next_mac(self, length: int, parts: Sequence[Buffer]) -> bytes:
        """The MAC of the next frame, whose length field has this value."""
        mac = self._keyed.copy()
        mac.update(_COUNTED.pack(self._counter, length))
        for part in parts:
            mac.update(part)
        self._counter += 1
        return mac.digest()


class FrameSealer:
    """Makes the frames of one direction.

    Owned by the task that sends: frames go out in the order in which they are sealed.
    """

    __slots__ = ("_macs",)

    def __init__(self, key: bytes) -> None:
        self._macs = _DirectionMac(key)

    def seal(self, parts: Sequence[Buffer]) -> list[Buffer]:
        """A frame whose body is these parts, not copied: its length field, the parts, its MAC."""
        length = sum(map(len, parts)) + MAC_BYTES
        assert MAC_BYTES < length <= FRAME_BYTES_MAX, f"a frame of {length} bytes would be refused"
        return [_LENGTH.pack(length), *parts, self._macs.next_mac(length, parts)]


class FrameOpener:
    """Verifies the frames of one direction. Owned by the task that receives."""

    __slots__ = ("_broken", "_macs")

    def __init__(self, key: bytes) -> None:
        self._macs = _DirectionMac(key)
        self._broken = False

    def open(self, frame: Buffer) -> memoryview:
        """The body of a frame (what `FrameCutter.next_frame` gave), after its MAC proved right.

        Raises:
            ProtocolViolation: `bad_mac`; then every later call raises it too, whatever the frame.
        """
        view = memoryview(frame)
        if self._broken or len(view) <= MAC_BYTES:
            self._broken = True
            raise ProtocolViolation("bad_mac", "the frame is too short to be sealed, or follows one that was refused")
        body, mac = view[:-MAC_BYTES], view[-MAC_BYTES:]
        if not hmac.compare_digest(mac, self._macs.next_mac(len(view), (body,))):
            self._broken = True
            raise ProtocolViolation("bad_mac", "the frame was altered, replayed, reordered or sealed with another key")
        return body


def plain_frame(body: bytes) -> bytes:
    """A frame of the handshake: not sealed."""
    assert 0 < len(body) <= HANDSHAKE_BYTES_MAX
    return _LENGTH.pack(len(body)) + body
