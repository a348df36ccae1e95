"""The listener: every inbound connection proves its key, then is served by its role."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.error import PeerRefused, ProtocolViolation
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import ReplicationConfig, SiteConfig
from nodes.dialing import Dialing
from nodes.link import NETWORK_ERRORS, Link, LinkClosed, describe_failure, welcome_dialer
from nodes.peers import PeerRecord
from protocol.handshake import Role

HALF_OPEN_MAX = 64
"""Handshakes under way at once: each holds at most one frame of 4 KiB, for at most the handshake's time."""

Server = Callable[[Link, PeerRecord], Awaitable[None]]


async def run_listener(
    *,
    site: SiteConfig,
    dialing: Dialing,
    config: ReplicationConfig,
    peers: Mapping[SiteId, PeerRecord],
    servers: Mapping[Role, Server],
    logger: FilteringBoundLogger,
    task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Accept connections for ever; each is served by the server of its role in a task of its own."""
    half_open = trio.CapacityLimiter(HALF_OPEN_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        try:
            source = stream.socket.getpeername()[0]
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        try:
            link = await _welcome(stream, half_open)
        except (PeerRefused, ProtocolViolation) as refusal:
            logger.warning("connection_refused", source=source, code=refusal.code, detail=refusal.detail)
        except (LinkClosed, trio.TooSlowError, trio.WouldBlock, *NETWORK_ERRORS) as error:
            logger.warning("connection_refused", source=source, code="no_handshake", detail=describe_failure(error))
        else:
            record = peers[link.session.peer]
            record.came_back.notify()
            await servers[link.session.role](link, record)
        finally:
            await trio.aclose_forcefully(stream)

    async def _welcome(stream: trio.SocketStream, limiter: trio.CapacityLimiter) -> Link:
        limiter.acquire_nowait()
        try:
            return await welcome_dialer(
                stream,
                identity=dialing.identity,
                keys=dialing.keys,
                known=peers,
                entropy=dialing.entropy,
                timeout_s=config.handshake_timeout_s,
            )
        finally:
            limiter.release()

    await trio.serve_tcp(serve, site.port, host=site.address, task_status=task_status)
