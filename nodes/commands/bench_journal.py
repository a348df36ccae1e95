"""What the journal and its replication can do: appends, a backlog's drain, live delay.

Times are read where the measuring process sees them, so they include its own polling (`POLL_S`) and are never too good.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from claudefs_repl.topology import ClusterConfig
from nodes.client import SiteClient, connect_site
from nodes.commands import ops
from nodes.commands.figures import Figure, Scale, percentile
from nodes.commands.lab import NotInTime, process_use, temporary_cluster, wait_writable
from nodes.event_reader import merge_logs
from nodes.launcher import Launcher
from nodes.runtime import SystemClock, events_path

ENTRY_BYTES = 200
FILES = 64
"""Files that are written to: enough to spread over all shards."""
WRITERS = (1, 64)
WRITERS_A_CONNECTION = 16
"""What one connection keeps under way at once."""
DRAIN_TIMEOUT_S = 300.0
POLL_S = 0.01
LIVE_POLL_S = 0.005
"""Between two looks at the peer under a steady load: fine enough for the delay, seldom enough to cost little."""
LIVE_STEP_S = 0.01
"""The live load comes in one request for so long, which is how a busy client's writes come."""
_PREFIX = "claudefs-repl-bench-"


@dataclass(slots=True)
class Target:
    """The last entry of each shard that was written: what a cursor has to reach.

    Attributes:
        journal: whose entries, as status names it.
    """

    journal: str
    seqs: dict[int, int] = field(default_factory=dict)

    def add(self, results: list[list[int]]) -> None:
        """Take the answer of a submit."""
        for _, shard, seq in results:
            self.seqs[shard] = max(seq, self.seqs.get(shard, 0))

    def reached(self, cursors: Mapping[str, list[int]]) -> bool:
        """Whether cursors cover all of it."""
        return covers(cursors.get(self.journal, []), self.seqs)


def covers(cursor: list[int], seqs: Mapping[int, int]) -> bool:
    """Whether a cursor, one seq for each shard, is at or beyond some entries."""
    return all(shard < len(cursor) and cursor[shard] >= seq for shard, seq in seqs.items())


async def cursors_of(client: SiteClient) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """A site's received (durable) and applied cursors, by the cheapest question that tells them."""
    told = await client.call("hello")
    if "received" not in told:
        told = await client.call("status", scope="site")
    return told["received"], told["applied"]


async def journal_of(client: SiteClient) -> str:
    """The name of a site's own journal in cursors."""
    status = await client.call("status", scope="site")
    return f"{status['site_id']}:{status['incarnation']}"


async def make_files(client: SiteClient) -> list[int]:
    """Empty files to write to; their inodes."""
    steps = [ops.create_nameless(mode=0o644, uid=os.getuid(), gid=os.getgid(), mtime_ns=0) for _ in range(FILES)]
    steps += [ops.name_file(-1 - index, 1, b"bench-%d" % index) for index in range(FILES)]
    answer = await client.call("submit", ops=steps)
    return [result[0] for result in answer["results"][:FILES]]


