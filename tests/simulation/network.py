"""The simulated network: streams between machines, with latency, rate and faults for each direction of each link."""

from __future__ import annotations

import errno
import itertools
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from claudefs_repl.error import ProtocolViolation
from protocol.frames import LENGTH_BYTES
from protocol.handshake_layout import Kind, Reader, Role, read_hello, read_versions
from tests.simulation.world import World

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.processes import Process
    from tests.simulation.sockets import SimSocket

WINDOW_BYTES = 64 * 1024
"""Bytes of one direction that are sent and not read yet."""
GIVE_UP_S = 12.0
"""A kernel gives a connection up when what it sent is not acknowledged for so long."""
RETRANSMIT_S = (0.05, 0.6)
LOCAL_S = 0.00002
"""A socket within a machine."""


@dataclass(slots=True)
class Path:
    """One direction between two machines.

    Attributes:
        latency_s: the least and the most that a segment takes.
        bytes_per_s: what fits through.
        cuts: while there is any nothing passes; what is sent is kept by the sender, as TCP does.
        is_refusing: connections are refused.
        cut_after_bytes: when so many more bytes have passed, their connection is reset.
        flips: so many of the next segments get a bit turned.
        flips_pongs: only of those that answer a probe, which are few among all.
    """

    latency_s: tuple[float, float]
    bytes_per_s: float
    cuts: int = 0
    is_refusing: bool = False
    cut_after_bytes: int | None = None
    flips: int = 0
    flips_pongs: bool = False

    @property
    def is_cut(self) -> bool:
        """Whether something cuts it."""
        return self.cuts > 0


@dataclass(frozen=True, slots=True)
class Flip:
    """A bit of a segment was turned on its way.

    Attributes:
        end: where it arrived.
        is_first: whether it was the first segment of its direction: of the listener's a part of the handshake.
    """

    time_us: int
    end: End
    is_first: bool


class Network:
    """All machines and what is between them.

    Attributes:
        flips: turned bits that may be noticed: not those in the length of a frame, for which more is waited, nor what comes
            to an end that is closed.
    """

    def __init__(self, world: World, latency_s: tuple[float, float], bytes_per_s: float) -> None:
        self.world = world
        self.rng = world.rng("network")
        self.machines: dict[str, Machine] = {}
        self.ids = itertools.count(1)
        self.full_windows = 0
        self.flips: list[Flip] = []
        self._normal = (latency_s, bytes_per_s)
        self._paths: dict[tuple[str, str], Path] = {}
        self._waiting: list[End] = []

    def path(self, source: str, target: str) -> Path:
        """The direction from one machine to another, by their addresses."""
        found = self._paths.get((source, target))
        if found is None:
            found = self._paths[source, target] = Path(*self._normal)
        return found

    def heal(self) -> None:
        """Every path is as it was at the begin."""
        for path in self._paths.values():
            path.latency_s, path.bytes_per_s = self._normal
            path.cuts, path.is_refusing = 0, False
            path.cut_after_bytes, path.flips = None, 0
        self.flush()

    def flush(self) -> None:
        """Send again what waits for a path that is open now."""
        waiting, self._waiting = self._waiting, []
        for end in waiting:
            end.flush()

    def delay_s(self, source: str, target: str) -> float:
        """How long one segment takes."""
        return LOCAL_S if source == target else self.rng.uniform(*self.path(source, target).latency_s)

    def wait(self, end: End) -> None:
        """An end has something that cannot be sent now."""
        self._waiting.append(end)

    def connections(self, source: Machine, target: Machine) -> list[End]:
        """The ends at `source` of what connects two machines."""
        return [end for end in source.ends if end.other.machine is target and source is not target]


