"""The client service: file commands of this machine, over a Unix socket that only the site's user can reach."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.error import CallerError, NotWritable, OperationRefused, ProtocolViolation, ReplError
from claudefs_repl.journal import Inode
from claudefs_repl.operations import path_text
from nodes.client_ops import OPS_MAX, READS, check_fields, parse_ops
from nodes.descriptors import IsScarce, never_scarce
from nodes.journal_writer import WriteRequest
from nodes.shown_ids import ShownIds
from nodes.store.local import CreateFile, GiveUp, LocalOp, LocalRequest, MakeLink, NameFile, RequestOutcome
from nodes.store.sqlite_store import SqliteStore
from nodes.write_gate import WriteGate
from protocol.client import REQUEST_ITEMS_MAX, ClientFrames, Request, encode_error, encode_response, parse_request

CONNECTIONS_MAX = 128
"""Commands of one machine at once; each holds at most its pipeline of requests."""
PIPELINE_MAX = 32
"""Requests of one connection under way: beyond them its socket is not read."""
READ_BYTES = 256 * 1024
DATA_READ_MAX = 4 << 20
LIST_MAX = 1000

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
Answer = Callable[[], Awaitable[bytes]]
"""Called when it is its turn: waits for a request's end and gives the frame to send."""
_CLIENT_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@dataclass(slots=True)
class ClientStats:
    """Numbers for status. Owned by the client service."""

    connections: int = 0
    requests: int = 0
    refused_writes: int = 0


@dataclass(slots=True)
class _Connection:
    """One client: the files it made and has not named yet are given up when it goes.

    Attributes:
        under_way: writes whose outcome is not in `nameless` yet.
    """

    nameless: set[int] = field(default_factory=set)
    under_way: deque[tuple[WriteRequest, list[LocalOp]]] = field(default_factory=deque)


@asynccontextmanager
async def open_client_socket(socket_path: Path) -> AsyncIterator[trio.SocketListener]:
    """Listen for clients of this machine; a socket file that a killed process left behind is replaced: the lock is ours."""
    place = trio.Path(socket_path)
    await place.unlink(missing_ok=True)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await sock.bind(str(socket_path))
        await place.chmod(0o600)
        sock.listen(CONNECTIONS_MAX)
        yield trio.SocketListener(sock)
    finally:
        sock.close()
        with trio.CancelScope(shield=True):
            await place.unlink(missing_ok=True)


