"""The failover machine: thresholds at their exact boundaries, the manager against a naive model."""

from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.error import SiteUnknown
from claudefs_repl.failover import (
    EVENTS_MAX,
    ConflictRequiresResolution,
    FailoverManager,
    SiteDemoted,
    SiteMode,
    SitePromoted,
    SiteRecovered,
)
from claudefs_repl.topology import FailoverConfig

ACTIVE = SiteMode.ACTIVE_READ_WRITE
STANDBY = SiteMode.STANDBY_READ_ONLY
DEGRADED = SiteMode.DEGRADED_ACCEPT_WRITES
OFFLINE = SiteMode.OFFLINE
N, M = 3, 2


@pytest.fixture
async def manager():
    manager = FailoverManager(FailoverConfig(failure_threshold=N, recovery_threshold=M), 1)
    await manager.register_site(2)
    return manager


async def report(manager, healthy, times, site=2):
    events = []
    for _ in range(times):
        events += await manager.record_health(site, healthy)
    return events


async def test_a_registered_site_starts_active_with_zero_counters(manager):
    """A registered site is ActiveReadWrite and has counted nothing."""
    (state,) = await manager.all_states()
    assert (state.mode, state.consecutive_failures, state.consecutive_successes) == (ACTIVE, 0, 0)
    assert state.failover_count == 0


@pytest.mark.parametrize(
    ("failures", "mode"),
    [(N - 1, ACTIVE), (N, DEGRADED), (N + 1, DEGRADED), (2 * N - 1, DEGRADED), (2 * N, OFFLINE), (2 * N + 5, OFFLINE)],
)
async def test_each_step_down_takes_exactly_n_more_failures(manager, failures, mode):
    """N failures degrade an active site, N more make it offline, fewer do nothing."""
    await report(manager, False, failures)
    assert await manager.site_mode(2) is mode


@pytest.mark.parametrize(("successes", "mode"), [(M - 1, OFFLINE), (M, STANDBY), (2 * M - 1, STANDBY), (2 * M, ACTIVE)])
async def test_each_step_up_takes_exactly_m_more_successes(manager, successes, mode):
    """M successes bring an offline site to standby, M more make it active."""
    await report(manager, False, 2 * N)
    await report(manager, True, successes)
    assert await manager.site_mode(2) is mode


async def test_the_events_of_a_death_and_a_return(manager):
    """Two demotions, a promotion and a recovery, in that order, each drained once."""
    await report(manager, False, 2 * N)
    await report(manager, True, 2 * M)
    kinds = [(type(event), getattr(event, "new_mode", None)) for event in await manager.drain_events()]
    assert kinds == [
        (SiteDemoted, DEGRADED),
        (SiteDemoted, OFFLINE),
        (SitePromoted, STANDBY),
        (SiteRecovered, None),
    ]
    assert await manager.drain_events() == []
    assert await manager.failover_counts() == {2: 4}


async def test_a_degraded_site_finds_its_way_back(manager):
    """M successes make a degraded site active again."""
    await report(manager, False, N)
    assert await report(manager, True, M) == [SiteRecovered(2)]


async def test_alternating_reports_change_nothing(manager):
    """A failure resets the successes and a success the failures."""
    for healthy in [False, True] * 20:
        assert await report(manager, healthy, 1) == []


async def test_n_failures_send_a_standby_offline(manager):
    """A standby goes offline after N failures, not at the first."""
    await manager.register_site(3, initial=STANDBY)
    assert await report(manager, False, N - 1, site=3) == []
    (event,) = await report(manager, False, 1, site=3)
    assert (type(event), event.new_mode) == (SiteDemoted, OFFLINE)


async def test_a_report_on_an_unknown_site_registers_nothing(manager):
    """An unknown site causes no event and gets no row."""
    assert await manager.record_health(9, False) == []
    assert await manager.site_mode(9) is None


async def test_forcing_an_unknown_site_is_refused(manager):
    """force_mode on a site that is not registered raises SiteUnknown."""
    with pytest.raises(SiteUnknown):
        await manager.force_mode(9, OFFLINE)


async def test_forcing_resets_the_counters_and_counts(manager):
    """A forced change is a failover; forcing the mode that is emits nothing."""
    await report(manager, False, N - 1)
    (event,) = await manager.force_mode(2, STANDBY)
    assert event == SiteDemoted(2, STANDBY, "forced")
    assert await manager.force_mode(2, STANDBY) == []
    assert await manager.failover_counts() == {2: 1}
    assert await manager.force_mode(2, ACTIVE) == [SitePromoted(2, ACTIVE)]
    await report(manager, False, N - 1)
    assert await manager.site_mode(2) is ACTIVE


async def test_a_pinned_mode_stays_until_released(manager):
    """Reports do not change a pinned mode; after the release they do."""
    await manager.force_mode(2, DEGRADED, pin=True)
    await report(manager, False, 5 * N)
    assert await manager.site_mode(2) is DEGRADED
    await manager.release(2)
    await report(manager, False, N)
    assert await manager.site_mode(2) is OFFLINE


async def test_without_active_active_health_alone_never_makes_a_standby_writable():
    """With one active site, a standby stays a standby however healthy it is."""
    manager = FailoverManager(FailoverConfig(active_active=False), 1)
    await manager.register_site(2, initial=STANDBY)
    await report(manager, True, 50)
    assert await manager.site_mode(2) is STANDBY


async def test_writable_and_readable_sites_follow_the_modes(manager):
    """Active and degraded are writable, everything but offline is readable."""
    for site, mode in enumerate([ACTIVE, STANDBY, DEGRADED, OFFLINE], start=10):
        await manager.register_site(site, initial=mode)
    assert await manager.writable_sites() == [2, 10, 12]
    assert await manager.readable_sites() == [2, 10, 11, 12]


async def test_the_event_queue_is_bounded(manager):
    """Undrained events never exceed the limit; the newest are kept."""
    for inode in range(EVENTS_MAX + 10):
        await manager.report_conflict(2, inode)
    events = await manager.drain_events()
    assert len(events) == EVENTS_MAX
    assert events[-1] == ConflictRequiresResolution(2, EVENTS_MAX + 9)


async def test_the_injected_time_is_the_time_of_the_last_check(manager):
    """last_check_us is what the caller said."""
    await manager.record_health(2, True, now_us=77)
    assert (await manager.all_states())[0].last_check_us == 77


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_the_manager_equals_a_naive_model(reports, n, m):
    """Counting runs of equal reports by hand gives the same modes."""

    async def run():
        manager = FailoverManager(FailoverConfig(failure_threshold=n, recovery_threshold=m), 1)
        await manager.register_site(2)
        mode, run_of, length = ACTIVE, None, 0
        for healthy in reports:
            length = length + 1 if healthy == run_of else 1
            run_of = healthy
            down = {ACTIVE: DEGRADED, DEGRADED: OFFLINE, STANDBY: OFFLINE}
            up = {DEGRADED: ACTIVE, OFFLINE: STANDBY, STANDBY: ACTIVE}
            ways, need = (up, m) if healthy else (down, n)
            if mode in ways and length >= need:
                mode, length = ways[mode], 0
            await manager.record_health(2, healthy)
            assert await manager.site_mode(2) is mode

    trio.run(run)
