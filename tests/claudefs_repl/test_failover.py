"""The failover machine: thresholds at their exact boundaries, the manager against a naive model."""

from __future__ import annotations

import inspect

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from claudefs_repl.error import SiteUnknown
from claudefs_repl.failover import (
    EVENTS_MAX,
    ConflictRequiresResolution,
    FailoverManager,
    SiteDemoted,
    SiteFailoverState,
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


@pytest.mark.parametrize(("successes", "mode"), [(M - 1, DEGRADED), (M, ACTIVE), (M + 1, ACTIVE)])
async def test_a_degraded_site_takes_exactly_m_successes(manager, successes, mode):
    """Fewer than M successes leave a degraded site degraded."""
    await report(manager, False, N)
    await report(manager, True, successes)
    assert await manager.site_mode(2) is mode


@pytest.mark.parametrize("mode", [ACTIVE, DEGRADED, STANDBY])
async def test_a_success_starts_the_count_of_failures_again(mode):
    """N - 1 failures, a success, N - 1 failures change nothing from any mode; the Nth in a row does."""
    manager = FailoverManager(FailoverConfig(failure_threshold=N, recovery_threshold=M), 1)
    await manager.register_site(2, initial=mode)
    for _ in range(3):
        assert await report(manager, False, N - 1) == []
        assert await report(manager, True, 1) == []
    assert len(await report(manager, False, N)) == 1


@pytest.mark.parametrize("mode", [DEGRADED, OFFLINE, STANDBY])
async def test_a_failure_starts_the_count_of_successes_again(mode):
    """M - 1 successes, a failure, M - 1 successes change nothing from any mode; the Mth in a row does."""
    manager = FailoverManager(FailoverConfig(failure_threshold=N, recovery_threshold=M), 1)
    await manager.register_site(2, initial=mode)
    for _ in range(3):
        assert await report(manager, True, M - 1) == []
        assert await report(manager, False, 1) == []
    assert len(await report(manager, True, M)) == 1


@pytest.mark.parametrize("mode", list(SiteMode))
async def test_alternating_reports_change_no_mode(mode):
    """From every mode, whichever report comes first."""
    for first in (False, True):
        manager = FailoverManager(FailoverConfig(failure_threshold=2, recovery_threshold=2), 1)
        await manager.register_site(2, initial=mode)
        for turn in range(40):
            assert await report(manager, first ^ (turn % 2 == 1), 1) == []
        assert await manager.site_mode(2) is mode


async def test_thresholds_of_one_step_at_every_report():
    """With N = M = 1 each report moves a site by one step, and never by two."""
    manager = FailoverManager(FailoverConfig(failure_threshold=1, recovery_threshold=1), 1)
    await manager.register_site(2)
    seen = []
    for healthy in (False, False, False, True, True, True):
        await manager.record_health(2, healthy)
        seen.append(await manager.site_mode(2))
    assert seen == [DEGRADED, OFFLINE, OFFLINE, STANDBY, ACTIVE, ACTIVE]


async def test_each_step_down_tells_the_failures_that_caused_it(manager):
    """A demotion's reason counts the failures of its own step, not those before."""
    reasons = [event.reason for event in await report(manager, False, 2 * N)]
    assert reasons == [f"{N} consecutive failed checks"] * 2


async def test_an_offline_site_stays_offline_without_further_events(manager):
    """Failures of a site that is offline change nothing, however many come."""
    await report(manager, False, 2 * N)
    assert await report(manager, False, 100) == []
    assert await manager.failover_counts() == {2: 2}


@pytest.mark.parametrize("now_us", [0, 1, (1 << 63) - 1, (1 << 64) - 1])
async def test_the_time_of_a_report_decides_nothing(manager, now_us):
    """Counts decide, not times: extremes, and a time that goes back, are only remembered."""
    await manager.record_health(2, False, now_us=now_us)
    await manager.record_health(2, False, now_us=0)
    await manager.record_health(2, False, now_us=now_us)
    (state,) = await manager.all_states()
    assert (state.mode, state.last_check_us) == (DEGRADED, now_us)


async def test_many_sites_are_independent(manager):
    """Each of many sites is where its own reports lead, whatever those of the others are."""
    for site in range(10, 10 + 3 * N):
        await manager.register_site(site)
    for turn in range(2 * N):
        for site in range(10, 10 + 3 * N):
            await manager.record_health(site, turn >= site - 10)
    modes = {state.site_id - 10: state.mode for state in await manager.all_states() if state.site_id >= 10}
    # Site f had f failures, then 2N - f successes.
    expected = {}
    for f in range(3 * N):
        mode = OFFLINE if f >= 2 * N else DEGRADED if f >= N else ACTIVE
        if mode is DEGRADED and 2 * N - f >= M:
            mode = ACTIVE
        expected[f] = mode
    assert modes == expected


class Naive:
    """What the manager has to do, without locks and as plainly as it can be said."""

    def __init__(self, n, m):
        self.n, self.m = n, m
        self.rows = {}
        self.events = []

    def apply(self, method, *args):
        return getattr(self, method)(*args)

    def change(self, site, mode, event):
        self.rows[site].update(mode=mode, run=0, count=self.rows[site]["count"] + 1)
        self.events.append(event)
        return [event]

    def register_site(self, site):
        self.rows.setdefault(site, {"mode": ACTIVE, "kind": None, "run": 0, "count": 0, "pinned": False})

    def record_health(self, site, healthy):
        if site not in self.rows:
            return []
        row = self.rows[site]
        row["run"] = row["run"] + 1 if row["kind"] is healthy else 1
        row["kind"] = healthy
        if row["pinned"] or row["run"] < (self.m if healthy else self.n):
            return []
        why = f"{row['run']} consecutive failed checks"
        match row["mode"], healthy:
            case SiteMode.ACTIVE_READ_WRITE, False:
                return self.change(site, DEGRADED, SiteDemoted(site, DEGRADED, why))
            case ((SiteMode.DEGRADED_ACCEPT_WRITES | SiteMode.STANDBY_READ_ONLY), False):
                return self.change(site, OFFLINE, SiteDemoted(site, OFFLINE, why))
            case SiteMode.OFFLINE, True:
                return self.change(site, STANDBY, SitePromoted(site, STANDBY))
            case ((SiteMode.DEGRADED_ACCEPT_WRITES | SiteMode.STANDBY_READ_ONLY), True):
                return self.change(site, ACTIVE, SiteRecovered(site))
        return []

    def force_mode(self, site, mode, pin):
        if site not in self.rows:
            return "unknown"
        order = [OFFLINE, STANDBY, DEGRADED, ACTIVE]
        row, events = self.rows[site], []
        if mode is not row["mode"]:
            down = order.index(mode) < order.index(row["mode"])
            events = self.change(site, mode, SiteDemoted(site, mode, "forced") if down else SitePromoted(site, mode))
        row.update(run=0, pinned=row["pinned"] or pin)
        return events

    def release(self, site):
        if site not in self.rows:
            return "unknown"
        self.rows[site].update(run=0, pinned=False)
        return None

    def report_conflict(self, site, inode):
        self.events.append(ConflictRequiresResolution(site, inode))

    def drain_events(self):
        events, self.events = self.events, []
        return events

    def site_mode(self, site):
        return self.rows[site]["mode"] if site in self.rows else None

    def writable_sites(self):
        return sorted(site for site, row in self.rows.items() if row["mode"] in (ACTIVE, DEGRADED))

    def readable_sites(self):
        return sorted(site for site, row in self.rows.items() if row["mode"] is not OFFLINE)

    def failover_counts(self):
        return {site: row["count"] for site, row in sorted(self.rows.items())}


async def call(manager, method, args):
    """One call of the manager, as its naive model takes it."""
    options = {"pin": args[2]} if method == "force_mode" else {}
    try:
        return await getattr(manager, method)(*args[:2], **options)
    except SiteUnknown:
        return "unknown"


SITES = st.integers(2, 4)
CALLS = st.one_of(
    st.tuples(st.just("register_site"), SITES),
    *[st.tuples(st.just("record_health"), SITES, st.booleans())] * 4,
    st.tuples(st.just("force_mode"), SITES, st.sampled_from(SiteMode), st.booleans()),
    st.tuples(st.just("release"), SITES),
    st.tuples(st.just("report_conflict"), SITES, st.integers(0, 5)),
    st.tuples(st.just("site_mode"), SITES),
    *[st.tuples(st.just(name)) for name in ("drain_events", "writable_sites", "readable_sites", "failover_counts")],
)


@settings(deadline=None)
@given(
    st.lists(st.lists(CALLS, max_size=20), min_size=1, max_size=6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 40),
)
def test_concurrent_callers_see_one_order_of_calls(tasks, n, m, cancel_after):
    """What many tasks got, one of them cancelled in between, is what one caller gets from a naive model in that order."""
    happened = []

    async def run():
        manager = FailoverManager(FailoverConfig(failure_threshold=n, recovery_threshold=m), 1)
        await manager.register_site(2)

        async def caller(calls):
            for method, *args in calls:
                got = await call(manager, method, args)
                happened.append((method, args, got))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as doomed:
                async with trio.open_nursery() as others:
                    for calls in tasks[1:]:
                        nursery.start_soon(caller, calls)
                    others.start_soon(caller, tasks[0])
                    for _ in range(cancel_after):
                        await trio.lowlevel.checkpoint()
                    doomed.cancel()
        return [(state.site_id, state.mode, state.pinned) for state in await manager.all_states()]

    rows = trio.run(run)
    model = Naive(n, m)
    model.register_site(2)
    for method, args, got in happened:
        assert model.apply(method, *args) == got, (method, args)
    assert rows == [(site, row["mode"], row["pinned"]) for site, row in sorted(model.rows.items())]


async def test_reports_from_many_tasks_are_all_counted():
    """Of a hundred tasks that report at once none is lost: exactly the Nth and the 2Nth failure change the mode."""
    manager = FailoverManager(FailoverConfig(failure_threshold=40, recovery_threshold=M), 1)
    await manager.register_site(2)
    got = []

    async def fail():
        got.append(await manager.record_health(2, False))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(fail)
    assert [len(events) for events in got] == [int(turn in (40, 80)) for turn in range(1, 101)]
    assert (await manager.all_states())[0].consecutive_failures == 20


CHANGES = {
    "register_site": (9,),
    "record_health": (2, False),
    "force_mode": (2, OFFLINE, True),
    "release": (3,),
    "report_conflict": (2, 7),
    "drain_events": (),
    "site_mode": (2,),
    "writable_sites": (),
    "readable_sites": (),
    "all_states": (),
    "failover_counts": (),
}
"""A call of every method; those that can change something do."""


def test_no_method_is_left_out():
    """Every method of the manager is cancelled in the tests below."""
    assert CHANGES.keys() == {
        name for name, method in inspect.getmembers(FailoverManager, inspect.iscoroutinefunction) if name[0] != "_"
    }


async def prepared():
    """A manager at which every call of CHANGES has something to change."""
    manager = FailoverManager(FailoverConfig(failure_threshold=N, recovery_threshold=M), 1)
    for site in (2, 3):
        await manager.register_site(site)
    await manager.force_mode(3, STANDBY, pin=True)
    await report(manager, False, N - 1)
    return manager


async def picture(manager):
    """All that a caller can know of a manager; its events are drained. A lock that is held would hold this for ever."""
    with trio.fail_after(30):
        states = await manager.all_states()
        assert all(isinstance(state, SiteFailoverState) for state in states)
        return states, await manager.drain_events()


async def outcomes(method):
    """What there is before a call, and after it has happened, with its result."""
    before = await picture(await prepared())
    manager = await prepared()
    result = await call(manager, method, CHANGES[method])
    return before, (result, *await picture(manager))


class CancelledAt:
    """Awaits something and cancels a scope at its `number`-th suspension, 0 being before the first step."""

    def __init__(self, awaitable, scope, number):
        self.awaitable, self.scope, self.number = awaitable, scope, number
        self.suspensions = 0

    def __await__(self):
        if self.number == 0:
            self.scope.cancel()
        inner = self.awaitable.__await__()
        step, value = inner.send, None
        while True:
            try:
                message = step(value)
            except StopIteration as stop:
                return stop.value
            self.suspensions += 1
            if self.suspensions == self.number:
                self.scope.cancel()
            try:
                step, value = inner.send, (yield message)
            except BaseException as error:
                step, value = inner.throw, error


async def cancelled_call(manager, method, number):
    """Call, cancelled at a suspension; whether it was, its result, and how often it was suspended."""
    result = None
    with trio.CancelScope() as scope:
        driven = CancelledAt(call(manager, method, CHANGES[method]), scope, number)
        result = await driven
    return scope.cancelled_caught, result, driven.suspensions


@pytest.mark.parametrize("method", CHANGES)
async def test_a_call_cancelled_at_any_checkpoint_has_happened_whole_or_not_at_all(method, autojump_clock):
    """Cancelled before its first step and at each suspension: unchanged, or as after the call; the lock is free."""
    before, after = await outcomes(method)
    number = 0
    while True:
        manager = await prepared()
        was_cancelled, result, suspensions = await cancelled_call(manager, method, number)
        now = await picture(manager)
        assert (now == before) if was_cancelled else ((result, *now) == after), (method, number)
        if number > suspensions:
            break
        number += 1
    assert number >= 2, "there was no checkpoint to be cancelled at"


@pytest.mark.parametrize("method", CHANGES)
async def test_a_call_cancelled_while_it_waits_for_another_has_not_happened(method, autojump_clock):
    """A caller that is cancelled in the queue leaves it; the one behind it is served."""
    before, _ = await outcomes(method)
    manager = await prepared()
    behind = []

    async def wait_behind():
        behind.append(await manager.site_mode(2))

    async with trio.open_nursery() as nursery, manager._lock:
        scope = trio.CancelScope()

        async def doomed():
            with scope:
                await call(manager, method, CHANGES[method])

        nursery.start_soon(doomed)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait_behind)
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    assert scope.cancelled_caught
    assert behind == [ACTIVE]
    assert await picture(manager) == before


@pytest.mark.parametrize("method", CHANGES)
async def test_a_call_cancelled_as_it_gets_the_lock_has_happened_whole(method, autojump_clock):
    """The lock is handed over and then the caller cancelled: the call goes on to its end, and the lock is free again."""
    before, after = await outcomes(method)
    manager = await prepared()
    result = []
    scope = trio.CancelScope()

    async def late():
        with scope:
            result.append(await call(manager, method, CHANGES[method]))

    async with trio.open_nursery() as nursery:
        async with manager._lock:
            nursery.start_soon(late)
            await trio.testing.wait_all_tasks_blocked()
        scope.cancel()
    now = await picture(manager)
    assert ((result[0], *now) == after) if result else (now == before)
    assert result, "a lock that was handed over was lost"


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
