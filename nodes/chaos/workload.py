"""The clients of a run: at every site some, each asking for one random operation after another, remembering the answers."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from claudefs_repl.journal import Incarnation, JournalId
from claudefs_repl.observations import Acknowledged, Attempt, Outcome
from claudefs_repl.topology import ClusterConfig
from nodes.chaos.history import History, acknowledged_entries
from nodes.chaos.operation_mix import Chooser, Op, plan_ops
from nodes.chaos.scenario import WorkloadPlan
from nodes.client import ClientError, SiteClient, SiteUnreachable, connect_site
from nodes.seams import WallClock

STEP_TIMEOUT_S = 4.0
"""A client that has no answer by then takes its request for unknown and connects again, as people do."""
RECONNECT_S = 0.1
SHARED = b"/shared"
SHARED_TIMEOUT_S = 60.0


@dataclass(slots=True)
class _Door:
    """The clients of one site: whether they may ask it, and a way to end what they have under way."""

    is_open: bool = True
    opened: trio.Event = field(default_factory=trio.Event)
    scopes: set[trio.CancelScope] = field(default_factory=set)


class Workload:
    """All clients of a run. Owned by the runner.

    Attributes:
        history: what they saw.
    """

    def __init__(self, cluster: ClusterConfig, plan: WorkloadPlan, wall_clock: WallClock) -> None:
        self._cluster = cluster
        self._plan = plan
        self._wall_clock = wall_clock
        self._doors = {site.name: _Door() for site in cluster.sites}
        self.history = History()

    def bar(self, site: str) -> None:
        """From now on no client hears anything of a site; what is under way stays unknown."""
        door = self._doors[site]
        door.is_open = False
        for scope in door.scopes:
            scope.cancel()

    def admit(self, site: str) -> None:
        """Clients may ask the site again."""
        door = self._doors[site]
        door.is_open = True
        door.opened.set()
        door.opened = trio.Event()

    async def prepare(self) -> None:
        """Make the directory that all clients share, and return when every site has it.

        Raises:
            SiteUnreachable, ClientError, trio.TooSlowError: that cannot be done.
        """
        first = self._cluster.sites[0].name
        with trio.fail_after(SHARED_TIMEOUT_S):
            async with connect_site(self._cluster, first) as client:
                journal = await _journal_of(client)
                now_ns = self._wall_clock.now_us() * 1000
                ops: list[Op] = [_make_dir(1, SHARED[1:], now_ns)]
                await self._submit(client, journal, 0, "mkdir", ops)
            for site in self._cluster.sites:
                async with connect_site(self._cluster, site.name) as client:
                    while await _resolve(client, SHARED) is None:
                        await trio.sleep(RECONNECT_S)

    async def run(self) -> None:
        """Ask until the duration of the plan is over."""
        with trio.move_on_after(self._plan.duration_s):
            async with trio.open_nursery() as nursery:
                for site, count in self._plan.clients.items():
                    for client in range(1, count + 1):
                        nursery.start_soon(self._run_client, site, client)

    async def _run_client(self, site: str, number: int) -> None:
        plan = self._plan
        chooser = Chooser(
            seed=plan.seed,
            site=site,
            client=number,
            mix=plan.mix,
            shared=plan.shared,
            names=plan.shared_names,
            bytes_max=plan.write_bytes_max,
        )
        door = self._doors[site]
        while True:
            while not door.is_open:
                await door.opened.wait()
            with trio.CancelScope() as scope, suppress(SiteUnreachable, ClientError, trio.TooSlowError):
                door.scopes.add(scope)
                try:
                    async with connect_site(self._cluster, site) as client:
                        await self._ask(client, number, chooser)
                finally:
                    door.scopes.discard(scope)
            await trio.sleep(RECONNECT_S)

    async def _ask(self, client: SiteClient, number: int, chooser: Chooser) -> None:
        """One operation after another on one connection, at the rate of the plan if the answers come in time."""
        with trio.fail_after(STEP_TIMEOUT_S):
            journal = await _journal_of(client)
        pause_s = 1.0 / self._plan.ops_per_s
        next_s = trio.current_time()
        while True:
            step = chooser.next()
            with trio.fail_after(STEP_TIMEOUT_S):
                ops = await plan_ops(step, partial(_resolve, client), self._wall_clock.now_us() * 1000)
                if ops:
                    await self._submit(client, journal, number, step.kind, ops)
            next_s = max(next_s + pause_s, trio.current_time())
            await trio.sleep_until(next_s)

    async def _submit(self, client: SiteClient, journal: JournalId, number: int, kind: str, ops: list[Op]) -> None:
        """Ask for a write, and remember how it ended, whatever happens meanwhile."""
        began_us = self._wall_clock.now_us()
        outcome, code = Outcome.UNKNOWN, None
        entries: tuple[Acknowledged, ...] = ()
        self.history.note_contents(client.name, ops)
        try:
            answer = await client.call("submit", ops=ops)
            entries = acknowledged_entries(journal, ops, answer["results"])
            refused = answer["error"]
            outcome = Outcome.ACKNOWLEDGED if refused is None else Outcome.REFUSED
            code = None if refused is None else refused["code"]
        except ClientError as error:
            outcome, code = Outcome.REFUSED, error.code
        finally:
            ended_us = self._wall_clock.now_us()
            self.history.attempts.append(Attempt(client.name, number, began_us, ended_us, kind, outcome, code, entries))


async def _journal_of(client: SiteClient) -> JournalId:
    """The journal that a site writes into, for as long as its process lives."""
    status = await client.call("status", scope="site")
    return JournalId(status["site_id"], Incarnation(int(status["incarnation"], 16)))


async def _resolve(client: SiteClient, path: bytes) -> Mapping[str, Any] | None:
    """What is at a path, None if nothing is.

    Raises:
        ClientError: the site serves no reads.
    """
    try:
        found: Mapping[str, Any] = await client.call("resolve", path=path)
    except ClientError as error:
        if error.code in ("ENOENT", "ENOTDIR"):
            return None
        raise
    return found


def _make_dir(parent: int, name: bytes, now_ns: int) -> Op:
    owner = {"uid": 1000, "gid": 1000, "mtime_ns": now_ns}
    return {"op": "mkdir", "parent": parent, "name": name, "mode": 0o755, **owner, "exist_ok": True}
