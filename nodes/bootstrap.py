"""Bootstrap: a site that is down is made anew from a peer's snapshot, under a new incarnation.

One mechanism for every site that cannot go on as it was: its disk was lost, or restored from an old copy, or its peers no
longer hold what it lacks, or it stamped too far ahead of the time. The peers go on meanwhile. Nothing of the old data
changes until the new is whole on the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.checkpoint import cursor_of
from claudefs_repl.error import ConfigInvalid
from claudefs_repl.health import clock_in_bounds, explain_clock, remedy_stamps
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.reincarnation import (
    Holdings,
    LostRange,
    Restamped,
    beyond_drift,
    carried_upto,
    holds_restamped,
    is_sole,
    lost_ranges,
    needed,
    to_close,
)
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.bootstrap_build import Built, Plan, begin_switch, build, finish_switch, log_bootstrap
from nodes.bootstrap_fetch import Answer, Progress, ask_holdings, fetch_snapshot, find_common
from nodes.bootstrap_old import Closed, OldLogs, read_closed, sound_tails
from nodes.client import SiteUnreachable
from nodes.dialing import Dialing, dialer_limits
from nodes.entry_log import EntryLog
from nodes.events import make_logger
from nodes.journals import LogSettings
from nodes.key_files import load_keys
from nodes.queries import PeerQueries, PeerUnreachable
from nodes.recovery import read_identity
from nodes.runtime import LOCK_NAME, ShiftedClock, SystemClock, events_path
from nodes.seams import Entropy, Storage, StoreRunner, WallClock
from nodes.storage import DiskStorage
from nodes.store.sqlite_store import Threads
from protocol.handshake import LocalIdentity
from protocol.keys import KeyRing


async def bootstrap_site(
    cluster: ClusterConfig, site_name: str, peer_name: str | None, without: Sequence[str], progress: Progress
) -> dict[str, Any]:
    """Make a stopped site anew; returns a report as `_report` makes it.

    Args:
        cluster: the configuration.
        site_name: the site, whose keys are on this machine.
        peer_name: whose snapshot; None for the reachable peer that holds most.
        without: peers that need not answer.
        progress: told how far the fetching is.

    Raises:
        CallerError: the site runs, or its clock is wrong.
        SiteUnreachable: a peer does not answer.
        WorldError: a disk or a peer did not do its part. The old data is as it was.
    """
    site = cluster.site(site_name)
    storage = DiskStorage(site.data_dir)
    keys = load_keys(cluster.key_file(site), site)
    await storage.lock(LOCK_NAME)
    try:
        wall_clock = ShiftedClock(SystemClock(), offset_s=site.clock_offset_s)
        return await bootstrap_in(
            Means(
                storage=storage,
                store_runner=Threads(),
                wall_clock=wall_clock,
                entropy=os.urandom,
                make_logger=lambda: make_logger(events_path(site), site.name, wall_clock),
            ),
            cluster,
            site,
            keys,
            peer_name,
            without,
            progress,
        )
    finally:
        storage.close()


@dataclass(frozen=True, slots=True)
class Means:
    """What making a site anew needs of the world: the machine's, or a simulated one."""

    storage: Storage
    store_runner: StoreRunner
    wall_clock: WallClock
    entropy: Entropy
    make_logger: Callable[[], FilteringBoundLogger]


