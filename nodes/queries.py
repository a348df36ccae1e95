"""Questions between sites: status, digests, listings, on an authenticated connection of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import msgpack
import trio

from claudefs_repl.error import CallerError, PeerRefused, ProtocolViolation, ReplError
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import SiteConfig
from nodes.dialing import Dialing
from nodes.link import LINK_ERRORS, Link, describe_failure, one_link_error
from protocol.handshake import Role
from protocol.messages import ARGS_BYTES_MAX, RESULT_BYTES_MAX, Query, Reply
from protocol.words import cut_detail

ITEMS_MAX = 4096
"""Of one array in a question or an answer, far above the longest page (200 paths) and a row for each of 256 shards. A
decoder takes room for as many items as an array announces, at each of a thousand levels that arrays may be nested, before
one of them is there."""

SIGN_EVERY_S = 5.0
"""Who works on a question tells so this often."""
SILENCE_S = 30.0
"""A peer that tells nothing for so long has lost its power, or the way to it is cut: what would take minutes ends here."""

Handler = Callable[[dict[str, Any]], Awaitable[Any]]


class PeerUnreachable(ReplError):
    """A peer could not be asked; the message says why."""


class PeerQueries:
    """Questions to peers. Owned by the site's status.

    Each kind of question has a connection of its own to each peer, kept for the next of the kind: one that takes minutes
    must not let a peer seem unreachable to those that ask for its status.
    """

    def __init__(self, dialing: Dialing) -> None:
        self._dialing = dialing
        self._links: dict[tuple[SiteId, str], Link] = {}
        self._turns: dict[tuple[SiteId, str], trio.Lock] = {}

    async def ask(self, peer: SiteConfig, method: str, args: dict[str, Any], *, timeout_s: float) -> dict[str, Any]:
        """Put one question to a peer; one at a time of each kind. What its map holds is the peer's word.

        It may take up to timeout_s, as long as the peer tells that it is at work.

        Raises:
            PeerUnreachable: no connection, no answer in time, or the answer was an error or no map.
            CallerError: the question is too long.
        """
        packed = msgpack.packb(args)
        if len(packed) > ARGS_BYTES_MAX:
            raise CallerError(f"a question has at most {ARGS_BYTES_MAX} bytes, this one {len(packed)}")
        try:
            with trio.fail_after(timeout_s):
                async with self._turns.setdefault((peer.site_id, method), trio.Lock()):
                    reply = await self._exchange(peer, Query(1, method, packed))
                    result = unpack_value(reply.result)
        except (PeerRefused, *LINK_ERRORS) as error:
            detail = str(error) if isinstance(error, PeerRefused) else describe_failure(error)
            raise PeerUnreachable(f"site {peer.name} cannot be asked: {detail}") from error
        if not reply.ok:
            raise PeerUnreachable(f"site {peer.name}: {result if isinstance(result, str) else 'no reason given'}")
        if not isinstance(result, dict):
            raise PeerUnreachable(f"site {peer.name}: its answer is no map")
        return result

    async def _exchange(self, peer: SiteConfig, query: Query) -> Reply:
        link = self._links.pop((peer.site_id, query.method), None)
        if link is not None:
            try:
                return await self._on_link(link, peer, query)
            except ProtocolViolation:
                raise
            except LINK_ERRORS:
                pass  # the peer may have ended since; a new connection tells
        return await self._on_link(await self._dialing.dial(peer, Role.QUERY), peer, query)

    async def _on_link(self, link: Link, peer: SiteConfig, query: Query) -> Reply:
        try:
            await link.send(query)
            reply = await _next_reply(link)
            while not reply.last:
                reply = await _next_reply(link)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._dialing.live.close(link)
            raise
        self._links[peer.site_id, query.method] = link
        return reply


async def _next_reply(link: Link) -> Reply:
    """A sign that the peer is at work, or its answer, which is in one part."""
    with trio.fail_after(SILENCE_S):
        reply = await link.expect(Reply)
    if not reply.last and reply.result:
        raise ProtocolViolation("unexpected", "an answer in several parts")
    return reply


async def serve_queries(link: Link, handlers: Mapping[str, Handler], idle_s: float) -> None:
    """Answer a peer's questions until it goes away.

    Raises:
        ProtocolViolation: it sent what no peer may.
    """
    try:
        while True:
            with trio.fail_after(idle_s):
                query = await link.receive()
            if not isinstance(query, Query):
                raise ProtocolViolation("unexpected", f"{type(query).__name__} on a query connection")
            args = unpack_value(query.args)
            with one_link_error():
                async with trio.open_nursery() as working:
                    working.start_soon(_tell_of_work, link, query, idle_s)
                    answer = await _answer(query, args, handlers)
                    working.cancel_scope.cancel()
            with trio.fail_after(idle_s):
                await link.send(answer)
    except ProtocolViolation:
        raise
    except LINK_ERRORS:
        return


async def _tell_of_work(link: Link, query: Query, idle_s: float) -> None:
    """Send signs of life until cancelled; a message that is begun is sent whole, for the answer follows it."""
    try:
        while True:
            await trio.sleep(SIGN_EVERY_S)
            with trio.fail_after(idle_s, shield=True):
                await link.send(Reply(query.query_id, True, False, b""))
    except LINK_ERRORS:
        return  # what the answer was worked out for may be of use to the next who asks


async def _answer(query: Query, args: Any, handlers: Mapping[str, Handler]) -> Reply:
    handler = handlers.get(query.method)
    try:
        if handler is None or not isinstance(args, dict):
            raise CallerError(f"no such question: {query.method}")
        result = msgpack.packb(await handler(args))
        if len(result) > RESULT_BYTES_MAX:
            raise CallerError(f"{query.method}: an answer has at most {RESULT_BYTES_MAX} bytes, this one {len(result)}")
    except ReplError as error:
        return Reply(query.query_id, False, True, msgpack.packb(cut_detail(str(error))))
    return Reply(query.query_id, True, True, result)


def unpack_value(packed: bytes) -> Any:
    """What a peer put into a question or an answer: its word, and any value.

    Raises:
        ProtocolViolation: `bad_message`.
    """
    try:
        return msgpack.unpackb(packed, strict_map_key=True, max_array_len=ITEMS_MAX, ext_hook=_refuse_extension)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolViolation("bad_message", f"not msgpack: {error}") from error


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"extension type {code} of {len(data)} bytes")
