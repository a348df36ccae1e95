"""The clients of a run: at every site some, each asking for one random operation after another, remembering the answers."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from claudefs_repl.journal import Incarnation, JournalId
from claudefs_repl.observations import Acknowledged, Attempt, Outcome
from nodes.chaos.history import History, acknowledged_entries
from nodes.chaos.operation_mix import Chooser, Op, Step, plan_ops
from nodes.client import ClientError, SiteClient, SiteUnreachable
from tests.simulation.cluster import Cluster
from tests.simulation.meetings import attend
from tests.simulation.private_files import PrivateFiles

STEP_TIMEOUT_S = 3.0
RECONNECT_S = 0.2
PRIVATE = 0.1
"""How often a client works on the file that nobody else has."""


class Workload:
    """All clients of a run.

    Attributes:
        history: what they saw.
        private: files of which it is known what they show.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.history = History()
        self.private = PrivateFiles()

    async def run(self) -> None:
        """Ask until cancelled."""
        async with trio.open_nursery() as nursery:
            for name in self._cluster.machines:
                for number in range(1, self._cluster.plan.clients + 1):
                    nursery.start_soon(self._run_client, name, number)

    async def _run_client(self, site: str, number: int) -> None:
        plan = self._cluster.plan
        chooser = Chooser(
            seed=plan.seed,
            site=site,
            client=number,
            mix=plan.mix,
            shared=plan.shared,
            names=plan.names,
            bytes_max=plan.bytes_max,
        )
        rng = self._cluster.world.rng(f"client {site} {number}")
        while True:
            with suppress(SiteUnreachable, ClientError, trio.TooSlowError):
                async with self._cluster.connect(site) as client:
                    await self._ask(client, number, chooser, rng)
            await trio.sleep(RECONNECT_S * rng.uniform(0.5, 1.5))

    async def _ask(self, client: SiteClient, number: int, chooser: Chooser, rng: random.Random) -> None:
        with trio.fail_after(STEP_TIMEOUT_S):
            journal = await journal_of(client)
        while True:
            step = await self._next_step(client.name, chooser, rng)
            if rng.random() < PRIVATE:
                await self._use_private(client, journal, number, rng)
                continue
            with trio.fail_after(STEP_TIMEOUT_S):
                now_ns = self._cluster.world.now_us() * 1000
                ops = await plan_ops(step, partial(_resolve, client), now_ns)
                if ops:
                    await self._submit(client, journal, number, step.kind, ops)

    async def _next_step(self, site: str, chooser: Chooser, rng: random.Random) -> Step:
        """Wait for a while, and choose; or until the next meeting, and go there."""
        plan, now_s = self._cluster.plan, trio.current_time()
        meeting = int(now_s / plan.meet_s) + 1
        next_s = now_s + rng.expovariate(1 / plan.pause_s)
        await trio.sleep_until(min(next_s, meeting * plan.meet_s))
        return chooser.next() if next_s < meeting * plan.meet_s else attend(plan.seed, meeting, rng, site)

    async def _use_private(self, client: SiteClient, journal: JournalId, number: int, rng: random.Random) -> None:
        ops = self.private.plan(client.name, number, rng, self._cluster.world.now_us() * 1000)
        outcome = Outcome.UNKNOWN
        try:
            with trio.fail_after(STEP_TIMEOUT_S):
                outcome = await self._submit(client, journal, number, "private", ops)
        finally:
            self.private.note(client.name, number, ops, outcome)

    async def _submit(self, client: SiteClient, journal: JournalId, number: int, kind: str, ops: list[Op]) -> Outcome:
        """Ask for a write, and remember how it ended, whatever happens meanwhile."""
        world = self._cluster.world
        began_us = world.now_us()
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
            attempt = Attempt(client.name, number, began_us, world.now_us(), kind, outcome, code, entries)
            self.history.attempts.append(attempt)
            world.trace.note("answer", client.name, number, kind, outcome.value, code or "", len(entries))
        return outcome


async def journal_of(client: SiteClient) -> JournalId:
    """The journal that a site writes into, for as long as its process lives."""
    status = await client.call("status", scope="site")
    return JournalId(status["site_id"], Incarnation(int(status["incarnation"], 16)))


async def _resolve(client: SiteClient, path: bytes) -> Mapping[str, Any] | None:
    try:
        found: Mapping[str, Any] = await client.call("resolve", path=path)
    except ClientError as error:
        if error.code in ("ENOENT", "ENOTDIR"):
            return None
        raise
    return found
