"""What clients and a site say to each other on the site's Unix socket, sans-IO.

| bytes | field                                               |
|-------|-----------------------------------------------------|
| 4     | length of the body, big endian, 1 to 8 MiB          |
| ...   | body: one msgpack array                             |

| message  | array                                                                                              |
|----------|----------------------------------------------------------------------------------------------------|
| Request  | [request_id, method, arguments: map by name]                                                       |
| Response | [request_id, true, result], or [request_id, false, {"code", "message", "errno" or null, "exit"}]   |

A client may have several requests under way; each is answered once, under its id. Only the site's own user can reach
the socket, so there are no keys; sizes and shapes are checked all the same, on both sides.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import msgpack

from claudefs_repl.error import ProtocolViolation
from protocol.frames import Buffer, FrameCutter

CLIENT_FRAME_BYTES_MAX = 8 << 20
"""Twice the longest read, and far above a submit of 1 MiB of data with 1,024 operations around it."""
REQUEST_ID_MAX = (1 << 32) - 1
METHOD_BYTES_MAX = 64
REQUEST_ITEMS_MAX = 4096
"""Of one array in a request: four times the operations of a submit. A decoder takes room for as many items as an array
announces, at each of a thousand levels that arrays may be nested, before one of them is there."""
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Request:
    """A client asks for something."""

    request_id: int
    method: str
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """Why a request was not done.

    Attributes:
        code: a stable word, such as `ENOENT` or `not_writable`.
        message: names the thing, and what to do.
        errno: the POSIX error number where there is one.
        exit: the exit status of a command that fails with this: 1 no, 2 usage, 3 not reachable or not writable.
    """

    code: str
    message: str
    errno: int | None
    exit: int


@dataclass(frozen=True, slots=True)
class Response:
    """A site's answer: a result, unless `error` is there."""

    request_id: int
    result: Any
    error: ErrorInfo | None


def encode_request(request_id: int, method: str, args: Mapping[str, Any]) -> bytes:
    """A whole frame.

    Raises:
        ValueError: it would be longer than a frame may be.
    """
    return _frame([request_id, method, args])


def encode_response(request_id: int, result: Any) -> bytes:
    """A whole frame.

    Raises:
        ValueError: it would be longer than a frame may be.
    """
    return _frame([request_id, True, result])


def encode_error(request_id: int, *, code: str, message: str, errno: int | None = None, exit: int = 1) -> bytes:
    """A whole frame."""
    return _frame([request_id, False, {"code": code, "message": message, "errno": errno, "exit": exit}])


def _frame(message: list[Any]) -> bytes:
    body = msgpack.packb(message)
    assert isinstance(body, bytes)
    if len(body) > CLIENT_FRAME_BYTES_MAX:
        raise ValueError(f"a message has at most {CLIENT_FRAME_BYTES_MAX} bytes, this one {len(body)}")
    return _LENGTH.pack(len(body)) + body


class ClientFrames:
    """Cuts one direction's stream into messages. Owned by the task that receives."""

    def __init__(self, bytes_max: int = CLIENT_FRAME_BYTES_MAX, items_max: int = CLIENT_FRAME_BYTES_MAX) -> None:
        """Take the greatest length of a frame, and of an array in it: a site uses REQUEST_ITEMS_MAX."""
        self._cutter = FrameCutter(bytes_max=bytes_max)
        self._items_max = items_max

    def feed(self, data: Buffer) -> None:
        """Take the next piece of the stream."""
        self._cutter.feed(data)

    def next(self) -> list[Any] | None:
        """The next message's array, for `parse_request` or `parse_response`; None if more bytes are needed.

        Raises:
            ProtocolViolation: `frame_too_long`, `frame_empty`, or `bad_message` if the body is not one msgpack array.
        """
        frame = self._cutter.next_frame()
        if frame is None:
            return None
        try:
            message = msgpack.unpackb(
                frame,
                raw=False,
                strict_map_key=True,
                ext_hook=_refuse_extension,
                max_array_len=min(len(frame), self._items_max),
            )
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise ProtocolViolation("bad_message", f"not msgpack: {error}") from None
        if not isinstance(message, list):
            raise ProtocolViolation("bad_message", "a message is an array")
        return message

    def at_boundary(self) -> bool:
        """Whether the stream may end here without cutting a message."""
        return self._cutter.at_boundary()


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} of {len(data)} bytes")


def parse_request(message: list[Any]) -> Request:
    """A request out of a message's array.

    Raises:
        ProtocolViolation: `bad_message`.
    """
    if len(message) != 3:
        raise ProtocolViolation("bad_message", f"a request has 3 fields, not {len(message)}")
    request_id, method, args = message
    _check_id(request_id)
    if type(method) is not str or not 1 <= len(method) <= METHOD_BYTES_MAX:
        raise ProtocolViolation("bad_message", f"a method is a name of 1 to {METHOD_BYTES_MAX} letters")
    if type(args) is not dict or not all(type(name) is str for name in args):
        raise ProtocolViolation("bad_message", "arguments are a map by name")
    return Request(request_id, method, args)


def parse_response(message: list[Any]) -> Response:
    """A response out of a message's array.

    Raises:
        ProtocolViolation: `bad_message`.
    """
    if len(message) != 3:
        raise ProtocolViolation("bad_message", f"a response has 3 fields, not {len(message)}")
    request_id, ok, result = message
    _check_id(request_id)
    if ok is True:
        return Response(request_id, result, None)
    if ok is not False or type(result) is not dict or set(result) != {"code", "message", "errno", "exit"}:
        raise ProtocolViolation("bad_message", "an error has code, message, errno and exit")
    error = ErrorInfo(**result)
    fits = (
        type(error.code) is str
        and type(error.message) is str
        and (error.errno is None or type(error.errno) is int)
        and type(error.exit) is int
        and 1 <= error.exit <= 3
    )
    if not fits:
        raise ProtocolViolation("bad_message", "an error's code, message, errno or exit is of a wrong type")
    return Response(request_id, None, error)


def _check_id(request_id: object) -> None:
    if type(request_id) is not int or not 0 <= request_id <= REQUEST_ID_MAX:
        raise ProtocolViolation("bad_message", f"a request id is 0 to {REQUEST_ID_MAX}")
