"""A TCP proxy between a dialling site and a listening one, which does to their connections what two wires say.

It listens at the listener's address, on a port that only this dialler's configuration has, and dials on from the
dialler's address: so both see the other's configured address, and limits that go by address mean what they mean without it.
It needs no privileges.

What TCP makes impossible does not happen: no byte in the middle of a connection is left out. A cut wire holds bytes back
until it is healed or the connection is gone.
"""

from __future__ import annotations

import enum
import select
import socket
import struct
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import NoReturn

import trio

from nodes.chaos.wire import Quota, Wire
from nodes.wakeup import Wakeup

READ_BYTES = 64 * 1024
RECEIVE_BUFFER_BYTES = 256 * 1024
"""What the kernel holds of a connection that is not read: little, so that the sender feels it soon."""
QUEUED_BYTES_MAX = 8 << 20
"""On their way in one direction of one connection: 100 MB/s with a delay of 80 ms; then the proxy stops reading."""
PACED_S = 0.05
"""With a limited rate, a run of bytes is what passes in this time."""
GONE_POLL_S = 0.2
_LINGER_NONE = struct.pack("ii", 1, 0)
_NETWORK_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(slots=True)
class ProxyCounters:
    """What a proxy has done.

    Attributes:
        unreachable: connections for which the listener could not be reached.
    """

    connections: int = 0
    resets: int = 0
    half_opened: int = 0
    unreachable: int = 0


class _End(enum.Enum):
    """How a connection ends: in order, by a reset on both sides, or with the dialler left alone."""

    CLOSED = enum.auto()
    RESET = enum.auto()
    HALF_OPEN = enum.auto()


class _Ended(Exception):
    """A direction has found that its connection ends."""

    def __init__(self, how: _End) -> None:
        super().__init__(how)
        self.how = how


@dataclass(slots=True, eq=False)
class _Connection:
    """One proxied connection. Owned by the task that serves it.

    Attributes:
        scope: cancelled when somebody ends it from outside.
    """

    near: trio.SocketStream
    far: trio.SocketStream
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    end: _End = _End.CLOSED

    def finish(self, how: _End) -> None:
        """End it from outside."""
        self.end = how
        self.scope.cancel()


class FaultProxy:
    """The connections that one site dials to one other.

    Attributes:
        counters: what it has done so far.
    """

    def __init__(
        self,
        *,
        listen: tuple[str, int],
        target: tuple[str, int],
        local_address: str,
        forward: Wire,
        backward: Wire,
    ) -> None:
        """Nothing is opened yet.

        Args:
            listen: address and port where the dialler looks for its peer.
            target: where the peer really is.
            local_address: the dialler's, from which the proxy dials on.
            forward: what the dialler sends, and its dialling.
            backward: what comes back.
        """
        self._listen = listen
        self._target = target
        self._local_address = local_address
        self._forward = forward
        self._backward = backward
        self._connections: set[_Connection] = set()
        self.counters = ProxyCounters()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Serve until cancelled. It says started when whoever dials is served."""
        host, port = self._listen
        is_started = False
        async with trio.open_nursery() as connections:
            while True:
                await self._forward.until_refuses(False)
                listeners = await trio.open_tcp_listeners(port, host=host)
                # Connections are not the listener's: they stay up while new ones are refused.
                serve = partial(trio.serve_listeners, self._serve, listeners, handler_nursery=connections)
                async with trio.open_nursery() as listening:
                    await listening.start(serve)
                    if not is_started:
                        is_started = True
                        task_status.started()
                    await self._forward.until_refuses(True)
                    listening.cancel_scope.cancel()

    @property
    def live(self) -> int:
        """Connections that are up, or whose dialler was left alone."""
        return len(self._connections)

    def reset(self) -> int:
        """End every connection with a reset on both sides, with all that is on its way; how many there were."""
        return self._finish(_End.RESET)

    def half_open(self) -> int:
        """Leave every dialler alone with a connection that its peer has lost; how many there were."""
        return self._finish(_End.HALF_OPEN)

    def _finish(self, how: _End) -> int:
        # A dialler that was left alone can still be reset.
        found = [each for each in self._connections if each.end is _End.CLOSED or how is _End.RESET]
        for connection in found:
            connection.finish(how)
        return len(found)

    async def _serve(self, near: trio.SocketStream) -> None:
        self.counters.connections += 1
        try:
            if not await self._until_both_pass(near):
                return
            try:
                far = await trio.open_tcp_stream(*self._target, local_address=self._local_address)
            except OSError:
                self.counters.unreachable += 1
                _abort(near)
                return
            await self._carry(_Connection(near, far))
        finally:
            await trio.aclose_forcefully(near)

    async def _until_both_pass(self, near: trio.SocketStream) -> bool:
        """Wait while either wire is cut, as a dialler does; whether it is still there then."""
        while self._forward.is_cut or self._backward.is_cut:
            with trio.move_on_after(GONE_POLL_S):
                await (self._forward if self._forward.is_cut else self._backward).until_passable()
            if _is_gone(near):
                return False
        return True

    async def _carry(self, connection: _Connection) -> None:
        near, far = connection.near, connection.far
        for stream in (near, far):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._connections.add(connection)
        try:
            with connection.scope:
                try:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_Direction(near, far, self._forward, self._backward).run)
                        nursery.start_soon(_Direction(far, near, self._backward, self._forward).run)
                except* _Ended as group:
                    connection.end = _how(group)
            match connection.end:
                case _End.RESET:
                    self.counters.resets += 1
                    _abort(near)
                    _abort(far)
                case _End.HALF_OPEN:
                    self.counters.half_opened += 1
                    _abort(far)
                    await self._leave_alone(connection)
                case _End.CLOSED:
                    pass
        finally:
            self._connections.discard(connection)
            await trio.aclose_forcefully(far)

    async def _leave_alone(self, connection: _Connection) -> None:
        """The dialler's side stays open and silent, until it gives up or is reset."""
        connection.scope = trio.CancelScope()
        with connection.scope:
            while not _is_gone(connection.near):
                await trio.sleep(GONE_POLL_S)
        if connection.end is _End.RESET:
            _abort(connection.near)


