"""Frames: cut from any pieces, and authentic or refused."""

from __future__ import annotations

import hashlib
import hmac
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.block import BLOCK_BYTES_MAX
from claudefs_repl.error import ProtocolViolation
from protocol.frames import (
    FRAME_BYTES_MAX,
    HANDSHAKE_BYTES_MAX,
    MAC_BYTES,
    FrameCutter,
    FrameOpener,
    FrameSealer,
    plain_frame,
)

KEY = bytes(range(32))
bodies = st.binary(min_size=1, max_size=40)


def pieces_of(stream, sizes):
    at = 0
    for size in sizes:
        yield stream[at : at + size]
        at += size
    yield stream[at:]


def cut_all(cutter):
    frames = []
    while (frame := cutter.next_frame()) is not None:
        frames.append(bytes(frame))
    return frames


def sealed(*messages, key=KEY):
    """What follows the length field of each of several frames."""
    sealer = FrameSealer(key)
    return [b"".join(sealer.seal([message]))[4:] for message in messages]


@given(st.lists(bodies, max_size=6), st.lists(st.integers(0, 50), max_size=12))
def test_frames_do_not_depend_on_pieces(messages, sizes):
    """However the stream is cut into pieces, the same frames come out in order."""
    stream = b"".join(map(plain_frame, messages))
    cutter = FrameCutter(bytes_max=40)
    frames = []
    for piece in pieces_of(stream, sizes):
        cutter.feed(piece)
        frames += cut_all(cutter)
    assert frames == messages
    assert cutter.at_boundary()
    assert cutter.buffered == 0


@given(st.lists(bodies, min_size=1, max_size=3), st.data())
def test_end_inside_a_frame_is_seen(messages, data):
    """An end of the stream is at a boundary exactly when no frame has begun."""
    stream = b"".join(map(plain_frame, messages))
    end = data.draw(st.integers(0, len(stream)))
    boundaries = {len(b"".join(map(plain_frame, messages[:count]))) for count in range(len(messages) + 1)}
    cutter = FrameCutter(bytes_max=40)
    cutter.feed(stream[:end])
    cut_all(cutter)
    assert cutter.at_boundary() == (end in boundaries)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_every_kind_of_buffer_is_fed(kind):
    """Bytes, bytearrays and views are taken; a buffer may be used again at once."""
    buffer = bytearray(plain_frame(b"body"))
    cutter = FrameCutter(bytes_max=10)
    cutter.feed(kind(bytes(buffer)) if kind is bytes else kind(buffer))
    buffer[:] = bytes(len(buffer))
    assert cutter.next_frame() == b"body"


def test_frame_outlives_what_follows():
    """A frame given out does not change with what is fed afterwards."""
    cutter = FrameCutter(bytes_max=10)
    cutter.feed(plain_frame(b"first") + plain_frame(b"second"))
    first = cutter.next_frame()
    cutter.feed(plain_frame(b"third"))
    assert cutter.next_frame() == b"second"
    assert first == b"first"


@pytest.mark.parametrize("bytes_max", [1, 40, HANDSHAKE_BYTES_MAX, FRAME_BYTES_MAX])
def test_limit_is_inclusive(bytes_max):
    """A length equal to the limit is waited for, one more is refused at its four bytes."""
    cutter = FrameCutter(bytes_max=bytes_max)
    cutter.feed(struct.pack(">I", bytes_max))
    assert cutter.next_frame() is None
    cutter = FrameCutter(bytes_max=bytes_max)
    cutter.feed(struct.pack(">I", bytes_max + 1))
    with pytest.raises(ProtocolViolation) as refused:
        cutter.next_frame()
    assert refused.value.code == "frame_too_long"


@pytest.mark.parametrize("length", [HANDSHAKE_BYTES_MAX + 1, 1 << 31, (1 << 32) - 1])
def test_declared_length_takes_no_memory(length):
    """A huge declared length holds nothing but the bytes that came, and is refused before any of its body comes."""
    cutter = FrameCutter(bytes_max=HANDSHAKE_BYTES_MAX)
    cutter.feed(struct.pack(">I", length))
    with pytest.raises(ProtocolViolation):
        cutter.next_frame()
    assert cutter.buffered == 4


