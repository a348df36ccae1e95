"""A client of a site on this machine: requests over the site's Unix socket, several under way at once.

There is no background task: whoever waits for an answer reads from the socket, for itself and for the others who wait.
So a client needs no nursery, and an exception in the code that uses it stays the exception that it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any

import trio

from claudefs_repl.error import CallerError, ProtocolViolation, WorldError
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.runtime import is_local_address, site_pid, socket_candidates
from protocol.client import ClientFrames, ErrorInfo, encode_request, parse_response

WINDOW = 16
"""Requests under way on one connection: enough to keep a group commit busy, 16 MiB at most of a large file's data."""
HELLO_TIMEOUT_S = 5.0
"""A site that has not said who it is by then is paused or stuck."""
_RECEIVE_BYTES = 1 << 18


class SiteUnreachable(WorldError):
    """A site does not answer on this machine; the message says why and what to do."""

    exit_code = 3


class SiteElsewhere(SiteUnreachable):
    """A site runs on another machine, where the command has to be given.

    Attributes:
        place: the site and its address, in words.
        address: that machine's.
        config: the configuration's full path here; it is the likeliest one there.
    """

    def __init__(self, site: SiteConfig, cluster: ClusterConfig) -> None:
        self.place = f"site {site.name} runs elsewhere (address {site.address})"
        self.address = site.address
        self.config = str(cluster.path)
        super().__init__(f"{self.place}; use the command there: ssh {site.address} claudefs-repl -c {cluster.path} ...")


class ClientError(CallerError):
    """A site refused a request.

    Attributes:
        code: a stable word, such as `ENOENT` or `not_writable`.
        message: what the site said.
        errno: the POSIX error number where there is one.
        exit_code: the exit status for a command that ends because of it.
    """

    def __init__(self, code: str, message: str, errno: int | None = None, exit_code: int = 1) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.errno = errno
        self.exit_code = exit_code


class Pending:
    """A request under way. Await it for its result; it may be awaited more than once."""

    def __init__(self, client: SiteClient) -> None:
        self._client = client
        self._result: Any = None
        self._error: ErrorInfo | None = None
        self.done = False

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.result().__await__()

    async def result(self) -> Any:
        """What the site answered.

        Raises:
            ClientError: the site refused it.
            SiteUnreachable: the connection broke first; whether it was done is not known.
        """
        await self._client.wait_for(self)
        if self._error is not None:
            raise ClientError(self._error.code, self._error.message, self._error.errno, self._error.exit)
        return self._result

    def settle(self, result: Any, error: ErrorInfo | None) -> None:
        """Take the answer. Called by the client that made this."""
        self._result, self._error, self.done = result, error, True


