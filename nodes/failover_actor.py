"""The failover actor: health reports in, modes out; it alone drives the manager."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.error import SiteUnknown
from claudefs_repl.failover import (
    ConflictRequiresResolution,
    FailoverEvent,
    FailoverManager,
    SiteDemoted,
    SiteMode,
    SitePromoted,
    SiteRecovered,
)
from claudefs_repl.journal import SiteId
from nodes.health_prober import HealthReport
from nodes.seams import WallClock
from nodes.write_gate import WriteGate


async def run_failover_actor(
    *,
    manager: FailoverManager,
    reports: trio.MemoryReceiveChannel[HealthReport],
    names: Mapping[SiteId, str],
    gate: WriteGate,
    wall_clock: WallClock,
    logger: FilteringBoundLogger,
    on_mode: Callable[[SiteId, SiteMode], None],
) -> None:
    """Take reports, on the peers and on this site itself, until their channel is closed."""
    async with reports:
        async for report in reports:
            events = await manager.record_health(report.site_id, report.healthy, now_us=wall_clock.now_us())
            if not events:
                continue
            mode = await manager.site_mode(report.site_id)
            if mode is None:
                raise SiteUnknown(f"an event of site {report.site_id}, which is not registered")
            on_mode(report.site_id, mode)
            if report.site_id == manager.local_site_id:
                gate.mode = mode
            for event in events:
                _log(event, report, manager.local_site_id, names, logger)


def _log(
    event: FailoverEvent,
    report: HealthReport,
    local: SiteId,
    names: Mapping[SiteId, str],
    logger: FilteringBoundLogger,
) -> None:
    if isinstance(event, ConflictRequiresResolution):
        return
    if event.site_id == local:
        log_own_event(event, logger)
        return
    kind, mode, reason = _describe(event)
    detail = f"{reason}: {report.detail}" if reason else ""
    logger.info("peer_mode_changed", peer=names[event.site_id], kind=kind, mode=mode.value, reason=detail)


def log_own_event(event: FailoverEvent, logger: FilteringBoundLogger) -> None:
    """Tell a change of this site's own mode."""
    if not isinstance(event, ConflictRequiresResolution):
        kind, mode, reason = _describe(event)
        logger.info("mode_changed", kind=kind, mode=mode.value, reason=reason)


def _describe(event: SitePromoted | SiteDemoted | SiteRecovered) -> tuple[str, SiteMode, str]:
    match event:
        case SitePromoted(_, mode):
            return "SitePromoted", mode, ""
        case SiteDemoted(_, mode, reason):
            return "SiteDemoted", mode, reason
        case SiteRecovered():
            return "SiteRecovered", SiteMode.ACTIVE_READ_WRITE, ""


async def run_own_health(
    *,
    site_id: SiteId,
    interval_s: float,
    caught_up: Callable[[], bool],
    healthy: Callable[[], bool],
    startup_wait_s: float,
    peers_reached: Callable[[], bool],
    on_caught_up: Callable[[], Awaitable[None]],
    reports: trio.MemorySendChannel[HealthReport],
    logger: FilteringBoundLogger,
) -> None:
    """Report on this site itself, once it has caught up with what its peers told at connection.

    It waits up to `startup_wait_s` for every peer's first answer, and goes on with those that came.
    """
    began_s = trio.current_time()
    poll_s = min(interval_s, 0.1)
    with trio.move_on_after(startup_wait_s):
        while not peers_reached():
            await trio.sleep(poll_s)
    logger.info("catch_up_started", all_peers_reached=peers_reached())
    while not caught_up():
        await trio.sleep(poll_s)
    logger.info("caught_up", duration_ms=round((trio.current_time() - began_s) * 1000))
    await on_caught_up()
    while True:
        own = healthy()
        await reports.send(HealthReport(site_id, own, "ok" if own else "the clock disagrees with most peers"))
        await trio.sleep(interval_s)
