"""After the faults: wait until all sites are level, with an operator's help, then ask them what a verdict needs."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from claudefs_repl.journal import Incarnation, JournalId
from claudefs_repl.observations import CursorsSeen
from nodes.client import ClientError, SiteClient, SiteUnreachable
from nodes.snapshots import cursors_from_json
from tests.simulation.cluster import Cluster
from tests.simulation.keeper import Keeper
from tests.simulation.private_files import BYTES_MAX, describe

POLL_S = 0.25
ANSWER_S = 2.0
REMEDY = "claudefs-repl bootstrap"
PATIENCE_S = 6.0
"""So long an operator waits for a site that asks for him, but may get over it by itself, while nothing comes to it."""
OPERATOR_AFTER_S = 15.0
"""An operator who sees that nothing moves looks at stamps that peers refuse, and has the site made anew."""
LOST_ASKED_MAX = 10
PAGE = 500

Reached = dict[str, Any]
"""What a site has received, or applied, of each journal."""


@dataclass(slots=True)
class Settled:
    """What the sites told at the end.

    Attributes:
        converged_us: when all were level, None if they were not in time.
        missing: what was not so when the time was over.
        ended_us: when all had been asked.
    """

    converged_us: int | None = None
    missing: str = ""
    ended_us: int = 0
    cursors: dict[str, CursorsSeen] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    trees: dict[str, dict[str, str]] = field(default_factory=dict)
    conflicts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    dead_letters: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    lost_contents: dict[tuple[str, str], int] = field(default_factory=dict)


async def ask_status(cluster: Cluster, name: str) -> Mapping[str, Any] | None:
    """A site's word on itself, None if it does not answer."""
    with trio.move_on_after(ANSWER_S):
        try:
            async with cluster.connect(name) as client:
                status: Mapping[str, Any] = await client.call("status", scope="site")
                return status
        except (SiteUnreachable, ClientError):
            return None
    return None


def cursors_of(cluster: Cluster, name: str, status: Mapping[str, Any]) -> CursorsSeen:
    """A site's cursors, as it tells them."""
    return CursorsSeen(
        time_us=cluster.world.now_us(),
        site=name,
        own=JournalId(status["site_id"], Incarnation(int(status["incarnation"], 16))),
        received=cursors_from_json(status["received"]),
        applied=cursors_from_json(status["applied"]),
    )


async def settle(cluster: Cluster, keeper: Keeper, limit_s: float, read: Collection[str]) -> Settled:
    """Wait until the sites are level and stay so, for so long; then ask each for its tree, files, conflicts, ...

    A write that a client had asked for may come to its end after the first look.
    """
    settled = Settled()
    began_s = trio.current_time()
    helped: set[str] = set()
    asking_since: dict[str, tuple[float, Reached]] = {}
    level: list[Reached] | None = None
    while trio.current_time() < began_s + limit_s:
        is_late = trio.current_time() > began_s + OPERATOR_AFTER_S
        settled.missing, reached = await _what_is_missing(cluster, keeper, helped, asking_since, is_late)
        if not settled.missing and reached == level:
            settled.converged_us = cluster.world.now_us()
            break
        level = reached
        await trio.sleep(POLL_S)
    for name in cluster.machines:
        await _ask(cluster, name, settled, read)
    settled.ended_us = cluster.world.now_us()
    return settled


async def _what_is_missing(
    cluster: Cluster, keeper: Keeper, helped: set[str], asking_since: dict[str, tuple[float, Reached]], is_late: bool
) -> tuple[str, list[Reached]]:
    """What keeps the sites from being level and writable, in words; a site that needs its operator gets him.

    And what each has received and applied.
    """
    reached: list[Reached] = []
    missing = []
    for name in cluster.machines:
        status = await ask_status(cluster, name)
        if status is None:
            missing.append(f"{name} does not answer")
            continue
        now_s, received = trio.current_time(), status["received"]
        since_s, before = asking_since.get(name, (now_s, received))
        if before != received or not any(REMEDY in reason for reason in status["refusing_writes"]):
            since_s = now_s
        asking_since[name] = since_s, received
        needed = now_s > since_s + PATIENCE_S
        refused = any(link["stamps_refused"] for link in status["peers"].values())
        if needed or (is_late and refused and name not in helped):
            asking_since.pop(name, None)
            if await keeper.bootstrap(name):
                helped.add(name)
                return f"{name} was made anew", reached
            missing.append(f"{name} cannot be made anew")
            continue
        missing += [f"{name} takes no writes: {reason}" for reason in status["refusing_writes"]]
        if status["mode"] != "ActiveReadWrite":
            missing.append(f"{name} is {status['mode']}")
        missing += [
            f"{name} takes {peer} for {link['mode']}"
            for peer, link in status["peers"].items()
            if link["mode"] != "ActiveReadWrite"
        ]
        for cursors in (status["received"], status["applied"]):
            reached.append({key: seqs for key, seqs in cursors.items() if any(seqs)})
    if not missing and any(each != reached[0] for each in reached[1:]):
        missing.append(f"the sites have not received and applied the same: {reached}")
    return "; ".join(missing), reached


async def _ask(cluster: Cluster, name: str, settled: Settled, read: Collection[str]) -> None:
    with trio.move_on_after(10 * ANSWER_S):
        try:
            async with cluster.connect(name) as client:
                settled.cursors[name] = cursors_of(cluster, name, await client.call("status", scope="site"))
                settled.digests[name] = (await client.call("digest", scope="site"))["digest"]
                settled.trees[name] = {**await _tree(client), **{path: await _content(client, path) for path in read}}
                settled.conflicts[name] = await _conflicts(client)
                settled.dead_letters[name] = (await client.call("dead_letters"))["letters"]
                kept = [one["id"] for one in settled.conflicts[name] if one["kind"] == "content" and one["is_kept"]]
                for conflict in sorted(kept)[:LOST_ASKED_MAX]:
                    await _fetch_lost(client, conflict, settled)
        except (SiteUnreachable, ClientError) as error:
            settled.missing = settled.missing or f"{name}: {error}"


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


async def _content(client: SiteClient, path: str) -> str:
    try:
        inode = (await client.call("resolve", path=path.encode()))["inode"]
        return describe(await client.call("read", inode=inode, offset=0, length=2 * BYTES_MAX))
    except ClientError as error:
        return error.code


async def _conflicts(client: SiteClient) -> list[dict[str, Any]]:
    after: bytes | None = None
    listed: list[dict[str, Any]] = []
    while True:
        page = await client.call("conflicts", after=after, limit=PAGE)
        listed += page["conflicts"]
        after = page["next"]
        if after is None:
            return listed


async def _fetch_lost(client: SiteClient, conflict: str, settled: Settled) -> None:
    """The content that lost, as this site gives it."""
    lost = (await client.call("conflict", id=conflict))["lost"]
    if lost is None:
        return
    crc32 = 0
    for begin, end in lost["ranges"]:
        at = begin
        while at < end:
            data: bytes = await client.call(
                "lost", id=bytes.fromhex(conflict), offset=at, length=min(end - at, 1 << 18)
            )
            if not data:
                return
            crc32 = zlib.crc32(data, crc32)
            at += len(data)
    settled.lost_contents[client.name, conflict] = crc32