class SiteClient:
    """A connection to one site. Any task may use it; requests are sent in the order in which `send` was called.

    Attributes:
        name: the site's name.
        hello: what the site told about itself: site, site_id, pid, cluster_id, mode, version.
    """

    def __init__(self, stream: trio.abc.Stream, name: str, *, window: int = WINDOW) -> None:
        self.name = name
        self.hello: dict[str, Any] = {}
        self._stream = stream
        self._frames = ClientFrames()
        self._window = window
        self._pending: dict[int, Pending] = {}
        self._next_id = 0
        self._sending = trio.Lock()
        self._reading = trio.Lock()
        self._broken: str | None = None

    async def call(self, method: str, /, **args: Any) -> Any:
        """Send a request and wait for its result. Raises what `Pending.result` raises."""
        return await (await self.send(method, **args)).result()

    async def send(self, method: str, /, **args: Any) -> Pending:
        """Send a request without waiting for its answer; waits while too many are under way.

        If cancelled, the request may have been sent; in the middle of it, the connection is of no more use.

        Raises:
            SiteUnreachable: the connection is broken.
        """
        async with self._sending:
            while len(self._pending) >= self._window:
                await self.wait_for(next(iter(self._pending.values())))
            self._check()
            request_id = self._next_id
            frame = encode_request(request_id, method, args)
            self._next_id += 1
            pending = self._pending[request_id] = Pending(self)
            await self._send_while_reading(frame)
            return pending

    async def wait_for(self, pending: Pending) -> None:
        """Read answers until this one is there.

        Raises:
            SiteUnreachable: the connection broke first.
        """
        while not pending.done:
            async with self._reading:
                if not pending.done:
                    await self._read_some()

    async def _send_while_reading(self, frame: bytes) -> None:
        """Send, and take answers meanwhile: a site that waits for its answers to be read would not read requests."""
        whole = False

        async def write() -> None:
            nonlocal whole
            try:
                await self._stream.send_all(frame)
                whole = True
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._broken = self._broken or "the site closed the connection"

        async def read() -> None:
            try:
                while True:
                    async with self._reading:
                        await self._read_some()
            except SiteUnreachable:
                sending.cancel()

        try:
            if len(self._pending) == 1:  # nothing else is under way that could be answered meanwhile
                await write()
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read)
                    with trio.CancelScope() as sending:
                        await write()
                    nursery.cancel_scope.cancel()
        finally:
            if not whole:
                self._broken = self._broken or "a request was cancelled while it was sent"
        self._check()

    async def _read_some(self) -> None:
        """One read from the socket, and every answer in it settled."""
        self._check()
        try:
            data = await self._stream.receive_some(_RECEIVE_BYTES)
            if not data:
                self._broken = "the site closed the connection"
            self._frames.feed(data)
            while (message := self._frames.next()) is not None:
                response = parse_response(message)
                pending = self._pending.pop(response.request_id, None)
                if pending is None:
                    raise ProtocolViolation("bad_message", f"nothing was asked as {response.request_id}")
                pending.settle(response.result, response.error)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._broken = "the connection broke"
        except ProtocolViolation as error:
            self._broken = f"its answer made no sense ({error})"

    def _check(self) -> None:
        if self._broken is not None:
            raise SiteUnreachable(
                f"site {self.name}: {self._broken}; what was not answered may or may not have been done"
            )


@asynccontextmanager
async def connect_site(cluster: ClusterConfig, name: str, *, window: int = WINDOW) -> AsyncIterator[SiteClient]:
    """A connection to a site of this machine, closed at the end.

    Raises:
        SiteUnknown: the configuration has no such site.
        SiteUnreachable: it does not run here, or does not answer; the message says what to do.
    """
    site = cluster.site(name)
    stream = await _open_socket(site, cluster)
    async with stream:
        client = SiteClient(stream, name, window=window)
        with trio.move_on_after(HELLO_TIMEOUT_S):
            client.hello = await client.call("hello")
        if not client.hello:
            pid = site_pid(site)
            raise SiteUnreachable(
                f"site {name} (pid {pid}) does not answer; it may be paused: claudefs-repl fault resume {name}"
            )
        found = (client.hello.get("cluster_id"), client.hello.get("site"))
        if found != (cluster.cluster_id, name):
            raise SiteUnreachable(f"site {name}: another one answers there: {found[1]} of cluster {found[0]}")
        yield client


async def _open_socket(site: SiteConfig, cluster: ClusterConfig) -> trio.SocketStream:
    for path in socket_candidates(site, cluster):
        try:
            return await trio.open_unix_socket(path)
        except (FileNotFoundError, ConnectionRefusedError):
            continue
        except OSError as error:
            raise SiteUnreachable(f"site {site.name}: its socket {path} cannot be used: {error.strerror}") from error
    raise _down(site, cluster)


def _down(site: SiteConfig, cluster: ClusterConfig) -> SiteUnreachable:
    pid = site_pid(site)
    if pid is not None:
        return SiteUnreachable(
            f"site {site.name} (pid {pid}) runs but takes no clients yet or any more; "
            f"see: claudefs-repl logs --site {site.name}"
        )
    if not is_local_address(site.address):
        return SiteElsewhere(site, cluster)
    return SiteUnreachable(
        f"site {site.name} is down; start it with: claudefs-repl up (the whole cluster) or "
        f"claudefs-repl fault restart {site.name}"
    )