class End:
    """One side of an established connection."""

    def __init__(self, network: Network, process: Process, id_: int, local: object, remote: object) -> None:
        self.network = network
        self.machine = process.machine
        self.process = process
        self.id = id_
        self.local, self.remote = local, remote
        self.is_listener = False
        self.is_probe = False
        self.other: End = self
        self.received: deque[bytes] = deque()
        self.is_ended = False
        self.is_shut = False
        self.is_silent = False
        self.error: int | None = None
        self.readers = trio.lowlevel.ParkingLot()
        self.writers = trio.lowlevel.ParkingLot()
        self.under_way = 0
        self._arrived = 0
        self._arrives_s = 0.0
        self._free_s = 0.0
        self._held: deque[tuple[str, bytes]] = deque()
        self._held_since_s: float | None = None

    @property
    def _path(self) -> Path | None:
        here, there = self.machine.address, self.other.machine.address
        return None if here == there else self.network.path(here, there)

    def wake(self) -> None:
        """Whoever waits looks again."""
        self.readers.unpark_all()
        self.writers.unpark_all()

    def fail(self, error: int) -> None:
        """The connection is over at this end; what has arrived can still be read, as Linux lets it."""
        if self.error is None:
            self.error = error
            self.machine.ends.pop(self, None)
            self.wake()

    def send(self, kind: str, data: bytes = b"") -> None:
        """Send data, `fin` or `rst` to the other end."""
        path = self._path
        if self._held or (path is not None and (path.is_cut or self.is_silent)):
            self._hold(kind, data)
            return
        self._emit(path, kind, data)

    def _emit(self, path: Path | None, kind: str, data: bytes) -> None:
        now_s = self.network.world.now_s()
        if path is None:
            arrives_s = now_s + LOCAL_S
        else:
            self._free_s = max(now_s, self._free_s) + len(data) / path.bytes_per_s
            arrives_s = self._free_s + self.network.rng.uniform(*path.latency_s)
        self._arrives_s = max(arrives_s, self._arrives_s)
        self.network.world.at(self._arrives_s, self._arrive, kind, data)

    def _hold(self, kind: str, data: bytes) -> None:
        if not self._held:
            self._held_since_s = self.network.world.now_s()
            self.network.wait(self)
            self.network.world.at(self._held_since_s + GIVE_UP_S, self._give_up, self._held_since_s)
        self._held.append((kind, data))

    def _give_up(self, since_s: float) -> None:
        if self._held_since_s == since_s and self._held and self.error is None:
            self.network.world.trace.note("timed_out", self.id)
            self.fail(errno.ETIMEDOUT)

    def flush(self) -> None:
        """The path may be open again: what was kept is sent, some time later as TCP does."""
        path = self._path
        if path is not None and (path.is_cut or self.is_silent):
            self.network.wait(self)
            return
        held, self._held, self._held_since_s = self._held, deque(), None
        self._arrives_s = max(self._arrives_s, self.network.world.now_s() + self.network.rng.uniform(*RETRANSMIT_S))
        for kind, data in held:
            if self.error in (None, errno.ECONNABORTED):
                self._emit(path, kind, data)

    def _arrive(self, kind: str, data: bytes) -> None:
        network, other, path = self.network, self.other, self._path
        if path is not None and (path.is_cut or self.is_silent):
            self._hold(kind, data)
            return
        network.world.trace.note(kind, self.machine.name, other.machine.name, self.id, len(data))
        if path is not None and data:
            if not self._arrived and not self.is_listener:
                self.is_probe = other.is_probe = _begins_probe(data)
            data = self._damage(path, data)
            self._arrived += 1
            other.machine.note_segment()
        if kind == "rst":
            other.fail(errno.ECONNRESET)
        elif other.error is not None:
            # A machine that runs answers for a process that is gone; a dark one says nothing.
            if other.machine.is_powered and kind == "data" and self.error is None:
                network.world.at(
                    network.world.now_s() + network.delay_s(other.machine.address, self.machine.address),
                    self.fail,
                    errno.ECONNRESET,
                )
        elif kind == "data" and data:
            other.received.append(data)
            other.readers.unpark_all()
        else:
            other.is_ended = True
            other.readers.unpark_all()

    def _damage(self, path: Path, data: bytes) -> bytes:
        """What the faults of a path leave of a segment."""
        if path.flips and (not path.flips_pongs or (self.is_probe and self.is_listener)):
            path.flips -= 1
            turned = bytearray(data)
            at = self.network.rng.randrange(len(data))
            turned[at] ^= 1 << self.network.rng.randrange(8)
            data = bytes(turned)
            if at >= LENGTH_BYTES and self.other.error is None:
                self.network.flips.append(Flip(self.network.world.now_us(), self.other, self._arrived == 0))
        if path.cut_after_bytes is not None:
            path.cut_after_bytes -= len(data)
            if path.cut_after_bytes <= 0:
                data = data[: len(data) + path.cut_after_bytes]
                path.cut_after_bytes = None
                self.network.world.at(self.network.world.now_s(), self.reset)
        return data

    def reset(self) -> None:
        """Something between the two forgets the connection and tells both."""
        self.network.world.trace.note("reset", self.id)
        self.fail(errno.ECONNRESET)
        self.other.fail(errno.ECONNRESET)

    def forget(self, *, is_power_loss: bool) -> None:
        """The process is gone. Its kernel says so, unless that is gone as well."""
        if self.error is None:
            self.error = errno.ECONNABORTED
            if not is_power_loss:
                self.send("rst" if self.received else "fin")
        self.machine.ends.pop(self, None)
        self.wake()


def _begins_probe(data: bytes) -> bool:
    """Whether the first segment of who dialled is the HELLO of a probe."""
    reader = Reader(data[LENGTH_BYTES:])
    try:
        if reader.kind() is not Kind.HELLO:
            return False
        read_versions(reader)
        return read_hello(reader).role is Role.PROBE
    except ProtocolViolation:
        return False


class Listening:
    """A socket that listens."""

    def __init__(self, socket: SimSocket, backlog: int) -> None:
        self.socket = socket
        self.backlog = backlog
        self.arrived: deque[End] = deque()
        self.lot = trio.lowlevel.ParkingLot()
