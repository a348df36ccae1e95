"""A look into a site's process, from outside the simulated world: what it holds to be durable, and how full it is.

A site that is asked tells of moments at which it is well. What it had told, or was about to, when its process ended, and
what it found when the next one began, only a look can tell; the checkers hold later moments against it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from claudefs_repl.observations import CursorsSeen, Measure
from claudefs_repl.topology import ClusterConfig
from nodes.journal_writer import QUEUE_MAX
from nodes.peers import PeerRecord
from tests.simulation.machine import Machine, tasks_of
from tests.simulation.network import WINDOW_BYTES

CONNECTIONS_MAX = 128 + 8 * 3 * 3 + 200
"""Clients, links of three roles with three peers, and handshakes under way."""
ACTORS_MAX = 32
"""A dozen, and a sender and a prober for each of three peers."""
TASKS_OF_CONNECTION = 3
OPEN_FILES_MAX = 64
"""A segment that is written and one that is read, of each of some journals."""


class Lookout:
    """Looks at all sites of a run whenever it is told to. Owned by the run.

    Attributes:
        cursors, measures: what it has seen, in the order of time.
    """

    def __init__(self, machines: Mapping[str, Machine], cluster: ClusterConfig, quota_bytes: int) -> None:
        self._machines = machines
        self._cluster = cluster
        self._quota_bytes = quota_bytes
        self._connected_s: dict[tuple[str, int, str], float] = {}
        self.cursors: list[CursorsSeen] = []
        self.measures: list[Measure] = []

    def look(self) -> None:
        """What every site holds now, and what of it has a limit."""
        for machine in self._machines.values():
            self.measures += _measure(machine, self._cluster, self._quota_bytes)
            if machine.running is not None:
                self.cursors.append(self._cursors(machine))

    def _cursors(self, machine: Machine) -> CursorsSeen:
        journals = machine.running.recovered.journals
        return CursorsSeen(
            time_us=machine.world.now_us(),
            site=machine.name,
            own=journals.own.journal,
            received=journals.received(),
            applied=dict(machine.running.recovered.store.applied),
            acked={record.site.name: record.acked for record in machine.peers() if self._is_ack(machine, record)},
            newest_us={log.journal: log.last_timestamp_us for log in journals.replicas.values()},
        )

    def _is_ack(self, machine: Machine, record: PeerRecord) -> bool:
        """Whether a send cursor was told by the disk that the peer has now; it may be the last word of a dead process."""
        connection = (machine.name, machine.lives, record.site.name)
        if record.connected_at_s is not None:
            self._connected_s[connection] = record.connected_at_s
        return self._connected_s.get(connection, 0.0) > self._machines[record.site.name].disk_since_s


def _measure(machine: Machine, cluster: ClusterConfig, quota_bytes: int) -> Iterator[Measure]:
    now_us, now_s = machine.world.now_us(), machine.world.now_s()
    waiting = max((end.under_way for end in machine.ends), default=0)
    yield Measure(now_us, machine.name, "open_connections", len(machine.ends), CONNECTIONS_MAX)
    yield Measure(now_us, machine.name, "unread_bytes", waiting, WINDOW_BYTES)
    yield Measure(now_us, machine.name, "disk_bytes", machine.disk.used_bytes(), quota_bytes)
    if machine.running is None or machine.process is None:
        return
    tasks = sum(1 for _ in tasks_of(machine.process))
    yield Measure(now_us, machine.name, "tasks", tasks, ACTORS_MAX + TASKS_OF_CONNECTION * len(machine.ends))
    yield Measure(now_us, machine.name, "open_files", machine.process.open_files, OPEN_FILES_MAX)
    queue_max = machine.running.writes.statistics().max_buffer_size
    yield Measure(now_us, machine.name, "requests_queued_max", queue_max, QUEUE_MAX)
    # A peer that refuses a site may have it wait for as long as it is locked out.
    pause_max_s = max(cluster.replication.reconnect_max_s, cluster.rate_limit.lockout_duration_secs)
    for record in machine.peers():
        if record.progress is not None:
            batches = record.progress.batches_in_flight
            yield Measure(now_us, machine.name, "batches_in_flight", batches, cluster.replication.window_batches)
        if record.retry_at_s is not None:
            yield Measure(now_us, machine.name, "pause_before_dialling_s", record.retry_at_s - now_s, pause_max_s)
