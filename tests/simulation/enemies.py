"""Enemies that have more than an address: a site's keys while it is down, or its disk."""

from __future__ import annotations

import json

from claudefs_repl.block import Block, NewRow
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.error import PeerRefused, WorldError
from claudefs_repl.journal import Incarnation, Inode, JournalId, Op, Shard, entry_crc32, make_inode, shard_of
from nodes.entry_log import EntryLog
from nodes.link import LINK_ERRORS
from nodes.recovery import IDENTITY_FILE
from protocol.handshake import LocalIdentity
from protocol.keys import KeyRing
from tests.simulation.cluster import Cluster
from tests.simulation.disk import SimDisk
from tests.simulation.logs import read_tails
from tests.simulation.processes import PROCESS, Process
from tests.simulation.rogue import Trick, play
from tests.simulation.storage import SimStorage

UNKNOWN_PAYLOAD = b"\x92\x63\xc4\x01x"
"""Of a payload version that no program has."""


async def play_trick(cluster: Cluster, site: str, peer: str, keys: KeyRing, trick: Trick) -> tuple[bool, str | None]:
    """In the place of a site that is down, break a rule of a conduit; whether it could, and what came wrongly of it."""
    machine, plan = cluster.machines[site], cluster.plan.cluster
    own = plan.site(site)
    incarnation = _incarnation(machine.disk)
    if incarnation is None:
        return False, None
    token = PROCESS.set(Process(machine, f"rogue.{site}"))
    try:
        what = await play(
            trick,
            identity=LocalIdentity(plan.cluster_id, plan.shards, own.site_id, incarnation),
            keys=keys,
            local_address=own.address,
            peer=plan.site(peer),
            now_us=cluster.world.now_us(),
            entropy=cluster.world.rng(f"rogue {trick.name}").randbytes,
        )
    except (*LINK_ERRORS, PeerRefused) as error:
        cluster.world.trace.note("no_trick", trick.name, type(error).__name__)
        return False, None
    finally:
        PROCESS.reset(token)
    cluster.world.trace.note("trick", trick.name, what)
    return True, what


async def plant_unknown(cluster: Cluster, site: str) -> bool:
    """Put an entry that nobody can apply into the journal of a site that is down; whether it is there."""
    machine, plan = cluster.machines[site], cluster.plan.cluster
    incarnation = _incarnation(machine.disk)
    if incarnation is None:
        return False
    journal = JournalId(plan.site(site).site_id, incarnation)
    entropy = cluster.world.rng(f"planted {site}").randbytes
    storage = SimStorage(machine.disk, Process(machine, f"planter.{site}"), cluster.world.trace)
    try:
        log = await EntryLog.open(
            storage=storage,
            journal=journal,
            cluster_id=plan.cluster_id,
            shard_count=plan.shards,
            segment_bytes=plan.journal.segment_bytes,
            entropy=entropy,
        )
        stamp_us = log.last_timestamp_us + 1
        inode = make_inode(journal.origin, stamp_us)
        shard = shard_of(inode, plan.shards)
        seq = log.tails[shard] + 1
        crc32 = entry_crc32(seq, shard, journal.origin, stamp_us, inode, Op.CREATE, UNKNOWN_PAYLOAD)
        row = NewRow(stamp_us, Op.CREATE, Inode(inode), UNKNOWN_PAYLOAD, crc32)
        seen = encode_cursors({}, plan.shards)
        await log.append([Block.build(shard=Shard(shard), first_seq=seq, rows=[row], seen=seen)])
        await log.close()
    except WorldError:
        return False  # a full or failing disk: there is nothing on it then
    # The power may have gone meanwhile.
    return read_tails(machine.disk).get(journal, (0,) * plan.shards)[shard] >= seq


def _incarnation(disk: SimDisk) -> Incarnation | None:
    """Of the journal that lies on a disk, None if none was begun."""
    content = disk.files.get(IDENTITY_FILE)
    known = {"is_ready": False} if content is None else json.loads(bytes(content.live))
    return Incarnation(int(known["incarnation"], 16)) if known["is_ready"] else None
