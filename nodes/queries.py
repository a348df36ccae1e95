"""Questions between sites: status, digests, listings, on an authenticated connection of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgpack
import trio

from claudefs_repl.error import PeerRefused, ProtocolViolation, ReplError
from claudefs_repl.topology import SiteConfig
from nodes.dialing import Dialing
from nodes.link import LINK_ERRORS, Link, describe_failure
from protocol.handshake import Role
from protocol.messages import Query, Reply

Handler = Callable[[dict[str, Any]], Awaitable[Any]]
ARGS_BYTES_MAX = 64 * 1024
RESULT_BYTES_MAX = 1 << 20


class PeerUnreachable(ReplError):
    """A peer could not be asked; the message says why."""


async def ask_peer(dialing: Dialing, peer: SiteConfig, method: str, args: dict[str, Any], *, timeout_s: float) -> Any:
    """Put one question to a peer.

    Raises:
        PeerUnreachable: no connection, no answer in time, or the answer was an error.
    """
    try:
        with trio.fail_after(timeout_s):
            link = await dialing.dial(peer, Role.QUERY)
            try:
                await link.send(Query(1, method, msgpack.packb(args)))
                reply = await link.receive()
            finally:
                await link.aclose()
    except (PeerRefused, *LINK_ERRORS) as error:
        detail = str(error) if isinstance(error, PeerRefused) else describe_failure(error)
        raise PeerUnreachable(f"site {peer.name} cannot be asked: {detail}") from error
    if not isinstance(reply, Reply):
        raise PeerUnreachable(f"site {peer.name} answered with {type(reply).__name__}")
    result = _unpack(reply.result)
    if not reply.ok:
        raise PeerUnreachable(f"site {peer.name}: {result}")
    return result


async def serve_queries(link: Link, handlers: Mapping[str, Handler], idle_s: float) -> None:
    """Answer a peer's questions until it goes away."""
    try:
        while True:
            with trio.fail_after(idle_s):
                query = await link.receive()
            if not isinstance(query, Query):
                raise ProtocolViolation("unexpected", f"{type(query).__name__} on a query connection")
            handler = handlers.get(query.method)
            args = _unpack(query.args)
            if handler is None or not isinstance(args, dict):
                answer = Reply(query.query_id, False, True, msgpack.packb(f"no such question: {query.method}"))
            else:
                try:
                    answer = Reply(query.query_id, True, True, msgpack.packb(await handler(args)))
                except ReplError as error:
                    answer = Reply(query.query_id, False, True, msgpack.packb(str(error)))
            with trio.fail_after(idle_s):
                await link.send(answer)
    except LINK_ERRORS:
        return


def _unpack(packed: bytes) -> Any:
    try:
        return msgpack.unpackb(packed, strict_map_key=True)
    except (ValueError, msgpack.UnpackException, RecursionError) as error:
        raise ProtocolViolation("bad_message", f"not msgpack: {error}") from error