class ClientService:
    """Serves the clients of one site.

    Args:
        extra: handlers of questions that are not about the tree, by method: hello, status, digest, manifest.
    """

    def __init__(
        self,
        *,
        store: SqliteStore,
        writes: trio.MemorySendChannel[WriteRequest],
        gate: WriteGate,
        shown_ids: ShownIds,
        extra: Mapping[str, Handler],
        logger: FilteringBoundLogger,
        is_scarce: IsScarce = never_scarce,
    ) -> None:
        self._store = store
        self._writes = writes
        self._gate = gate
        self._shown_ids = shown_ids
        self._logger = logger
        self._is_scarce = is_scarce
        self._reads: dict[str, Handler] = {
            "resolve": self._resolve,
            "stat": self._stat,
            "list": self._list,
            "read": self._read,
            "xattrs": self._xattrs,
        }
        self._handlers = {**self._reads, **extra}
        self.stats = ClientStats()

    async def run(
        self,
        open_clients: Callable[[], AbstractAsyncContextManager[trio.SocketListener]],
        *,
        task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve whoever connects, until cancelled."""
        async with open_clients() as listener:
            await trio.serve_listeners(self.serve, [listener], task_status=task_status)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client until it goes away; answers come in the order of the requests."""
        if self.stats.connections >= CONNECTIONS_MAX:
            self._logger.warning("client_refused", reason=f"{CONNECTIONS_MAX} clients are connected")
            await trio.aclose_forcefully(stream)
            return
        if self._is_scarce(stream):
            self._logger.warning("client_refused", reason="the last file descriptors are kept for what is open already")
            await trio.aclose_forcefully(stream)
            return
        self.stats.connections += 1
        connection = _Connection()
        try:
            async with trio.open_nursery() as nursery:
                sender, receiver = trio.open_memory_channel[Answer](PIPELINE_MAX)
                nursery.start_soon(_answer, stream, receiver)
                await self._take_requests(stream, sender, connection)
        except BaseExceptionGroup as group:
            expected, rest = group.split(_CLIENT_ERRORS)
            if rest is not None:
                raise rest from None
            assert expected is not None
        finally:
            self.stats.connections -= 1
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)
        await self._give_up(connection)

    async def _take_requests(
        self, stream: trio.SocketStream, answers: trio.MemorySendChannel[Answer], connection: _Connection
    ) -> None:
        frames = ClientFrames(items_max=REQUEST_ITEMS_MAX)
        async with answers:
            while data := await stream.receive_some(READ_BYTES):
                frames.feed(data)
                try:
                    while (message := frames.next()) is not None:
                        request = parse_request(message)
                        self.stats.requests += 1
                        await answers.send(await self._begin(request, connection))
                except ProtocolViolation as violation:
                    self._logger.warning("client_refused", reason=str(violation))
                    return

    async def _begin(self, request: Request, connection: _Connection) -> Answer:
        """Start a request; writes go to the journal writer at once, in order, the rest waits for its turn."""
        if request.method != "submit":
            return partial(self._answer_read, request)
        try:
            ops = parse_ops(request.args)
            self._gate.check_write()
        except ReplError as error:
            self.stats.refused_writes += isinstance(error, NotWritable)
            return partial(_ready, _encode_failure(request.request_id, error))
        waiting = WriteRequest(LocalRequest(ops))
        await self._writes.send(waiting)
        connection.under_way.append((waiting, ops))
        return partial(self._answer_write, request, connection)

    async def _answer_write(self, request: Request, connection: _Connection) -> bytes:
        waiting, ops = connection.under_way[0]
        try:
            outcome = await waiting.result()
        except ReplError as error:
            return _encode_failure(request.request_id, error)
        finally:
            if waiting.done.is_set():
                connection.under_way.popleft()
        _note_nameless(ops, outcome, connection.nameless)
        refused = outcome.error
        refusal = None
        if refused is not None:
            refusal = {
                "index": len(outcome.results),
                "code": refused.code,
                "errno": refused.errno,
                "message": str(refused),
            }
        results = [[result.inode, result.shard, result.seq] for result in outcome.results]
        return encode_response(request.request_id, {"results": results, "error": refusal})

    async def _answer_read(self, request: Request) -> bytes:
        handler = self._handlers.get(request.method)
        try:
            if handler is None:
                raise CallerError(f"no such method: {request.method}")
            args = request.args
            if request.method in self._reads:
                self._gate.check_read()
                args = check_fields(request.method, args, READS[request.method])
            result = await handler(args)
        except ReplError as error:
            return _encode_failure(request.request_id, error)
        try:
            return encode_response(request.request_id, result)
        except ValueError as error:
            return _encode_failure(request.request_id, OperationRefused(errno.EMSGSIZE, f"{request.method}: {error}"))

    async def _give_up(self, connection: _Connection) -> None:
        """Files that an interrupted client left without a name are no use to anybody."""
        for waiting, ops in connection.under_way:
            # Nobody took the answers, but what was asked for is done all the same.
            with suppress(ReplError):
                _note_nameless(ops, await waiting.result(), connection.nameless)
        if not connection.nameless:
            return
        given_up: list[LocalOp] = [GiveUp(Inode(inode)) for inode in sorted(connection.nameless)]
        try:
            for begin in range(0, len(given_up), OPS_MAX):
                self._gate.check_write()
                waiting = WriteRequest(LocalRequest(given_up[begin : begin + OPS_MAX]))
                await self._writes.send(waiting)
                await waiting.result()
        except (ReplError, trio.BrokenResourceError):
            return  # the next start finds them in the store
        self._logger.info("reclaimed", files=len(given_up))

    async def _resolve(self, args: dict[str, Any]) -> Any:
        path = args["path"]
        found = await self._store.read(lambda view: view.resolve(path))
        return self._shown_ids.stat_map(found, path_text(path), as_written=bool(args["as_written"]))

    async def _stat(self, args: dict[str, Any]) -> Any:
        inode = args["inode"]
        found = await self._store.read(lambda view: view.stat(inode))
        return self._shown_ids.stat_map(found, f"object {inode:x}", as_written=bool(args["as_written"]))

    async def _list(self, args: dict[str, Any]) -> Any:
        inode, after, limit = args["inode"], args["after"], min(args["limit"], LIST_MAX)
        entries, more = await self._store.read(lambda view: view.list_dir(inode, after=after, limit=limit))
        as_written = bool(args["as_written"])
        return {"entries": [self._shown_ids.entry_map(entry, as_written=as_written) for entry in entries], "more": more}

    async def _read(self, args: dict[str, Any]) -> Any:
        inode, offset, length = args["inode"], args["offset"], args["length"]
        if length > DATA_READ_MAX:
            raise OperationRefused(errno.EINVAL, f"a read is of 0 to {DATA_READ_MAX} bytes, not {length}")
        return await self._store.read(lambda view: view.read(inode, offset, length))

    async def _xattrs(self, args: dict[str, Any]) -> Any:
        inode = args["inode"]
        return await self._store.read(lambda view: view.xattrs(inode))


async def _answer(stream: trio.SocketStream, answers: trio.MemoryReceiveChannel[Answer]) -> None:
    async with answers:
        async for answer in answers:
            await stream.send_all(await answer())


async def _ready(answer: bytes) -> bytes:
    return answer


def _encode_failure(request_id: int, error: ReplError) -> bytes:
    match error:
        case OperationRefused():
            return encode_error(request_id, code=error.code, message=str(error), errno=error.errno, exit=1)
        case NotWritable():
            return encode_error(request_id, code="not_writable", message=str(error), errno=errno.EROFS, exit=3)
        case CallerError():
            return encode_error(request_id, code="bad_request", message=str(error), errno=errno.EINVAL, exit=2)
    return encode_error(request_id, code="failed", message=str(error), errno=errno.EIO, exit=1)


def _note_nameless(ops: list[LocalOp], outcome: RequestOutcome, nameless: set[int]) -> None:
    """Keep account of the files that this connection made and has not named."""
    made = [result.inode for result in outcome.results]
    for op, result in zip(ops, outcome.results, strict=False):
        match op:
            case CreateFile(parent=None):
                nameless.add(result.inode)
            case NameFile(inode=inode) | MakeLink(inode=inode) | GiveUp(inode=inode):
                nameless.discard(made[-inode - 1] if inode < 0 else inode)
