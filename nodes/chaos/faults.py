"""Doing the faults of a timeline: one action for each kind, which says how it begins and how it is undone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import trio

from nodes.chaos.fault_kinds import KINDS, describe
from nodes.chaos.mesh import Link
from nodes.chaos.scenario import Fault, Scenario
from nodes.chaos.stage import Stage
from nodes.chaos.wire import Effect
from nodes.chaos.workload import Workload
from nodes.key_rotation import list_keys
from nodes.runtime import SystemClock

KEYS_PAUSE_S = 0.5
"""Between the steps of a rotation, as an operator takes to type the next one."""


@dataclass(slots=True)
class FaultRun:
    """What became of one fault.

    Attributes:
        began_us: when it was there, by the machine's clock; None if the run ended before.
        ended_us: when it was undone or over.
        flips: by direction, how many bits were flipped meanwhile.
    """

    fault: Fault
    began_us: int | None = None
    ended_us: int | None = None
    flips: dict[Link, int] = field(default_factory=dict)


@dataclass(slots=True)
class Breaking:
    """The timeline of a run, and what became of it. Owned by the runner."""

    stage: Stage
    workload: Workload
    say: Callable[[str], None]
    runs: list[FaultRun] = field(default_factory=list)
    clock: SystemClock = field(default_factory=SystemClock)

    async def run(self, scenario: Scenario, started_s: float) -> None:
        """Do every fault at its time; returns when all are undone. Those without an end wait for the stage to be healed."""
        self.runs = [FaultRun(fault) for fault in scenario.timeline]
        async with trio.open_nursery() as nursery:
            for run in self.runs:
                nursery.start_soon(self._run_fault, run, started_s)

    async def _run_fault(self, run: FaultRun, started_s: float) -> None:
        fault = run.fault
        await trio.sleep_until(started_s + fault.at_s)
        wires = {link: self.stage.mesh.wires[link] for link in fault.links if fault.kind == "corrupt"}
        before = {link: wire.counters.bits_flipped for link, wire in wires.items()}
        async with ACTIONS[fault.kind](self, fault):
            run.began_us = self.clock.now_us()
            self._tell(fault, trio.current_time() - started_s, "")
            if KINDS[fault.kind].lasts:
                with trio.move_on_after(float("inf") if fault.for_s is None else fault.for_s):
                    await self.stage.healed.wait()
        run.ended_us = self.clock.now_us()
        run.flips = {link: wire.counters.bits_flipped - before[link] for link, wire in wires.items()}
        if KINDS[fault.kind].lasts:
            self._tell(fault, trio.current_time() - started_s, " is over")

    def _tell(self, fault: Fault, at_s: float, what: str) -> None:
        options = describe(fault.kind, fault.options)
        self.say(f"{at_s:6.1f} s  {fault.kind}{what}: {fault.where}{f' ({options})' if options and not what else ''}")


Action = Callable[[Breaking, Fault], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def _kill(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    await _at_once(fault, run.stage.kill)
    yield
    await _at_once(fault, run.stage.bring_up)


@asynccontextmanager
async def _stop(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    await _at_once(fault, run.stage.stop)
    yield
    await _at_once(fault, run.stage.bring_up)


@asynccontextmanager
async def _pause(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    for site in fault.sites:
        run.stage.pause(site)
    yield
    for site in fault.sites:
        run.stage.resume(site)


@asynccontextmanager
async def _wipe(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    await _at_once(fault, run.stage.kill)
    for site in fault.sites:
        run.stage.wipe(site)
    yield
    if fault.options["bootstrap"]:
        for site in fault.sites:
            await run.stage.bootstrap(site)
    await _at_once(fault, run.stage.bring_up)


@asynccontextmanager
async def _power_loss(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    """The network goes first, clients' too, so that nobody hears of what the disk then does not have."""
    stage = run.stage
    links = sorted({link for site in fault.sites for link in stage.mesh.links_of(site)})
    cut = Effect(cut=True)
    for site in fault.sites:
        run.workload.bar(site)
    for link in links:
        stage.mesh.wires[link].add(cut)
    await stage.lose_power(fault.sites)
    # What a dead kernel had still to send is never sent; its peers learn that when they next talk to it.
    for proxy in stage.mesh.between(links):
        proxy.reset()
    yield
    for link in links:
        stage.mesh.wires[link].remove(cut)
    for site in fault.sites:
        run.workload.admit(site)
    await _at_once(fault, stage.bring_up)


