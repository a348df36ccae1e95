"""Trio's socket interface on the simulated network, TCP and within a machine."""

from __future__ import annotations

import errno
import os
import socket as stdlib
from typing import Any

import trio

from tests.simulation.network import GIVE_UP_S, WINDOW_BYTES, End, Listening, Network
from tests.simulation.processes import PROCESS

SYN_RETRY_S = 1.0


class SocketWorld(trio.abc.SocketFactory, trio.abc.HostnameResolver):
    """What Trio asks for sockets and addresses."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def install(self) -> None:
        """From now on the tasks of this run live in the simulated network."""
        trio.socket.set_custom_socket_factory(self)
        trio.socket.set_custom_hostname_resolver(self)

    def socket(self, family: int = stdlib.AF_INET, type: int = stdlib.SOCK_STREAM, proto: int = 0) -> SimSocket:
        """A new socket of the running task's process."""
        assert family in (stdlib.AF_INET, stdlib.AF_UNIX)
        return SimSocket(self._network, family)

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """An address is itself: names are not used."""
        await trio.lowlevel.checkpoint()
        address = host.decode() if isinstance(host, bytes) else host
        return [(stdlib.AF_INET, stdlib.SOCK_STREAM, stdlib.IPPROTO_TCP, "", (address, int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """An address is itself."""
        await trio.lowlevel.checkpoint()
        return sockaddr[0], str(sockaddr[1])


class SimSocket(trio.socket.SocketType):
    """A stream socket."""

    type = stdlib.SOCK_STREAM
    proto = 0

    def __init__(self, network: Network, family: int, end: End | None = None) -> None:
        self._network = network
        self._process = PROCESS.get() if end is None else end.process
        self._process.check()
        self._process.open_sockets += 1
        self._family = family
        self._end = end
        self._local: Any = None
        self._listening: Listening | None = None
        self._is_closed = False

    @property
    def family(self) -> int:
        return self._family

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802 - a name of trio.socket
        return self._end is not None and self._end.is_shut

    def fileno(self) -> int:
        return -1 if self._is_closed else 1

    def setsockopt(self, level: int, option: int, value: Any, length: int | None = None) -> None:
        return

    def getsockopt(self, level: int, option: int, length: int = 0) -> int:
        return int(option == stdlib.SO_ACCEPTCONN and self._listening is not None)

    def getsockname(self) -> Any:
        return self._local if self._end is None else self._end.local

    def getpeername(self) -> Any:
        if self._end is None or self._end.error is not None:
            raise OSError(errno.ENOTCONN, "not connected")
        return self._end.remote

    def _check(self) -> None:
        if self._is_closed:
            raise OSError(errno.EBADF, "closed")
        self._process.check()

    async def bind(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        if self._family == stdlib.AF_INET:
            host, port = address[0], address[1]
            if host != self._process.machine.address:
                raise OSError(errno.EADDRNOTAVAIL, "another machine's address")
            address = (host, port or self._process.machine.next_port())
        if address in self._process.machine.listeners:
            raise OSError(errno.EADDRINUSE, "address in use")
        self._local = address

    def listen(self, backlog: int = 128) -> None:
        self._check()
        self._listening = Listening(self, min(backlog, 4096))
        self._process.machine.listeners[self._local] = self._listening

    async def accept(self) -> tuple[SimSocket, Any]:
        await trio.lowlevel.checkpoint()
        self._check()
        assert self._listening is not None
        while not self._listening.arrived:
            await self._listening.lot.park()
            self._check()
        end = self._listening.arrived.popleft()
        end.process = self._process
        return SimSocket(self._network, self._family, end), end.remote

    async def connect(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        if self._family == stdlib.AF_UNIX:
            listening = self._process.machine.listeners.get(address)
            if listening is None:
                raise FileNotFoundError(errno.ENOENT, "no such socket")
            self._establish(listening, "", address)
            return
        target = self._network.machines.get(address[0])
        if target is None:
            raise OSError(errno.ENETUNREACH, "no such machine")
        listening = await self._knock(target, address)
        if self._local is None:
            self._local = (self._process.machine.address, self._process.machine.next_port())
        self._establish(listening, self._local, address)
        await trio.sleep(self._network.delay_s(target.address, self._process.machine.address))
        self._check()

    async def _knock(self, target: Any, address: Any) -> Listening:
        """Send SYN until something answers."""
        network, here = self._network, self._process.machine
        network.world.trace.note("syn", here.name, target.name)
        give_up_s = trio.current_time() + GIVE_UP_S
        while True:
            there, back = network.path(here.address, target.address), network.path(target.address, here.address)
            if not there.is_cut and not back.is_cut and target.is_powered:
                await trio.sleep(network.delay_s(here.address, target.address))
                self._check()
                listening = target.listeners.get(address)
                if (listening is None or there.is_refusing) and target.is_powered:
                    await trio.sleep(network.delay_s(target.address, here.address))
                    self._check()
                    network.world.trace.note("refused", here.name, target.name)
                    raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
                if listening is not None and len(listening.arrived) < listening.backlog:
                    return listening
            if trio.current_time() + SYN_RETRY_S >= give_up_s:
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            await trio.sleep(SYN_RETRY_S)
            self._check()

    def _establish(self, listening: Listening, local: Any, remote: Any) -> None:
        network, acceptor = self._network, listening.socket._process
        id_ = next(network.ids)
        mine = End(network, self._process, id_, local, remote)
        theirs = End(network, acceptor, id_, remote, local)
        mine.other, theirs.other = theirs, mine
        theirs.is_listener = True
        mine.machine.ends[mine] = None
        theirs.machine.ends[theirs] = None
        self._end = mine
        listening.arrived.append(theirs)
        listening.lot.unpark()
        network.world.trace.note("connected", mine.machine.name, theirs.machine.name, id_)

    async def send(self, data: Any, flags: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        end = self._connected()
        while True:
            self._check()
            self._raise_error(end)
            if end.is_shut:
                raise OSError(errno.EPIPE, "shut down")
            room = WINDOW_BYTES - end.under_way
            if room > 0:
                break
            self._network.full_windows += 1
            await end.writers.park()
        sent = bytes(data[:room])
        end.under_way += len(sent)
        end.send("data", sent)
        return len(sent)

    async def recv(self, bufsize: int, flags: int = 0) -> bytes:
        await trio.lowlevel.checkpoint()
        end = self._connected()
        while True:
            self._check()
            if end.received:
                break
            self._raise_error(end)
            if end.is_ended:
                return b""
            await end.readers.park()
        chunk = end.received.popleft()
        size = min(len(chunk), bufsize)
        if size > 1 and end._path is not None and self._network.rng.random() < 0.05:
            size = self._network.rng.randint(1, size)
        if size < len(chunk):
            end.received.appendleft(chunk[size:])
        end.other.under_way -= size
        end.other.writers.unpark_all()
        return chunk[:size]

    def _connected(self) -> End:
        if self._end is None:
            raise OSError(errno.ENOTCONN, "not connected")
        return self._end

    @staticmethod
    def _raise_error(end: End) -> None:
        if end.error is not None:
            raise OSError(end.error, os.strerror(end.error))

    async def wait_writable(self) -> None:
        end = self._connected()
        while end.error is None and end.under_way >= WINDOW_BYTES and not self._is_closed:
            await end.writers.park()

    def shutdown(self, how: int) -> None:
        self._check()
        end = self._connected()
        self._raise_error(end)
        if how != stdlib.SHUT_RD and not end.is_shut:
            end.is_shut = True
            end.send("fin")

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._process.open_sockets -= 1
        end = self._end
        if not self._process.is_alive:
            return
        if self._listening is not None:
            self._process.machine.listeners.pop(self._local, None)
            self._listening.lot.unpark_all()
            for arrived in self._listening.arrived:
                arrived.forget(is_power_loss=False)
        if end is not None:
            if end.error is None:
                if end.received:
                    end.send("rst")
                elif not end.is_shut:
                    end.is_shut = True
                    end.send("fin")
                end.error = errno.EBADF
            end.machine.ends.pop(end, None)
            end.wake()
