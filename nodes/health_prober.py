"""The health prober: one for each peer, on a connection of its own that never carries batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.checkpoint import Cursors
from claudefs_repl.error import PeerRefused, ProtocolViolation
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import SiteId
from claudefs_repl.stability import Word
from nodes.dialing import Dialing
from nodes.link import LINK_ERRORS, Link, describe_failure
from nodes.peers import PeerRecord
from nodes.seams import WallClock
from protocol.handshake import Role
from protocol.messages import Ping, Pong

DIAL_PAUSE_MAX_S = 5.0
"""Twelve attempts in a minute, of the 29 that a dialler has by default."""


@dataclass(frozen=True, slots=True)
class SelfView:
    """What this site tells of itself in a ping or pong."""

    mode: str
    received: Cursors
    applied: Cursors
    tails: Cursors


@dataclass(frozen=True, slots=True)
class HealthReport:
    """One probe's result, for the failover actor."""

    site_id: SiteId
    healthy: bool
    detail: str


async def run_health_prober(
    *,
    dialing: Dialing,
    record: PeerRecord,
    interval_s: float,
    probes_until_offline: int,
    view: Callable[[], SelfView],
    wall_clock: WallClock,
    reports: trio.MemorySendChannel[HealthReport],
    logger: FilteringBoundLogger,
) -> None:
    """Probe one peer every interval, for ever, and report each result. A probe has one interval to come back.

    Every failure that can make the peer Offline is a real probe. After `probes_until_offline` of them, connections that
    are taken and come to nothing are tried less and less often, so that a peer that stands still does not wake up to a
    long queue of them. A refusal that says how long to stay away is heeded. A peer that
    dials us is tried at once. A failure is reported each interval all the same. What no peer may send is told in the log;
    of a handshake that fails the listener tells, and this site's conduit, which meets the same.
    """
    link: Link | None = None
    ping_id = 0
    pause_s, failed_s, dial_at_s, failures = interval_s, 0.0, 0.0, 0
    report = HealthReport(record.site.site_id, False, "")
    try:
        while True:
            started_s = trio.current_time()
            ping_id += 1
            if link is None and started_s < dial_at_s and record.called_at_s < failed_s:
                await reports.send(report)
                await trio.sleep_until(started_s + interval_s)
                continue
            try:
                with trio.fail_after(interval_s):
                    if link is None:
                        link = await dialing.dial(record.site, Role.PROBE)
                    await _probe(link, record, ping_id, view(), wall_clock)
                pause_s, failures = interval_s, 0
                report = HealthReport(record.site.site_id, is_healthy(record.mode_told), record.mode_told or "")
            except (PeerRefused, *LINK_ERRORS) as error:
                if link is not None:
                    if isinstance(error, ProtocolViolation):
                        logger.error("batch_rejected", peer=record.site.name, code=error.code, detail=error.detail)
                    await dialing.live.close(link)
                    link = None
                failed_s = trio.current_time()
                failures += 1
                if failures > probes_until_offline and not isinstance(error, OSError):
                    dial_at_s = started_s + pause_s
                    pause_s = min(2 * pause_s, DIAL_PAUSE_MAX_S)
                if isinstance(error, PeerRefused):
                    dial_at_s = max(dial_at_s, failed_s + error.wait_ms / 1000)
                record.mode_told = None
                detail = str(error) if isinstance(error, PeerRefused) else describe_failure(error)
                report = HealthReport(record.site.site_id, False, detail)
            await reports.send(report)
            await trio.sleep_until(started_s + interval_s)
    finally:
        if link is not None:
            await dialing.live.close(link)


def is_healthy(mode_told: str | None) -> bool:
    """Whether a peer that answered in time counts as healthy; a standby does, it is catching up or waits."""
    return mode_told is not None and mode_told != SiteMode.OFFLINE.value


async def _probe(link: Link, record: PeerRecord, ping_id: int, view: SelfView, wall_clock: WallClock) -> None:
    sent_s = trio.current_time()
    sent_us = wall_clock.now_us()
    await link.send(Ping(ping_id=ping_id, sent_us=sent_us, tails=view.tails, applied=view.applied, mode=view.mode))
    pong = await link.expect(Pong)
    if pong.ping_id != ping_id:
        raise ProtocolViolation("unexpected", "not the pong of this ping")
    if any(journal.origin != record.site.site_id for journal in pong.tails):
        # This site waits at its start for what the tails tell: of its own journals a peer may be believed, of no other.
        raise ProtocolViolation("not_its_journal", "tails of another site's journal")
    now_s = trio.current_time()
    record.rtt_ms = (now_s - sent_s) * 1000
    record.pong_at_s = now_s
    record.mode_told = pong.mode
    if record.first_tails is None:
        record.first_tails = pong.tails
        record.first_received = pong.received
        record.first_applied = pong.applied
    record.clock_offset_us = pong.wall_us - (sent_us + wall_clock.now_us()) // 2
    record.word = Word(pong.applied, {**pong.received, **pong.tails})
    record.note_tails(pong.tails)
    record.note_all(received=pong.received, applied=pong.applied, told=pong.told)


async def serve_probe(
    link: Link, record: PeerRecord, view: Callable[[], SelfView], wall_clock: WallClock, idle_s: float
) -> None:
    """Answer a peer's pings until it goes away or says nothing for a while.

    Raises:
        ProtocolViolation: it sent what no peer may.
    """
    try:
        while True:
            with trio.fail_after(idle_s):
                ping = await link.receive()
            if not isinstance(ping, Ping):
                raise ProtocolViolation("unexpected", f"{type(ping).__name__} on a probe")
            record.note_tails(ping.tails)
            mine = view()
            pong = Pong(
                ping_id=ping.ping_id,
                mode=mine.mode,
                received=mine.received,
                applied=mine.applied,
                tails=mine.tails,
                told=record.told,
                wall_us=wall_clock.now_us(),
            )
            with trio.fail_after(idle_s):
                await link.send(pong)
    except ProtocolViolation:
        raise
    except LINK_ERRORS:
        return
