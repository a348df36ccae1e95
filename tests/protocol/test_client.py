from __future__ import annotations

import struct
from contextlib import suppress
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.error import ProtocolViolation
from protocol.client import (
    CLIENT_FRAME_BYTES_MAX,
    REQUEST_ID_MAX,
    ClientFrames,
    ErrorInfo,
    Request,
    Response,
    encode_error,
    encode_request,
    encode_response,
    parse_request,
    parse_response,
)

ids = st.integers(0, REQUEST_ID_MAX)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=50) | st.text(max_size=50)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=10), values, max_size=3)


def frame(message: Any) -> bytes:
    body = msgpack.packb(message)
    return struct.pack(">I", len(body)) + body


def only(stream: bytes) -> list[Any]:
    frames = ClientFrames()
    frames.feed(stream)
    message = frames.next()
    assert message is not None
    assert frames.at_boundary()
    return message


def test_a_request_has_known_bytes() -> None:
    """The bytes of a request are those that are written down: a golden vector."""
    assert encode_request(7, "stat", {"inode": 1}) == bytes.fromhex("0000000f 93 07 a473746174 81 a5696e6f6465 01")


def test_a_response_has_known_bytes() -> None:
    """The bytes of both kinds of response are those that are written down: golden vectors."""
    assert encode_response(7, b"\x00\xff") == bytes.fromhex("00000007 93 07 c3 c4 02 00ff")
    assert encode_error(7, code="EIO", message="no", errno=5, exit=1) == bytes.fromhex(
        "00000025 93 07 c2 84 a4636f6465 a345494f a76d657373616765 a26e6f a56572726e6f 05 a465786974 01"
    )


@given(ids, st.text(min_size=1, max_size=64), arguments)
def test_requests_come_out_as_they_went_in(request_id: int, method: str, args: dict[str, Any]) -> None:
    """Encoding and parsing a request gives it back."""
    assert parse_request(only(encode_request(request_id, method, args))) == Request(request_id, method, args)


@given(ids, values)
def test_results_come_out_as_they_went_in(request_id: int, result: Any) -> None:
    """Encoding and parsing a result gives it back."""
    assert parse_response(only(encode_response(request_id, result))) == Response(request_id, result, None)


@given(ids, st.text(max_size=20), st.text(max_size=20), st.none() | st.integers(0, 200), st.integers(1, 3))
def test_errors_come_out_as_they_went_in(request_id: int, code: str, message: str, errno: int | None, end: int) -> None:
    """Encoding and parsing an error gives it back."""
    encoded = encode_error(request_id, code=code, message=message, errno=errno, exit=end)
    assert parse_response(only(encoded)) == Response(request_id, None, ErrorInfo(code, message, errno, end))


@given(
    st.lists(st.dictionaries(st.just("k"), st.binary(max_size=50)), max_size=5),
    st.lists(st.integers(1, 40), min_size=1),
)
def test_a_stream_may_arrive_in_any_pieces(many: list[dict[str, Any]], sizes: list[int]) -> None:
    """The same messages come out however the stream is cut."""
    stream = b"".join(encode_request(i, "m", args) for i, args in enumerate(many))
    frames, found, at, turn = ClientFrames(), [], 0, 0
    while at < len(stream):
        size = sizes[turn % len(sizes)]
        frames.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
        while (message := frames.next()) is not None:
            found.append(parse_request(message).args)
    assert found == many
    assert frames.at_boundary()


def test_a_length_beyond_the_limit_is_refused_at_once() -> None:
    """No memory is taken for a frame that is too long."""
    frames = ClientFrames()
    frames.feed(struct.pack(">I", CLIENT_FRAME_BYTES_MAX + 1))
    with pytest.raises(ProtocolViolation, match="frame_too_long"):
        frames.next()


def test_a_message_that_is_too_long_is_not_made() -> None:
    """A sender learns from its own side that a message does not fit."""
    with pytest.raises(ValueError, match="at most"):
        encode_response(1, bytes(CLIENT_FRAME_BYTES_MAX))


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        b"\x93\x01",
        b"\x01",
        b"\x93\x01\xa1a\x80\x00",
        b"\x91" * 100_000 + b"\xc0",
        b"\xdd\xff\xff\xff\xff",
        b"\x93\x01\xa1\xff\x80",
        b"\x93\x01\xa1a\x81\xa1a\xc7\x01\x05\x00",
        b"\x93\x01\xa1a\x81\x01\x02",
    ],
)
def test_what_is_not_one_msgpack_array_is_refused(body: bytes) -> None:
    """Broken, trailing, nested, huge, extended or otherwise wrong bytes are a violation and nothing else."""
    frames = ClientFrames()
    frames.feed(struct.pack(">I", len(body)) + body)
    with pytest.raises(ProtocolViolation, match="bad_message"):
        frames.next()


@given(st.lists(values, max_size=4))
def test_any_array_is_parsed_or_refused(message: list[Any]) -> None:
    """No array makes a parser raise anything but a violation."""
    for parse in (parse_request, parse_response):
        with suppress(ProtocolViolation):
            parse(only(frame(message)))


@pytest.mark.parametrize(
    "message",
    [
        [],
        [1, "m"],
        [1, "m", {}, 0],
        [True, "m", {}],
        [-1, "m", {}],
        [REQUEST_ID_MAX + 1, "m", {}],
        [1.0, "m", {}],
        [1, "", {}],
        [1, b"m", {}],
        [1, "m" * 65, {}],
        [1, "m", []],
        [1, "m", {b"k": 1}],
    ],
)
def test_a_request_of_a_wrong_shape_is_refused(message: list[Any]) -> None:
    """Ids, methods and arguments have one type each, and a bool is no number."""
    with pytest.raises(ProtocolViolation, match="bad_message"):
        parse_request(only(frame(message)))


ERROR = {"code": "EIO", "message": "m", "errno": None, "exit": 1}


@pytest.mark.parametrize(
    "message",
    [
        [1, True],
        [1, 1, None],
        [1, None, None],
        [True, True, None],
        [1, False, None],
        [1, False, {}],
        [1, False, {**ERROR, "more": 1}],
        [1, False, {**ERROR, "code": 5}],
        [1, False, {**ERROR, "message": b"m"}],
        [1, False, {**ERROR, "errno": True}],
        [1, False, {**ERROR, "exit": 0}],
        [1, False, {**ERROR, "exit": 4}],
        [1, False, {**ERROR, "exit": None}],
    ],
)
def test_a_response_of_a_wrong_shape_is_refused(message: list[Any]) -> None:
    """An answer is a result or a whole error."""
    with pytest.raises(ProtocolViolation, match="bad_message"):
        parse_response(only(frame(message)))