def append_op(inodes: list[int], index: int) -> ops.Op:
    """The index-th entry: each file grows by one entry in turn."""
    turn, which = divmod(index, len(inodes))
    data = index.to_bytes(8, "little") * (ENTRY_BYTES // 8)
    return {"op": "write", "inode": inodes[which], "offset": turn * ENTRY_BYTES, "data": data}


async def measure_appends(parent: Path, scale: Scale) -> list[Figure]:
    """Durable local appends at one site, each writer waiting for its answer before its next entry."""
    figures: list[Figure] = []
    async with temporary_cluster(prefix=_PREFIX, sites=1, parent=parent) as (_, launcher):
        name = launcher.cluster.sites[0].name
        await launcher.start(name)
        await wait_writable(launcher.cluster, name)
        start = 0
        for writers in WRITERS:
            before = process_use(launcher.pid(name))
            delays_s, duration_s = await _append(launcher.cluster, name, writers, scale.append_s, start)
            cpu_s = process_use(launcher.pid(name)).cpu_s - before.cpu_s
            start += len(delays_s)
            label = f"{writers}_writer" + ("s" if writers > 1 else "")
            figures += [
                Figure(
                    f"{label}_appends_per_s", len(delays_s) / duration_s, f"{ENTRY_BYTES}-byte entries answered durable"
                ),
                Figure(f"{label}_p50_ms", percentile(delays_s, 0.5) * 1e3, "from the request to its answer"),
                Figure(f"{label}_p99_ms", percentile(delays_s, 0.99) * 1e3, "from the request to its answer"),
                Figure(f"{label}_cpu_s_per_million", cpu_s / len(delays_s) * 1e6, "CPU of the site"),
            ]
        figures.append(_peak(launcher, name))
    return figures


async def _append(
    cluster: ClusterConfig, name: str, writers: int, duration_s: float, start: int
) -> tuple[list[float], float]:
    """Each answer's delay in seconds, and how long it went on."""
    delays_s: list[float] = []
    next_index = start

    async def write(client: SiteClient, inodes: list[int]) -> None:
        nonlocal next_index
        while trio.current_time() < end_s:
            step = append_op(inodes, next_index)
            next_index += 1
            sent_s = trio.current_time()
            await client.call("submit", ops=[step])
            delays_s.append(trio.current_time() - sent_s)

    async def connect(count: int) -> None:
        async with connect_site(cluster, name, window=count) as client, trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(write, client, inodes)

    async with connect_site(cluster, name) as client:
        inodes = await make_files(client)
    began_s = trio.current_time()
    end_s = began_s + duration_s
    async with trio.open_nursery() as nursery:
        for first in range(0, writers, WRITERS_A_CONNECTION):
            nursery.start_soon(connect, min(WRITERS_A_CONNECTION, writers - first))
    return delays_s, trio.current_time() - began_s


async def measure_drain(parent: Path, scale: Scale) -> list[Figure]:
    """A backlog that one site wrote while its peer was down, from their connection to durable and to applied."""
    async with temporary_cluster(prefix=_PREFIX, sites=2, parent=parent) as (_, launcher):
        cluster = launcher.cluster
        one, other = (site.name for site in cluster.sites)
        await launcher.start_all()
        for name in (one, other):
            await wait_writable(cluster, name)
        await launcher.stop(other)
        async with connect_site(cluster, one) as client:
            target = Target(await journal_of(client))
            log_before = (await client.call("status", scope="site"))["journal"]["bytes"]
            submit_s = await _write_backlog(client, target, scale.drain_entries)
            log_bytes = (await client.call("status", scope="site"))["journal"]["bytes"] - log_before
        use_before = process_use(launcher.pid(one))
        clock = SystemClock()
        started_us = clock.now_us()
        await launcher.start(other)
        durable_us, applied_us, durable_cpu_s = await _watch_drain(launcher, one, other, target)
        connected_us = _connected_us(cluster, one, other, started_us)
        entries = scale.drain_entries
        drain_s, apply_s = (durable_us - connected_us) / 1e6, (applied_us - connected_us) / 1e6
        receiver_cpu_s = process_use(launcher.pid(other)).cpu_s
        sender_cpu_s = process_use(launcher.pid(one)).cpu_s - use_before.cpu_s
        return [
            Figure("backlog_entries", entries, f"{ENTRY_BYTES} bytes of data each, written in requests of 1,024"),
            Figure("written_per_s", entries / submit_s, "durable and applied where they were written"),
            Figure("durable_entries_per_s", entries / drain_s, "from the connection until all are durable at the peer"),
            Figure("durable_mb_per_s", log_bytes / drain_s / 1e6, "the same, in bytes of the journal"),
            Figure("durable_s", drain_s, "the same, as a time"),
            Figure(
                "durable_from_start_entries_per_s",
                entries / ((durable_us - started_us) / 1e6),
                "from the start of the peer's process until all are durable there",
            ),
            Figure("applied_entries_per_s", entries / apply_s, "from the connection until all are in the peer's view"),
            Figure("applied_s", apply_s, "the same, as a time"),
            Figure("sender_cpu_s_per_million", sender_cpu_s / entries * 1e6, "CPU of the sender for the whole drain"),
            Figure(
                "durable_cpu_s_per_million", durable_cpu_s / entries * 1e6, "CPU of the receiver until all is durable"
            ),
            Figure(
                "applied_cpu_s_per_million", receiver_cpu_s / entries * 1e6, "CPU of the receiver, start-up included"
            ),
            _peak(launcher, one),
            _peak(launcher, other),
        ]


async def _write_backlog(client: SiteClient, target: Target, entries: int) -> float:
    """Write entries in large requests, several under way; how long it took, seconds."""
    inodes = await make_files(client)
    began_s = trio.current_time()
    pending = []
    for first in range(0, entries, ops.SUBMIT_OPS_MAX):
        steps = [append_op(inodes, index) for index in range(first, min(entries, first + ops.SUBMIT_OPS_MAX))]
        pending.append(await client.send("submit", ops=steps))
    for answer in pending:
        target.add((await answer)["results"])
    return trio.current_time() - began_s


async def _watch_drain(launcher: Launcher, one: str, other: str, target: Target) -> tuple[int, int, float]:
    """When all was durable and when all was applied (wall clock, microseconds), and the CPU used until durable."""
    clock = SystemClock()
    durable_us, durable_cpu_s = 0, 0.0
    with trio.move_on_after(DRAIN_TIMEOUT_S):
        async with connect_site(launcher.cluster, other) as client:
            while True:
                received, applied = await cursors_of(client)
                now_us = clock.now_us()
                if not durable_us and target.reached(received):
                    durable_us, durable_cpu_s = now_us, process_use(launcher.pid(other)).cpu_s
                if durable_us and target.reached(applied):
                    return durable_us, now_us, durable_cpu_s
                await trio.sleep(POLL_S)
    raise NotInTime(f"site {other} has not caught up with {one} after {DRAIN_TIMEOUT_S:g} s; see status and logs")


def _connected_us(cluster: ClusterConfig, one: str, other: str, started_us: int) -> int:
    """When the conduit to the restarted peer came up, as the sender's event log tells it (wall clock, microseconds).

    Raises:
        NotInTime: it tells of none.
    """
    for event in merge_logs([events_path(cluster.site(one))]):
        if event["event"] == "conduit_connected" and event.get("peer") == other and event["time_us"] >= started_us:
            return int(event["time_us"])
    raise NotInTime(f"the event log of {one} tells of no conduit to {other}")


async def measure_live(parent: Path, scale: Scale) -> list[Figure]:
    """The delay from a client's request at one site until its entries are durable, and visible, at the other."""
    async with temporary_cluster(prefix=_PREFIX, sites=2, parent=parent) as (_, launcher):
        cluster = launcher.cluster
        one, other = (site.name for site in cluster.sites)
        await launcher.start_all()
        for name in (one, other):
            await wait_writable(cluster, name)
        cpu_before_s = [process_use(launcher.pid(name)).cpu_s for name in (one, other)]
        live = _Live()
        async with connect_site(cluster, one, window=32) as writer, connect_site(cluster, other) as watcher:
            live.journal = await journal_of(writer)
            inodes = await make_files(writer)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(live.watch, watcher)
                rate = await live.write(writer, inodes, scale, nursery)
        entries = live.entries
        cpu_s = [
            process_use(launcher.pid(name)).cpu_s - was for name, was in zip((one, other), cpu_before_s, strict=True)
        ]
        return [
            Figure("sent_per_s", rate, f"{ENTRY_BYTES}-byte entries; {scale.live_entries_per_s:,} were wanted"),
            Figure(
                "answered_per_s", live.answered_rate, "the same, up to the last answer: less if the site was slower"
            ),
            *_delays("answered", live.answered_s, "until the site answered: durable there"),
            *_delays("durable", live.durable_s, "until durable at the peer"),
            *_delays("applied", live.applied_s, "until visible at the peer"),
            Figure("poll_ms", live.poll_s * 1e3, "mean time between two looks at the peer; delays include up to one"),
            Figure("writer_cpu_s_per_million", cpu_s[0] / entries * 1e6, "CPU of the site that was written to"),
            Figure("peer_cpu_s_per_million", cpu_s[1] / entries * 1e6, "CPU of its peer"),
            _peak(launcher, one),
            _peak(launcher, other),
        ]


class _Live:
    """A steady load and the watch over its arrival. Owned by `measure_live`."""

    def __init__(self) -> None:
        self.journal = ""
        self.entries = 0
        self.answered_s: list[float] = []
        self.durable_s: list[float] = []
        self.applied_s: list[float] = []
        self.poll_s = 0.0
        self._began_s = 0.0
        self._last_answer_s = 0.0
        self._not_durable: list[tuple[float, dict[int, int]]] = []
        self._not_applied: list[tuple[float, dict[int, int]]] = []
        self._all_sent = False
        self._under_way = 0

    @property
    def answered_rate(self) -> float:
        """Entries per second from the first request to the last answer."""
        return self.entries / (self._last_answer_s - self._began_s)

    async def write(self, client: SiteClient, inodes: list[int], scale: Scale, nursery: trio.Nursery) -> float:
        """Send one request every LIVE_STEP_S, whether the earlier ones are answered or not; entries per second."""
        each = round(scale.live_entries_per_s * LIVE_STEP_S)
        began_s = self._began_s = trio.current_time()
        for step in range(round(scale.live_s / LIVE_STEP_S)):
            await trio.sleep_until(began_s + step * LIVE_STEP_S)
            steps = [append_op(inodes, index) for index in range(self.entries, self.entries + each)]
            self.entries += each
            self._under_way += 1
            nursery.start_soon(self._submit, client, steps, trio.current_time())
        duration_s = trio.current_time() - began_s + LIVE_STEP_S
        self._all_sent = True
        return self.entries / duration_s

    async def _submit(self, client: SiteClient, steps: list[ops.Op], sent_s: float) -> None:
        answer = await client.call("submit", ops=steps)
        self._last_answer_s = trio.current_time()
        self.answered_s.append(self._last_answer_s - sent_s)
        target = Target(self.journal)
        target.add(answer["results"])
        self._not_durable.append((sent_s, target.seqs))
        self._not_applied.append((sent_s, target.seqs))
        self._under_way -= 1

    async def watch(self, client: SiteClient) -> None:
        """Look at the peer's cursors until everything that was sent has arrived and is applied.

        Raises:
            NotInTime: it does not.
        """
        began_s = trio.current_time()
        polls = 0
        with trio.move_on_after(DRAIN_TIMEOUT_S):
            while not self._all_sent or self._under_way or self._not_applied:
                received, applied = await cursors_of(client)
                now_s = trio.current_time()
                polls += 1
                self._not_durable = _take(self._not_durable, received.get(self.journal, []), now_s, self.durable_s)
                self._not_applied = _take(self._not_applied, applied.get(self.journal, []), now_s, self.applied_s)
                await trio.sleep(LIVE_POLL_S)
            self.poll_s = (trio.current_time() - began_s) / polls
            return
        raise NotInTime(f"the peer did not get everything within {DRAIN_TIMEOUT_S:g} s; see status and logs")


def _take(
    waiting: list[tuple[float, dict[int, int]]], cursor: list[int], now_s: float, delays_s: list[float]
) -> list[tuple[float, dict[int, int]]]:
    """Note the delay of what a cursor has reached; the rest still waits."""
    rest = []
    for sent_s, seqs in waiting:
        if covers(cursor, seqs):
            delays_s.append(now_s - sent_s)
        else:
            rest.append((sent_s, seqs))
    return rest


def _delays(name: str, delays_s: list[float], meaning: str) -> list[Figure]:
    return [
        Figure(f"{name}_p50_ms", percentile(delays_s, 0.5) * 1e3, meaning),
        Figure(f"{name}_p99_ms", percentile(delays_s, 0.99) * 1e3, meaning),
    ]


def _peak(launcher: Launcher, name: str) -> Figure:
    used = process_use(launcher.pid(name)).peak_bytes
    return Figure(f"{name}_peak_mib", used / 2**20, "the most memory of the process at once (VmHWM)")