@asynccontextmanager
async def _disk_full(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    for site in fault.sites:
        await run.stage.fill_disk(site, fault.options["leave_bytes"])
    yield
    for site in fault.sites:
        await run.stage.free_disk(site)


@asynccontextmanager
async def _clock(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    before = {site: run.stage.states[site].offset_s for site in fault.sites}
    for site in fault.sites:
        await run.stage.set_clock(site, fault.options["offset_s"])
    yield
    for site, offset_s in before.items():
        await run.stage.set_clock(site, offset_s)


@asynccontextmanager
async def _restart(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    await _at_once(fault, run.stage.stop)
    await _at_once(fault, run.stage.bring_up)
    yield


@asynccontextmanager
async def _rotate_keys(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    cluster = run.stage.cluster
    old = sorted({row.key_id for row in list_keys(cluster).rows if row.used})
    await run.stage.command(None, "keys", "add")
    new = next(row.key_id for row in list_keys(cluster).rows if row.key_id not in old)
    for step in (("use", new), *(("retire", key_id) for key_id in old)):
        await trio.sleep(KEYS_PAUSE_S)
        code, text = await run.stage.command(None, "keys", *step)
        if code == 2:
            run.stage.note("", f"keys {' '.join(step)}: {text}", is_failure=True)
    yield


async def _at_once(fault: Fault, do: Callable[[str], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        for site in fault.sites:
            nursery.start_soon(do, site)


def _on_wires(make: Callable[[Fault], Effect]) -> Action:
    """An effect that holds on the fault's links for as long as it lasts."""

    @asynccontextmanager
    async def action(run: Breaking, fault: Fault) -> AsyncIterator[None]:
        effect = make(fault)
        wires = [run.stage.mesh.wires[link] for link in fault.links]
        for wire in wires:
            wire.add(effect)
        yield
        for wire in wires:
            wire.remove(effect)

    return action


@asynccontextmanager
async def _flap(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    wires = [run.stage.mesh.wires[link] for link in fault.links]
    half_s = fault.options["period_s"] / 2

    effect = Effect(cut=True)

    async def flap() -> None:
        while True:
            for wire in wires:
                wire.add(effect)
            await trio.sleep(half_s)
            for wire in wires:
                wire.remove(effect)
            await trio.sleep(half_s)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flap)
        yield
        nursery.cancel_scope.cancel()
    for wire in wires:
        wire.remove(effect)


@asynccontextmanager
async def _reset(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    for proxy in run.stage.mesh.between(fault.links):
        proxy.reset()
    yield


@asynccontextmanager
async def _half_open(run: Breaking, fault: Fault) -> AsyncIterator[None]:
    for proxy in run.stage.mesh.between(fault.links):
        proxy.half_open()
    yield


ACTIONS: Mapping[str, Action] = {
    "kill": _kill,
    "stop": _stop,
    "restart": _restart,
    "pause": _pause,
    "wipe": _wipe,
    "power_loss": _power_loss,
    "disk_full": _disk_full,
    "clock": _clock,
    "rotate_keys": _rotate_keys,
    "partition": _on_wires(lambda fault: Effect(cut=True)),
    "refuse": _on_wires(lambda fault: Effect(refuse=True)),
    "stop_reading": _on_wires(lambda fault: Effect(stop_reading=True)),
    "delay": _on_wires(
        lambda fault: Effect(delay_s=fault.options["delay_ms"] / 1000, jitter_s=fault.options["jitter_ms"] / 1000)
    ),
    "bandwidth": _on_wires(lambda fault: Effect(bytes_per_s=fault.options["bytes_per_s"])),
    "corrupt": _on_wires(lambda fault: Effect(flip_probability=fault.options["probability"])),
    "truncate": _on_wires(
        lambda fault: Effect(
            truncate_after_bytes=fault.options["after_bytes"], truncate_resets=fault.options["how"] == "reset"
        )
    ),
    "flap": _flap,
    "reset": _reset,
    "half_open": _half_open,
}
