"""After the faults: everything is undone, and the cluster gets its time to become equal again, with an operator's help."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any

import trio

from claudefs_repl.journal import Incarnation, JournalId
from claudefs_repl.observations import CursorsSeen
from nodes.chaos.stage import Stage
from nodes.client import ClientError, SiteClient, SiteUnreachable, connect_site
from nodes.commands.lab import ask_site
from nodes.runtime import SystemClock
from nodes.snapshots import cursors_from_json

POLL_S = 0.2
REMEDY = "claudefs-repl bootstrap"
"""What a site says that it needs when it cannot go on as it is."""
PATIENCE_S = 6.0
"""An operator waits so long whether a site that asks for him gets over it by itself, as some say that they may."""
QUESTION_S = 60.0
"""A digest reads every byte of a small tree."""
CONFLICTS_PAGE = 500
LOST_STEP_BYTES = 1 << 18
LOST_ASKED_MAX = 20
"""Conflicts of which the lost content is fetched at each site: enough to see that it is there."""


@dataclass(slots=True)
class Settled:
    """What the sites told when the run was over, while they still ran.

    Attributes:
        took_s: from the end of the last fault until all sites had applied the same, None if they did not in time.
        missing: what was not so when the time was over.
        digests: of the trees, by site.
        modes: by site.
        faults: what does not add up in the sites' accounts.
        statuses: each site's cursors at the end.
        trees: every path and the digest of what is there, by site.
        dead_letters: by site, those that are open.
        conflicts: each site's whole list.
        lost_contents: of some conflicts, CRC-32 of the content that lost as each site gave it, by conflict and site.
        refused_contents: why a site did not give one.
        remedies: what an operator had to do.
        asking_since_s: of the sites that ask for an operator, since when.
    """

    took_s: float | None = None
    missing: str = ""
    digests: dict[str, str] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    statuses: dict[str, CursorsSeen] = field(default_factory=dict)
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    dead_letters: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    conflicts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lost_contents: dict[str, dict[str, int]] = field(default_factory=dict)
    refused_contents: list[str] = field(default_factory=list)
    remedies: list[str] = field(default_factory=list)
    asking_since_s: dict[str, float] = field(default_factory=dict)


async def heal(stage: Stage) -> None:
    """Undo what is still broken, and bring every site up that ended, once."""
    stage.mesh.heal()
    for name in stage.names:
        if not stage.lives(name) and stage.is_to_run(name):
            stage.note(name, "it is not running although nothing keeps it down; it is started again")
            stage.states[name].holds += 1
            await stage.bring_up(name)
    # A site that was paused or down while keys were rotated or limits changed has not read them.
    for name in stage.names:
        await ask_site(stage.cluster, name, "reload")


async def settle(stage: Stage, limit_s: float) -> Settled:
    """Wait until all sites are level, then ask them what a verdict needs."""
    settled = Settled()
    began_s = trio.current_time()
    with trio.move_on_after(limit_s):
        while True:
            settled.missing = await _what_is_missing(stage, settled)
            if not settled.missing:
                settled.took_s = trio.current_time() - began_s
                break
            await trio.sleep(POLL_S)
    for name in stage.names:
        await _ask(stage, name, settled)
    await _ask_sums(stage, settled)
    await _ask_lost(stage, settled)
    return settled


async def _what_is_missing(stage: Stage, settled: Settled) -> str:
    """What keeps the sites from being level and writable, in words; a site that needs its operator gets him."""
    reached: list[dict[str, list[int]]] = []
    missing = []
    for name in stage.names:
        status = await ask_site(stage.cluster, name, "status", scope="site")
        if status is None:
            missing.append(f"{name} does not answer")
            continue
        needed = [reason for reason in status["refusing_writes"] if REMEDY in reason]
        if not needed:
            settled.asking_since_s.pop(name, None)
        elif trio.current_time() - settled.asking_since_s.setdefault(name, trio.current_time()) > PATIENCE_S:
            del settled.asking_since_s[name]
            settled.remedies.append(f"{name}: {needed[0]}")
            await stage.stop(name)
            await stage.bootstrap(name)
            await stage.bring_up(name)
            return f"{name} was made anew"
        settled.modes[name] = status["mode"]
        missing += [f"{name} takes no writes: {reason}" for reason in status["refusing_writes"]]
        if status["mode"] == "Offline":
            missing.append(f"{name} is {status['mode']}")
        for cursors in (status["received"], status["applied"]):
            reached.append({key: seqs for key, seqs in cursors.items() if any(seqs)})
    if not missing and any(each != reached[0] for each in reached[1:]):
        missing.append("the sites have not received and applied the same")
    return "; ".join(missing)


async def _ask(stage: Stage, name: str, settled: Settled) -> None:
    """One site's cursors, tree, conflicts and dead letters."""
    with trio.move_on_after(QUESTION_S):
        try:
            async with connect_site(stage.cluster, name) as client:
                status = await client.call("status", scope="site")
                settled.statuses[name] = CursorsSeen(
                    time_us=SystemClock().now_us(),
                    site=name,
                    own=JournalId(status["site_id"], Incarnation(int(status["incarnation"], 16))),
                    received=cursors_from_json(status["received"]),
                    applied=cursors_from_json(status["applied"]),
                )
                digest = await client.call("digest", scope="site")
                settled.digests[name] = digest["digest"]
                settled.conflicts[name] = await _conflicts(client)
                settled.trees[name] = await _tree(client)
                settled.dead_letters[name] = (await client.call("dead_letters"))["letters"]
        except (SiteUnreachable, ClientError) as error:
            settled.missing = settled.missing or f"{name}: {error}"


