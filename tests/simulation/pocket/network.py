"""A network in memory beneath Trio's sockets: streams that are delayed, held by partitions, reset, and flipped a bit in."""

from __future__ import annotations

import errno
import random
import socket
from collections import deque

import trio

WINDOW_BYTES = 64 * 1024
"""In flight in one direction: a sender waits beyond it, as TCP's does."""
Address = tuple[str, int]


class Network(trio.abc.SocketFactory, trio.abc.HostnameResolver):
    """All connections of a run. One of each run; installed by `install`.

    Attributes:
        blocked: pairs (from, to) of addresses: what is sent that way is held until the pair is taken out.
        delay_s: of each piece, least and most.
        flips: the share of pieces in which a bit is turned.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.blocked: set[tuple[str, str]] = set()
        self.delay_s = (0.0005, 0.005)
        self.flips = 0.0
        self.flipped = 0
        self.listeners: dict[Address, PocketSocket] = {}
        self.lines: list[Line] = []
        self._next_port = 40_000

    def install(self) -> None:
        """Have Trio's sockets of this run come from here."""
        trio.socket.set_custom_socket_factory(self)
        trio.socket.set_custom_hostname_resolver(self)

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):
        await trio.lowlevel.checkpoint()
        name = host.decode() if isinstance(host, bytes) else host
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (name, int(port)))]

    async def getnameinfo(self, sockaddr, flags):
        raise OSError(errno.EOPNOTSUPP, "no names here")

    def socket(self, family=socket.AF_INET, type=socket.SOCK_STREAM, proto=0):
        return PocketSocket(self)

    def port(self) -> int:
        """A port that nobody has."""
        self._next_port += 1
        return self._next_port

    def wake(self) -> None:
        """Look again at every line: what is blocked has changed."""
        self.lines = [line for line in self.lines if not line.is_over]
        for line in self.lines:
            line.wake()

    def cut_host(self, address: str, *, is_power_loss: bool) -> None:
        """A host is gone: its listeners and connections with it; after a loss of power nobody is told."""
        for place in [place for place in self.listeners if place[0] == address]:
            del self.listeners[place]
        for line in self.lines:
            if line.source == address and not is_power_loss:
                line.fail(errno.ECONNRESET)
            elif line.source == address:
                line.is_dark = True
            elif line.target == address:
                line.fail(errno.ECONNRESET)
        self.wake()

    def reset(self, one: str, other: str) -> None:
        """Every connection between two hosts is reset."""
        for line in self.lines:
            if {line.source, line.target} == {one, other}:
                line.fail(errno.ECONNRESET)


class Line:
    """One direction of a connection.

    Attributes:
        is_dark: the source lost power: nothing comes any more, and no end.
    """

    def __init__(self, net: Network, source: str, target: str) -> None:
        self.net, self.source, self.target = net, source, target
        self.is_dark = self.is_over = False
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._last_s = 0.0
        self._is_ended = False
        self._error: int | None = None
        self._changed = trio.Event()
        net.lines.append(self)

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def fail(self, error: int) -> None:
        """Both ends get an error; what is under way is lost."""
        self._error = self._error or error
        self._pieces.clear()
        self.is_over = True
        self.wake()

    def end(self) -> None:
        """Nothing more will be sent."""
        self._is_ended = True
        self.wake()

    async def send(self, data: bytes) -> int:
        while self._held >= WINDOW_BYTES and self._error is None:
            await self._changed.wait()
        if self._error is not None:
            raise OSError(self._error, "the connection broke")
        piece = bytes(data[: WINDOW_BYTES - self._held])
        rng = self.net.rng
        if self.net.flips and rng.random() < self.net.flips:
            altered = bytearray(piece)
            altered[rng.randrange(len(altered))] ^= 1 << rng.randrange(8)
            piece = bytes(altered)
            self.net.flipped += 1
        self._last_s = max(self._last_s, trio.current_time() + rng.uniform(*self.net.delay_s))
        self._pieces.append((self._last_s, piece))
        self._held += len(piece)
        self.wake()
        return len(piece)

    async def receive(self, most: int) -> bytes:
        while True:
            if self._error is not None:
                raise OSError(self._error, "the connection broke")
            is_held = self.is_dark or (self.source, self.target) in self.net.blocked
            due_s = self._pieces[0][0] if self._pieces else float("inf")
            if not is_held and due_s <= trio.current_time():
                return self._take(most)
            if not is_held and self._is_ended and not self._pieces:
                return b""
            changed = self._changed
            with trio.move_on_at(float("inf") if is_held else due_s):
                await changed.wait()

    def _take(self, most: int) -> bytes:
        due_s, piece = self._pieces.popleft()
        if len(piece) > most:
            self._pieces.appendleft((due_s, piece[most:]))
            piece = piece[:most]
        self._held -= len(piece)
        self.wake()
        return piece