async def bootstrap_in(
    means: Means,
    cluster: ClusterConfig,
    site: SiteConfig,
    keys: KeyRing,
    peer_name: str | None,
    without: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    """As `bootstrap_site`, in a data directory that is the caller's."""
    finished = await finish_switch(means.storage)
    logger = means.make_logger()
    if finished is not None:
        log_bootstrap(finished, logger)
        return finished
    old = await read_identity(cluster, site, means.storage)
    incarnation = Incarnation(int.from_bytes(means.entropy(8), "big"))
    identity = LocalIdentity(cluster.cluster_id, cluster.shards, site.site_id, incarnation)
    dialing = Dialing(
        identity=identity,
        local_address=site.address,
        keys=keys,
        entropy=means.entropy,
        timeout_s=cluster.replication.handshake_timeout_s,
        limiter=AuthRateLimiter(dialer_limits(cluster.rate_limit)),
    )
    own = JournalId(site.site_id, incarnation)
    work = _Bootstrap(cluster, site, means, PeerQueries(dialing), logger, own, old)
    return await work.run(peer_name, without, progress)


class _Bootstrap:
    """One run."""

    def __init__(
        self,
        cluster: ClusterConfig,
        site: SiteConfig,
        means: Means,
        queries: PeerQueries,
        logger: FilteringBoundLogger,
        own: JournalId,
        old: JournalId | None,
    ) -> None:
        self._cluster = cluster
        self._site = site
        self._means = means
        self._storage = means.storage
        self._queries = queries
        self._wall_clock = means.wall_clock
        self._logger = logger
        self._own = own
        self._old = old

    async def run(self, peer_name: str | None, without: Sequence[str], progress: Progress) -> dict[str, Any]:
        """From the first question to the switch."""
        answers = await self._ask_all(without)
        self._check_clock(answers.values())
        peers = {site_id: answer.holdings for site_id, answer in answers.items()}
        wall_us = self._wall_clock.now_us()
        limit_us = wall_us + int(self._cluster.replication.max_clock_drift_s * 1e6)
        beyond_us = beyond_drift(peers, limit_us)
        source = self._source(peer_name, peers, beyond_us)
        self._logger.info("bootstrap_started", peer=source.name, journal=str(self._own))
        shards = self._cluster.shards
        settings = LogSettings(self._cluster.cluster_id, shards, self._cluster.journal.segment_bytes)
        old = await OldLogs.open(self._storage, settings, self._means.entropy, self._old)
        try:
            if peer_name is None and not old.damage:
                self._check_sole(old, peers)
            closed = await read_closed(self._storage)
            upto = {log.journal: await self._carried(log, peers, closed, limit_us) for log in old.replicas}
            common = await self._common(peers, old.own)
            sound = common if old.own is None else await sound_tails(old.own, limit_us)
            held = tuple(map(min, common, sound))
            needs = needed(peers, source.site_id, {log.journal: log.firsts for log in old.all()})
            fetch = await fetch_snapshot(self._queries, source, self._storage, needs, shards, progress)
            closing = to_close(self._old, peers.values(), closed.journals)
            lost = self._lost(peers, closing, old.own)
            restamped = Restamped({}, {})
            if old.own is not None and held != common:
                restamped = Restamped({old.own.journal: held}, {old.own.journal: common})
            plan = Plan(
                cluster=self._cluster,
                site=self._site,
                settings=settings,
                own=self._own,
                closed=Closed((*closed.journals, *closing), closed.restamped.join(restamped)),
                held=held,
                upto=upto,
                peers=peers,
                floor_us=max(peer.timestamp_us for site_id, peer in peers.items() if site_id not in beyond_us),
                wall_us=self._wall_clock.now_us(),
            )
            runner = self._means.store_runner
            built = await build(plan, self._storage, self._means.entropy, fetch, old, store_runner=runner)
        finally:
            await old.close()
        report = self._report(source, without, fetch.size_bytes, built, lost, old.damage)
        report["twice_from"] = [
            peer.name
            for peer in self._cluster.peers_of(self._site.site_id)
            if peer.site_id in peers and holds_restamped(peers[peer.site_id], restamped)
        ]
        await begin_switch(self._storage, report)
        await finish_switch(self._storage)
        log_bootstrap(report, self._logger)
        return report

    async def _ask_all(self, without: Sequence[str]) -> dict[SiteId, Answer]:
        """What each peer holds; all but those named must answer, because what only one holds would come twice."""
        answers: dict[SiteId, Answer] = {}
        silent: dict[str, str] = {}

        async def ask(peer: SiteConfig) -> None:
            try:
                answers[peer.site_id] = await ask_holdings(self._queries, peer, self._cluster.shards, self._wall_clock)
            except PeerUnreachable as error:
                silent[peer.name] = str(error)

        async with trio.open_nursery() as nursery:
            for peer in self._cluster.peers_of(self._site.site_id):
                nursery.start_soon(ask, peer)
        missing = sorted(silent.keys() - set(without))
        if missing:
            options = " ".join(f"--without {name}" for name in missing)
            raise SiteUnreachable(
                "\n".join(silent[name] for name in missing) + f"\nstart them, or go on with: {options} "
                f"(what only they hold of site {self._site.name} may then come twice)"
            )
        if not answers:
            raise SiteUnreachable(f"site {self._site.name} has no peer that could be asked: there is nothing to be had")
        return answers

    def _check_clock(self, answers: Iterable[Answer]) -> None:
        offsets_us = [answer.clock_offset_us for answer in answers]
        limit_us = int(self._cluster.replication.max_clock_drift_s * 1e6)
        if not clock_in_bounds(offsets_us, limit_us):
            detail = explain_clock(offsets_us, limit_us)
            raise ConfigInvalid([f"site {self._site.name} cannot begin anew: {detail}"])

    def _source(
        self, peer_name: str | None, peers: Mapping[SiteId, Holdings], beyond_us: Mapping[SiteId, int]
    ) -> SiteConfig:
        sites = {site.site_id: site for site in self._cluster.sites}
        refused = [
            f"site {self._site.name} cannot begin anew from {sites[site_id].name}, which holds stamps "
            f"{us / 1e6:,.1f} s beyond the allowed drift: wait until then, or first run: "
            f"{remedy_stamps(sites[site_id].name)}"
            for site_id, us in beyond_us.items()
            if peer_name in (None, sites[site_id].name)
        ]
        if peer_name is None:
            sound = sorted(peers.keys() - beyond_us.keys())
            if not sound:
                raise ConfigInvalid(refused)
            return sites[max(sound, key=lambda site_id: sum(map(sum, peers[site_id].received.values())))]
        source = self._cluster.site(peer_name)
        if source.site_id == self._site.site_id:
            raise ConfigInvalid([f"--from {peer_name}: a site cannot begin anew from itself; name a peer"])
        if source.site_id not in peers:
            raise SiteUnreachable(f"--from {peer_name}: it does not answer; name a peer that does")
        if refused:
            raise ConfigInvalid(refused)
        return source

    def _check_sole(self, old: OldLogs, peers: Mapping[SiteId, Holdings]) -> None:
        """A site that is repaired is whole: it must not be the only one whose view has what its logs no longer have."""
        for log in old.all():
            if is_sole(log.journal, peers.values(), log.firsts):
                raise ConfigInvalid(
                    [
                        f"site {self._site.name} cannot be repaired: of journal {log.journal} it has what no peer holds "
                        "that was asked, in its view alone; wait until its stamps are taken, then make its peers anew"
                    ]
                )

    async def _carried(
        self, log: EntryLog, peers: Mapping[SiteId, Holdings], closed: Closed, limit_us: int
    ) -> tuple[int, ...]:
        """How far another site's old log is carried over, or one of the site's former journals."""
        origin = peers.get(log.journal.origin)
        restamped = closed.restamped if origin is None else origin.restamped
        sound = await sound_tails(log, limit_us)
        upto = carried_upto(log.journal, tails=log.tails, sound=sound, origin=origin, restamped=restamped)
        if upto is None:
            beyond_s = (log.last_timestamp_us - limit_us) / 1e6
            detail = (
                f"site {self._site.name} cannot begin anew: it has entries of journal {log.journal} that may be nowhere "
                f"else, stamped {beyond_s:,.1f} s beyond the allowed drift: wait until then"
            )
            silent = next((peer for peer in self._cluster.sites if peer.site_id == log.journal.origin), None)
            if origin is None and silent is not None and silent is not self._site:
                detail += f", or start site {silent.name}, which is asked for them"
            raise ConfigInvalid([detail])
        return upto

    async def _common(self, peers: Mapping[SiteId, Holdings], log: EntryLog | None) -> tuple[int, ...]:
        """How far, shard by shard, the old own log has what the peers hold of that journal; all zeros without a log."""
        shards = self._cluster.shards
        if log is None:
            return (0,) * shards
        common = []
        for shard in range(shards):
            seqs = {
                site_id: cursor_of(peers[site_id].received, log.journal, shards)[shard] for site_id in sorted(peers)
            }
            site_id = max(seqs, key=lambda one: seqs[one])
            peer = next(site for site in self._cluster.sites if site.site_id == site_id)
            try:
                common.append(await find_common(self._queries, peer, log, shard, seqs[site_id]))
            except PeerUnreachable as error:
                raise SiteUnreachable(f"{error}; run the same command again") from error
        return tuple(common)

    def _lost(
        self, peers: Mapping[SiteId, Holdings], closing: Sequence[JournalId], log: EntryLog | None
    ) -> list[LostRange]:
        shards = self._cluster.shards
        ranges: list[LostRange] = []
        for journal in closing:
            here = log if log is not None and log.journal == journal else None
            tails = (0,) * shards if here is None else here.tails
            firsts = (1,) * shards if here is None else here.firsts
            ranges += lost_ranges(journal, list(peers.values()), tails, firsts)
        return ranges

    def _report(
        self,
        source: SiteConfig,
        without: Sequence[str],
        fetched_bytes: int,
        built: Built,
        lost: Sequence[LostRange],
        damage: Sequence[str],
    ) -> dict[str, Any]:
        """What the command prints, and `log_bootstrap` logs."""
        return {
            "site": self._site.name,
            "from": source.name,
            "without": list(without),
            "fetched_bytes": fetched_bytes,
            "journal": str(self._own),
            "former_journal": None if self._old is None else str(self._old),
            "damage": list(damage),
            "journaled_again": built.journaled_again,
            "refused": [
                {"shard": one.entry.shard, "seq": one.entry.seq, "reason": one.reason} for one in built.refused
            ],
            "refused_file": str(self._site.data_dir / built.refused_file) if built.refused_file else None,
            "lost": [{**asdict(one), "journal": str(one.journal)} for one in lost],
        }