def test_allowed_length_takes_no_memory_either():
    """A frame that was declared and never sent costs nothing."""
    cutter = FrameCutter(bytes_max=FRAME_BYTES_MAX)
    cutter.feed(struct.pack(">I", FRAME_BYTES_MAX) + b"x")
    assert cutter.next_frame() is None
    assert cutter._buffer.__sizeof__() < 1024


def test_empty_frame_is_refused():
    """A length of 0 is refused."""
    cutter = FrameCutter(bytes_max=10)
    cutter.feed(bytes(4))
    with pytest.raises(ProtocolViolation) as refused:
        cutter.next_frame()
    assert refused.value.code == "frame_empty"


def test_refused_stream_stays_refused():
    """After a bad length the stream is never resynchronised, whatever valid frames follow."""
    cutter = FrameCutter(bytes_max=10)
    cutter.feed(struct.pack(">I", 11) + plain_frame(b"valid"))
    for _ in range(3):
        with pytest.raises(ProtocolViolation):
            cutter.next_frame()
        cutter.feed(plain_frame(b"valid"))


def test_frames_before_a_bad_length_are_given_out():
    """What came whole before the bad length still counts."""
    cutter = FrameCutter(bytes_max=10)
    cutter.feed(plain_frame(b"valid") + struct.pack(">I", 11))
    assert cutter.next_frame() == b"valid"
    with pytest.raises(ProtocolViolation):
        cutter.next_frame()


@pytest.mark.parametrize(
    "stranger",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"EHLO example.org\r\n",
        b"\xff\xff\xff\xff",
    ],
)
def test_other_protocols_are_refused_at_four_bytes(stranger):
    """What speaks another protocol is refused at its first four bytes."""
    cutter = FrameCutter(bytes_max=HANDSHAKE_BYTES_MAX)
    cutter.feed(stranger[:4])
    with pytest.raises(ProtocolViolation) as refused:
        cutter.next_frame()
    assert refused.value.code == "frame_too_long"


def test_limit_can_be_raised():
    """After the handshake a longer frame is accepted, also one whose first bytes are already there."""
    cutter = FrameCutter(bytes_max=5)
    cutter.feed(plain_frame(b"x" * 5) + plain_frame(b"y" * 50))
    assert cutter.next_frame() == b"x" * 5
    cutter.bytes_max = 50
    assert cutter.next_frame() == b"y" * 50


def test_largest_batch_fits_a_frame():
    """A batch of the largest block, its fields and its MAC stay below the limit."""
    assert BLOCK_BYTES_MAX + 4096 + MAC_BYTES < FRAME_BYTES_MAX


def test_sealed_golden_vector():
    """The layout of a sealed frame, and what its MAC covers, never change."""
    sealer = FrameSealer(KEY)
    first, second = b"".join(sealer.seal([b"bo", b"dy"])), b"".join(sealer.seal([b"body"]))
    length = struct.pack(">I", 4 + 32)
    assert first == length + b"body" + hmac.new(KEY, struct.pack(">Q", 0) + length + b"body", hashlib.sha256).digest()
    assert second == length + b"body" + hmac.new(KEY, struct.pack(">Q", 1) + length + b"body", hashlib.sha256).digest()
    assert first.hex() == "00000024626f647926a854f0d40d1bf17edfe415989f9e16841132595421ad249d6f112546b79532"


@given(st.lists(st.lists(bodies, min_size=1, max_size=3), max_size=5))
def test_sealed_frames_open_in_order(messages):
    """What is sealed on one side opens on the other, frame by frame, whatever parts it was made of."""
    sealer, opener, cutter = FrameSealer(KEY), FrameOpener(KEY), FrameCutter(bytes_max=FRAME_BYTES_MAX)
    for parts in messages:
        cutter.feed(b"".join(sealer.seal(parts)))
        assert opener.open(cutter.next_frame()) == b"".join(parts)