class PocketSocket(trio.socket.SocketType):
    """One socket of the network in memory."""

    family, type, proto = socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    did_shutdown_SHUT_WR = False  # noqa: N815 - the name that Trio looks for

    def __init__(self, net: Network) -> None:
        self._net = net
        self._here: Address = ("", 0)
        self._there: Address | None = None
        self._out: Line | None = None
        self._in: Line | None = None
        self._waiting: deque[PocketSocket] | None = None
        self._arrived = trio.Event()
        self._is_closed = False

    def fileno(self) -> int:
        return -1

    def setsockopt(self, *_):
        return None

    def getsockopt(self, level, option, buflen=None):
        return int(self._waiting is not None) if option == socket.SO_ACCEPTCONN else 0

    def getsockname(self):
        return self._here

    def getpeername(self):
        if self._there is None:
            raise OSError(errno.ENOTCONN, "not connected")
        return self._there

    async def bind(self, address):
        await trio.lowlevel.checkpoint()
        self._here = (address[0], address[1] or self._net.port())

    def listen(self, backlog=None):
        if self._here in self._net.listeners:
            raise OSError(errno.EADDRINUSE, "in use")
        self._waiting = deque()
        self._net.listeners[self._here] = self

    async def accept(self):
        while not self._waiting:
            if self._is_closed:
                raise trio.ClosedResourceError
            await self._arrived.wait()
        await trio.lowlevel.checkpoint()
        accepted = self._waiting.popleft()
        if not self._waiting:
            self._arrived = trio.Event()
        return accepted, accepted.getpeername()

    async def connect(self, address):
        net, here = self._net, self._here[0]
        await trio.sleep(net.rng.uniform(*net.delay_s))
        while (here, address[0]) in net.blocked or (address[0], here) in net.blocked:
            await trio.sleep(0.2)
        listener = net.listeners.get(tuple(address))
        if listener is None:
            raise OSError(errno.ECONNREFUSED, "refused")
        there = PocketSocket(net)
        there._here, there._there, self._there = tuple(address), self._here, tuple(address)
        self._out = there._in = Line(net, here, address[0])
        self._in = there._out = Line(net, address[0], here)
        listener._waiting.append(there)
        listener._arrived.set()

    async def send(self, data, flags=0):
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            raise trio.ClosedResourceError
        return await self._out.send(data)

    async def recv(self, bufsize, flags=0):
        await trio.lowlevel.checkpoint()
        if self._is_closed:
            raise trio.ClosedResourceError
        data = await self._in.receive(bufsize)
        if self._is_closed:
            raise trio.ClosedResourceError
        return data

    def shutdown(self, how):
        self.did_shutdown_SHUT_WR = True
        self._out.end()

    def close(self):
        if self._is_closed:
            return
        self._is_closed = True
        if self._net.listeners.get(self._here) is self:
            del self._net.listeners[self._here]
        self._arrived.set()
        if self._out is not None:
            self._out.end()
            self._out.is_over = True
            # Whoever goes on sending to a closed end learns of it.
            self._in.fail(errno.EPIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