class _Direction:
    """What goes from one side of a connection to the other. Two tasks: one reads, one delivers when it is due."""

    def __init__(self, source: trio.SocketStream, sink: trio.SocketStream, wire: Wire, back: Wire) -> None:
        self._source = source
        self._sink = sink
        self._wire = wire
        self._back = back
        self._queue: deque[tuple[float, bytes]] = deque()
        self._queued_bytes = 0
        self._moved = Wakeup()

    async def run(self) -> None:
        """Carry until the source's end has been told to the sink.

        Raises:
            _Ended: the connection ends for both directions.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read)
            nursery.start_soon(self._deliver)

    async def _read(self) -> None:
        last_due_s = 0.0
        while True:
            await self._wire.until_read()
            while self._queued_bytes > QUEUED_BYTES_MAX:
                await self._moved.wait()
            rate = self._wire.bytes_per_s
            wanted = READ_BYTES if rate is None else max(1, min(READ_BYTES, int(rate * PACED_S)))
            try:
                data = await self._source.receive_some(wanted)
            except _NETWORK_ERRORS:
                await self._wire.until_passable()
                raise _Ended(_End.RESET) from None
            if data:
                await self._wire.until_read()  # it may have become unread while this waited for the bytes
            last_due_s = max(last_due_s, trio.current_time() + self._wire.draw_delay_s())
            self._queue.append((last_due_s, bytes(data)))
            self._queued_bytes += len(data)
            self._moved.notify()
            if not data:
                return

    async def _deliver(self) -> None:
        quota = Quota(self._wire)
        free_at_s = 0.0
        while True:
            while not self._queue:
                await self._moved.wait()
            due_s, data = self._queue.popleft()
            await trio.sleep_until(due_s)
            rate = self._wire.bytes_per_s
            if rate is not None:
                free_at_s = max(free_at_s, trio.current_time()) + len(data) / rate
                await trio.sleep_until(free_at_s)
            await self._wire.until_passable()
            try:
                if not data:
                    await self._sink.send_eof()
                    return
                await self._pass(data, quota)
            except _NETWORK_ERRORS:
                await self._back.until_passable()
                raise _Ended(_End.RESET) from None
            self._queued_bytes -= len(data)
            self._moved.notify()

    async def _pass(self, data: bytes, quota: Quota) -> None:
        allowed, ending = quota.take(len(data))
        if allowed:
            await self._sink.send_all(self._wire.damage(data[:allowed]))
            self._wire.counters.bytes_passed += allowed
        if ending is not None:
            self._wire.counters.truncated += 1
            raise _Ended(_End.RESET if ending.truncate_resets else _End.CLOSED)


def _how(group: BaseExceptionGroup[_Ended]) -> _End:
    """How a connection ends when both directions have found an end: a reset is not taken back."""
    leaves: list[BaseException] = [group]
    ends = []
    while leaves:
        error = leaves.pop()
        if isinstance(error, BaseExceptionGroup):
            leaves += error.exceptions
        elif isinstance(error, _Ended):
            ends.append(error.how)
    return _End.RESET if _End.RESET in ends else _End.CLOSED


def _is_gone(stream: trio.SocketStream) -> bool:
    """Whether the other side has closed, also behind bytes that nobody reads."""
    if stream.socket.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(stream.socket.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _abort(stream: trio.SocketStream) -> None:
    """End a connection with a reset."""
    with suppress(OSError):
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
    stream.socket.close()