def test_sealing_copies_no_part():
    """The parts of a frame are handed on as they are: a block is not copied."""
    part = memoryview(bytes(100))
    assert FrameSealer(KEY).seal([b"head", part])[2] is part


def assert_refused(opener, frame):
    with pytest.raises(ProtocolViolation) as refused:
        opener.open(frame)
    assert refused.value.code == "bad_mac"


def test_every_changed_bit_is_refused():
    """A frame with any one bit changed, of body or MAC, is refused."""
    (frame,) = sealed(b"a body")
    for bit in range(8 * len(frame)):
        changed = bytearray(frame)
        changed[bit // 8] ^= 1 << bit % 8
        assert_refused(FrameOpener(KEY), changed)


@pytest.mark.parametrize("length", range(38))
def test_every_truncation_is_refused(length):
    """A frame that is cut off is refused, also one that is shorter than a MAC."""
    (frame,) = sealed(b"a body")
    assert_refused(FrameOpener(KEY), frame[:length])


@pytest.mark.parametrize("changed", [lambda f: f + b"\0", lambda f: b"\0" + f, lambda f: f[:-32] + bytes(32)])
def test_longer_or_unsealed_frame_is_refused(changed):
    """Bytes added, or a MAC of zeros, are refused."""
    (frame,) = sealed(b"a body")
    assert_refused(FrameOpener(KEY), changed(frame))


def test_replay_is_refused():
    """A frame is accepted once: its counter has passed."""
    (frame,) = sealed(b"a body")
    opener = FrameOpener(KEY)
    opener.open(frame)
    assert_refused(opener, frame)


@pytest.mark.parametrize("order", [(1, 0), (0, 2), (0, 2, 1), (1,), (2, 1, 0)])
def test_reordered_or_dropped_frame_is_refused(order):
    """Frames out of their order are refused at the first that is."""
    frames = sealed(b"same", b"same", b"same")
    opener = FrameOpener(KEY)
    due = 0
    while order[due : due + 1] == (due,):
        opener.open(frames[due])
        due += 1
    assert_refused(opener, frames[order[due]])


def test_other_direction_or_connection_is_refused():
    """A frame sealed with another key, as each direction of each connection has its own, is refused."""
    (frame,) = sealed(b"a body", key=b"\7" * 32)
    assert_refused(FrameOpener(KEY), frame)


def test_split_and_spliced_frames_are_refused():
    """Two frames cannot be made one, nor the body of one carried under the MAC of another."""
    first, second = sealed(b"first body", b"other body")
    assert_refused(FrameOpener(KEY), first + second)
    assert_refused(FrameOpener(KEY), second[:-32] + first[-32:])


def test_broken_stream_stays_broken():
    """After one refusal nothing is accepted any more, not even the frame that was due."""
    frames = sealed(b"one", b"two", b"three")
    for order in ((0, 1, 2), (1, 2), (2, 0)):
        opener = FrameOpener(KEY)
        assert_refused(opener, b"\0" * 40)
        for index in order:
            assert_refused(opener, frames[index])


def test_frame_without_body_is_neither_sealed_nor_opened():
    """An empty body has no meaning, so it is our error to seal one and the peer's to send one."""
    with pytest.raises(AssertionError):
        FrameSealer(KEY).seal([])
    mac = hmac.new(KEY, struct.pack(">QI", 0, 32), hashlib.sha256).digest()
    assert_refused(FrameOpener(KEY), mac)


def test_frame_beyond_the_limit_is_our_error():
    """No frame is sealed, and no handshake frame made, that the other side would refuse."""
    with pytest.raises(AssertionError):
        FrameSealer(KEY).seal([bytes(FRAME_BYTES_MAX)])
    with pytest.raises(AssertionError):
        plain_frame(bytes(HANDSHAKE_BYTES_MAX + 1))
    with pytest.raises(AssertionError):
        plain_frame(b"")
