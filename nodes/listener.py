"""The listener: every connection attempt passes the gate, proves its key, then is served by its role."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.admission import KINDS_MAX, OTHER, Admission, Failure, Refusal, Ticket, address_key
from claudefs_repl.error import PeerRefused, ProtocolViolation
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import ReplicationConfig, SiteConfig
from nodes.descriptors import IsScarce, never_scarce
from nodes.dialing import Dialing, monotonic_us
from nodes.link import LINK_ERRORS, Link, describe_failure, welcome_dialer
from nodes.peers import PeerRecord
from protocol.handshake import Role, refusal_frame
from protocol.messages import Goodbye

Server = Callable[[Link, PeerRecord], Awaitable[None]]
REFUSAL_TIMEOUT_S = 1.0
"""To tell a refused connection why; whoever does not read it is closed."""
TOLD_EVERY_S = 5.0
"""Refusals of one kind are told so often at most, with their number: a flood is not a flood of lines."""
DESCRIPTORS = "descriptors"
LINKS_MAX = 8
"""Links of one peer in one role: it uses at most one for each kind of question, and a restart leaves as many behind."""


@dataclass(slots=True)
class _RefusalLog:
    """Tells refusals by kind, the first at once and the rest in numbers. Owned by the listener."""

    logger: FilteringBoundLogger
    told_at_s: dict[str, float] = field(default_factory=dict)
    untold: dict[str, int] = field(default_factory=dict)

    def tell(self, source: str, code: str, detail: str) -> None:
        now_s = trio.current_time()
        if code not in self.told_at_s and len(self.told_at_s) >= KINDS_MAX:
            detail, code = f"{code}: {detail}", OTHER
        count = self.untold.pop(code, 0) + 1
        if now_s - self.told_at_s.get(code, -TOLD_EVERY_S) < TOLD_EVERY_S:
            self.untold[code] = count
            return
        self.told_at_s[code] = now_s
        if code == DESCRIPTORS:
            self.logger.error("descriptors_low", source=source, detail=detail, count=count)
        else:
            self.logger.warning("connection_refused", source=source, code=code, detail=detail, count=count)


class Listener:
    """Serves inbound connections. Owns the admission of its site."""

    def __init__(
        self,
        *,
        site: SiteConfig,
        dialing: Dialing,
        config: ReplicationConfig,
        admission: Admission,
        peers: Mapping[SiteId, PeerRecord],
        servers: Mapping[Role, Server],
        rng: random.Random,
        logger: FilteringBoundLogger,
        is_scarce: IsScarce = never_scarce,
    ) -> None:
        self._site = site
        self._dialing = dialing
        self._config = config
        self._admission = admission
        self._peers = peers
        self._servers = servers
        self._rng = rng
        self._is_scarce = is_scarce
        self._refusals = _RefusalLog(logger)
        self._links: dict[tuple[SiteId, Role], dict[Link, trio.CancelScope]] = {}

    async def run(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections for ever; each is served by the server of its role in a task of its own."""
        await trio.serve_tcp(self._serve, self._site.port, host=self._site.address, task_status=task_status)

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            source = stream.socket.getpeername()[0]
        except OSError:
            await trio.aclose_forcefully(stream)
            return
        try:
            if self._is_scarce(stream):
                self._refuse(source, DESCRIPTORS, "the last file descriptors are kept for what is open already")
                return
            ticket = self._admission.arrive(address_key(source), now_us=monotonic_us(), draw=self._rng.random())
            if isinstance(ticket, Refusal):
                await self._turn_away(stream, source, ticket)
                return
            link = await self._welcome(stream, source, ticket)
            if link is not None:
                await self._serve_link(link, source, ticket)
        finally:
            await trio.aclose_forcefully(stream)

    def _refuse(self, source: str, code: str, detail: str) -> None:
        """Count and tell a connection that ends for a reason that the gate did not know."""
        self._admission.count(code)
        self._refusals.tell(source, code, detail)

    async def _turn_away(self, stream: trio.SocketStream, source: str, refusal: Refusal) -> None:
        """Say why before a byte was read, and close."""
        self._refusals.tell(source, refusal.code, refusal.detail)
        told = refusal_frame(PeerRefused(refusal.code, refusal.detail, wait_ms=refusal.wait_ms))
        with trio.move_on_after(REFUSAL_TIMEOUT_S):
            try:
                await stream.send_all(told)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    async def _welcome(self, stream: trio.SocketStream, source: str, ticket: Ticket) -> Link | None:
        try:
            return await welcome_dialer(
                stream,
                identity=self._dialing.identity,
                keys=self._dialing.keys,
                known=self._peers,
                entropy=self._dialing.entropy,
                timeout_s=self._config.handshake_timeout_s,
            )
        except (PeerRefused, ProtocolViolation) as refusal:
            failure = Failure.BAD_PROOF if refusal.code == "bad_proof" else Failure.NOT_OURS
            self._refuse(source, refusal.code, refusal.detail)
        except LINK_ERRORS as error:
            failure = Failure.NO_AUTH
            self._refuse(source, "no_handshake", describe_failure(error))
        finally:
            self._admission.leave(ticket)
        self._admission.fail(ticket, failure, now_us=monotonic_us())
        return None

    async def _serve_link(self, link: Link, source: str, ticket: Ticket) -> None:
        session = link.session
        refusal = self._admission.prove(ticket, session.peer, now_us=monotonic_us())
        if refusal is None and not link.has_key_in(self._dialing.keys):
            # A reload came meanwhile, and has closed the links that were live then.
            refusal = Refusal("key_retired", "the key was retired during the handshake", 0)
            self._admission.count(refusal.code)
        try:
            if refusal is not None:
                self._refusals.tell(source, refusal.code, f"{self._peers[session.peer].site.name}: {refusal.detail}")
                with trio.move_on_after(REFUSAL_TIMEOUT_S):
                    await link.send(Goodbye(refusal.code, refusal.detail, refusal.wait_ms))
                return
            self._dialing.live.add(link)
            self._dialing.has_met(link)
            record = self._peers[session.peer]
            record.called_at_s = trio.current_time()
            record.came_back.notify()
            await self._serve_role(link, record)
        except ProtocolViolation as violation:
            self._admission.blame(session.peer, now_us=monotonic_us())
            self._refuse(source, violation.code, f"{self._peers[session.peer].site.name}: {violation.detail}")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        finally:
            await self._dialing.live.close(link)

    async def _serve_role(self, link: Link, record: PeerRecord) -> None:
        """Serve a proven peer. Its oldest link of the role ends when there are too many."""
        role = link.session.role
        links = self._links.setdefault((record.site.site_id, role), {})
        if len(links) >= LINKS_MAX:
            oldest = next(iter(links))
            links.pop(oldest).cancel()
        with trio.CancelScope() as scope:
            links[link] = scope
            try:
                await self._servers[role](link, record)
            finally:
                links.pop(link, None)