async def _conflicts(client: SiteClient) -> list[dict[str, Any]]:
    after: bytes | None = None
    listed: list[dict[str, Any]] = []
    while True:
        page = await client.call("conflicts", after=after, limit=CONFLICTS_PAGE)
        listed += page["conflicts"]
        after = page["next"]
        if after is None:
            return listed


async def _tree(client: SiteClient) -> dict[str, str]:
    after: bytes | None = None
    tree: dict[str, str] = {}
    while True:
        page = await client.call("manifest", after=after)
        for path, digest in page["entries"]:
            tree[path.decode(errors="backslashreplace")] = digest.hex()[:16]
            after = path
        if not page["more"]:
            return tree


async def _ask_sums(stage: Stage, settled: Settled) -> None:
    """What does not add up between the sites."""
    with trio.move_on_after(QUESTION_S):
        try:
            async with connect_site(stage.cluster, stage.names[0]) as client:
                verdict = await client.call("digest", scope="cluster")
                settled.faults = [str(fault) for fault in verdict["faults"]]
                if not verdict["converged"] and settled.took_s is not None and not settled.faults:
                    settled.faults = [str(verdict["reason"])]
        except (SiteUnreachable, ClientError) as error:
            settled.faults = [f"{stage.names[0]}: {error}"]


async def _ask_lost(stage: Stage, settled: Settled) -> None:
    """Fetch the lost content of some conflicts at every site."""
    if not settled.conflicts:
        return
    first = next(iter(settled.conflicts.values()))
    chosen = [one["id"] for one in first if one["kind"] == "content" and one["is_kept"]][:LOST_ASKED_MAX]
    for name in settled.conflicts:
        with trio.move_on_after(QUESTION_S):
            try:
                async with connect_site(stage.cluster, name) as client:
                    for conflict in chosen:
                        await _ask_lost_of(client, conflict, settled)
            except SiteUnreachable as error:
                settled.missing = settled.missing or f"{name}: {error}"


async def _ask_lost_of(client: SiteClient, conflict: str, settled: Settled) -> None:
    """The lost content of one conflict as a site gives it, or why it does not."""
    try:
        details = await client.call("conflict", id=conflict)
        lost = details["lost"]
        if lost is None:
            settled.refused_contents.append(f"{client.name}: conflict {conflict}: {details.get('why_not')}")
            return
        crc32 = 0
        for begin, end in lost["ranges"]:
            at = begin
            while at < end:
                length = min(end - at, LOST_STEP_BYTES)
                data: bytes = await client.call("lost", id=bytes.fromhex(conflict), offset=at, length=length)
                if not data:
                    settled.refused_contents.append(f"{client.name}: conflict {conflict} ends at {at}, not at {end}")
                    return
                crc32 = zlib.crc32(data, crc32)
                at += len(data)
        settled.lost_contents.setdefault(conflict, {})[client.name] = crc32
    except ClientError as error:
        settled.refused_contents.append(f"{client.name}: conflict {conflict}: {error}")
