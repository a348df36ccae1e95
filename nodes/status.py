"""What a site tells of itself and its peers: status, digests, listings; alone and for the whole cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import trio

from claudefs_repl.checkpoint import cursor_of, distance, equal
from claudefs_repl.error import CallerError, ReplError
from claudefs_repl.failover import SiteMode
from claudefs_repl.health import ConduitState, LinkFacts, explain_lag, explain_refused_stamps, remedy_stamps
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.accounts import Accounts, judge_sums
from nodes.applier import ApplierStats
from nodes.client_ops import READS, check_fields
from nodes.client_service import ClientStats
from nodes.conduit_receiver import ReceiverStats
from nodes.conflict_keeper import ConflictKeeper
from nodes.entry_log import EntryLog, GapInLog
from nodes.housekeeper import HousekeeperStats
from nodes.journals import Journals
from nodes.peers import PeerRecord
from nodes.queries import Handler, PeerQueries, PeerUnreachable
from nodes.seams import WallClock
from nodes.snapshots import cursors_from_json, cursors_to_json
from nodes.store.sqlite_store import SqliteStore
from nodes.trace import Tracer
from nodes.write_gate import CLOCK, WriteGate

STATUS_TIMEOUT_S = 3.0
"""A status must come although a peer is paused."""
DIGEST_TIMEOUT_S = 900.0
"""A digest reads every byte of a tree."""
QUIET_S = 10.0
"""Beyond two probes: a peer that answers none of them for so long is not worth waiting for."""
QUIET_POLL_S = 0.5
QUIET = "cannot be asked: it answers neither this nor probes"
MANIFEST_STEP = 200
MANIFEST_BYTES_MAX = 512 * 1024
"""A reply carries at most 1 MiB, and a path has no limit but that of its names."""
PATH_OVERHEAD_BYTES = 64
"""An object's digest, and the heads of a listing's fields."""
OLDEST_READ_BYTES = 4096


class SiteStatus:
    """Answers questions about a site. Reads what the actors own, changes nothing."""

    def __init__(
        self,
        *,
        cluster: ClusterConfig,
        site: SiteConfig,
        pid: int,
        journals: Journals,
        store: SqliteStore,
        peers: Mapping[SiteId, PeerRecord],
        peer_modes: Mapping[SiteId, SiteMode],
        gate: WriteGate,
        queries: PeerQueries,
        wall_clock: WallClock,
        applier: ApplierStats,
        receiver: ReceiverStats,
        housekeeper: HousekeeperStats,
        accounts: Accounts,
        tracer: Tracer,
        keeper: ConflictKeeper,
    ) -> None:
        self._cluster = cluster
        self._site = site
        self._pid = pid
        self._journals = journals
        self._store = store
        self._peers = peers
        self._peer_modes = peer_modes
        self._gate = gate
        self._queries = queries
        self._wall_clock = wall_clock
        self._applier = applier
        self._receiver = receiver
        self._housekeeper = housekeeper
        self._accounts = accounts
        self._tracer = tracer
        self._keeper = keeper
        self._started_s = trio.current_time()
        # A digest reads for minutes: one at a time leaves the store's other readers to everybody else.
        self._digesting = trio.Lock()
        self.clients: ClientStats | None = None
        self.refused: Mapping[str, int] = {}

    def client_handlers(self) -> dict[str, Handler]:
        """What the client service asks."""
        return {
            "hello": self._hello,
            "status": self._status,
            "digest": self._digest,
            "manifest": self._manifest,
            "trace": lambda args: self._tracer.trace(args, self.ask_all),
        }

    def peer_handlers(self) -> dict[str, Handler]:
        """What peers ask: about this site alone."""
        return {
            "status": self._own_status,
            "digest": self._own_digest,
            "manifest": self._own_manifest,
            **self._accounts.peer_handlers(),
            **self._tracer.peer_handlers(),
        }

    async def _hello(self, args: dict[str, Any]) -> Any:
        return {
            "site": self._site.name,
            "site_id": self._site.site_id,
            "pid": self._pid,
            "cluster_id": self._cluster.cluster_id,
            "mode": self._gate.mode.value,
            "received": cursors_to_json(self._journals.received()),
            "applied": cursors_to_json(self._store.applied),
            "version": 1,
        }

    async def _status(self, args: dict[str, Any]) -> Any:
        if args.get("scope", "cluster") == "site":
            return await self._own_status({})
        sites = await self.ask_all("status", self._own_status, STATUS_TIMEOUT_S)
        return {"asked": self._site.name, "sites": sites}

    async def ask_all(
        self, method: str, own: Handler, timeout_s: float, args: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One answer for each site, in the configuration's order; who cannot be asked has `unreachable`."""
        args = {} if args is None else args
        answers: dict[str, Any] = {}

        async def ask(record: PeerRecord) -> None:
            site = record.site
            answers[site.name] = _unreachable(site, f"site {site.name}: {QUIET}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_quiet, record, nursery.cancel_scope)
                try:
                    answers[site.name] = await self._queries.ask(site, method, args, timeout_s=timeout_s)
                except PeerUnreachable as error:
                    answers[site.name]["unreachable"] = str(error)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for record in self._peers.values():
                nursery.start_soon(ask, record)
            try:
                answers[self._site.name] = await own(args)
            except ReplError as error:
                answers[self._site.name] = _unreachable(self._site, str(error))
        return {site.name: answers[site.name] for site in self._cluster.sites}

    async def _cancel_when_quiet(self, record: PeerRecord, scope: trio.CancelScope) -> None:
        """Give up a question, however long its answer may take, to a peer whose probes do not come back either."""
        began_s = trio.current_time()
        quiet_max_s = QUIET_S + 2 * self._cluster.failover.check_interval_ms / 1000
        while trio.current_time() - max(began_s, record.pong_at_s or 0.0) < quiet_max_s:
            await trio.sleep(QUIET_POLL_S)
        scope.cancel()

    async def _own_status(self, args: dict[str, Any]) -> Any:
        own = self._journals.own
        unapplied = {
            str(log.journal): distance(log.tails, cursor_of(self._store.applied, log.journal, log.shard_count))
            for log in self._journals.all()
        }
        dead_letters = await self._store.read(lambda view: view.open_dead_letters())
        conflicts = await self._keeper.count()
        return {
            "name": self._site.name,
            "site_id": self._site.site_id,
            "pid": self._pid,
            "mode": self._gate.mode.value,
            "refusing_writes": list(self._gate.reasons),
            "incarnation": f"{own.journal.incarnation:016x}",
            "uptime_s": round(trio.current_time() - self._started_s, 3),
            "journal": {
                "entries": sum(own.tails),
                "bytes": own.position,
                "disk_bytes": sum(log.bytes_on_disk for log in self._journals.all()),
            },
            "received": cursors_to_json(self._journals.received()),
            "applied": cursors_to_json(self._store.applied),
            "unapplied_entries": sum(unapplied.values()),
            "dead_letters": dead_letters,
            "conflicts": {
                "open": conflicts.open,
                "open_total": sum(conflicts.open.values()),
                "kept_bytes": conflicts.kept_bytes,
                "keep_bytes_max": self._keeper.config.keep_bytes_max,
                "given_up": conflicts.given_up,
            },
            "clients": 0 if self.clients is None else self.clients.connections,
            "totals": {
                "entries_received": self._receiver.entries,
                "batches_received": self._receiver.batches,
                "duplicates_dropped": self._receiver.duplicates,
                "gaps_refused": self._receiver.gaps,
                "batches_rejected": self._receiver.rejected,
                "entries_applied": self._applier.entries,
                "conflicts_found": self._applier.conflicts,
                "applier_busy_s": round(self._applier.busy_s, 3),
                "snapshots": self._housekeeper.snapshots,
                "trimmed_bytes": self._housekeeper.trimmed_bytes,
                "connections_refused": sum(self.refused.values()),
                "refused_writes": 0 if self.clients is None else self.clients.refused_writes,
            },
            "peers": {record.site.name: await self._peer_status(record) for record in self._peers.values()},
        }

    async def _peer_status(self, record: PeerRecord) -> dict[str, Any]:
        own = self._journals.own
        now_s = trio.current_time()
        acked = record.acked or (0,) * own.shard_count
        lag_entries = distance(own.tails, acked)
        lag_bytes, lag_s = await self._lag(own, acked)
        rate = record.lag.ack_rate()
        is_cut_off = record.cut_off and record.conduit_state is not ConduitState.CONNECTED
        facts = LinkFacts(
            state=ConduitState.NEEDS_BOOTSTRAP if is_cut_off else record.conduit_state,
            lag_entries=lag_entries,
            falling=record.lag.is_falling(),
            ack_rate=rate,
            detail=record.conduit_detail,
            retry_in_s=None if record.retry_at_s is None else max(0.0, record.retry_at_s - now_s),
            in_flight=record.progress.batches_in_flight if record.progress is not None else 0,
            stalled_s=now_s - record.last_ack_at_s,
            pressure_ms=record.pressure_ms,
        )
        applied = cursor_of(record.applied, own.journal, own.shard_count)
        return {
            "site_id": record.site.site_id,
            "conduit": record.conduit_state.value,
            "inbound": "connected" if record.inbound_connected else "none",
            "mode": self._stricter_mode(record),
            "lag_entries": lag_entries,
            "lag_bytes": lag_bytes,
            "lag_s": lag_s,
            "unapplied_entries": distance(acked, applied),
            "entries_per_s": round(rate, 1),
            "catch_up_s": round(lag_entries / rate, 1) if lag_entries and rate > 0 else None,
            "reason": "; ".join(filter(None, [explain_lag(facts), self._explain_stamps(record)])) or None,
            "stamps_refused": record.stamps_refused,
            "stamps_beyond_s": None if record.stamps_beyond_us is None else round(record.stamps_beyond_us / 1e6, 3),
            "clock_offset_s": None if record.clock_offset_us is None else round(record.clock_offset_us / 1e6, 3),
            "throttled_s": round(record.throttled_s, 3),
            "bytes_sent": record.bytes_sent,
            "compaction": {"rows_emptied": record.rows_emptied, "bytes_saved": record.bytes_saved},
            "rtt_ms": None if record.rtt_ms is None else round(record.rtt_ms, 3),
            "cut_off": record.cut_off or record.conduit_state is ConduitState.NEEDS_BOOTSTRAP,
        }

    def _explain_stamps(self, record: PeerRecord) -> str | None:
        """Whose stamps are too far ahead for whom, and what to do."""
        told = []
        if record.stamps_refused is not None:
            remedy = (
                "set this site's clock"
                if self._gate.is_closed(CLOCK)
                else f"if this site's clock is right, they are taken when their time has come, or at once if it is stopped "
                f"and repaired: {remedy_stamps(self._site.name)}"
            )
            told.append(f"{record.site.name} takes no entries of this site: {record.stamps_refused}; {remedy}")
        if record.stamps_beyond_us is not None:
            beyond_s = record.stamps_beyond_us / 1e6
            told.append(f"{self._site.name} {explain_refused_stamps(record.site.name, beyond_s=beyond_s)}")
        return "; ".join(told) or None

    def _stricter_mode(self, record: PeerRecord) -> str:
        opinion = self._peer_modes[record.site.site_id]
        told = next((mode for mode in SiteMode if mode.value == record.mode_told), None)
        return (opinion if told is None or opinion.rank <= told.rank else told).value

    async def _lag(self, own: EntryLog, acked: tuple[int, ...]) -> tuple[int | None, float | None]:
        """What the peer lacks: log bytes, and how long ago the oldest of it was written; None if it was trimmed."""
        try:
            reader = own.reader(acked)
        except GapInLog:
            return None, None
        try:
            blocks = await reader.read(bytes_max=OLDEST_READ_BYTES)
        except GapInLog:  # trimmed just now
            return None, None
        else:
            behind = own.position - reader.position + sum(len(block.encoded) for block in blocks)
        finally:
            await reader.close()
        if not blocks:
            return 0, 0.0
        oldest_us = min(block.timestamps[0] for block in blocks)
        return behind, round(max(0, self._wall_clock.now_us() - oldest_us) / 1e6, 3)

    async def _own_digest(self, args: dict[str, Any]) -> Any:
        async with self._digesting:
            applied, digest, dead = await self._store.read(
                lambda view: (view.applied(), view.tree_digest(), view.open_dead_letters())
            )
        return {"digest": digest.hex(), "cursors": cursors_to_json(applied), "dead_letters": dead}

    async def _digest(self, args: dict[str, Any]) -> Any:
        if args.get("scope", "cluster") == "site":
            return await self._own_digest({})
        sites, accounts = await self._ask_long("digest", "accounts")
        for site in self._cluster.sites:
            if "unreachable" not in sites[site.name] and not _is_digest(sites[site.name], self._cluster.shards):
                sites[site.name] = _unreachable(site, f"site {site.name}: its answer is no digest")
        verdict = _judge(sites)
        if verdict.pop("trees_differ"):
            try:
                verdict["first_difference"] = await self._first_difference(sites)
            except PeerUnreachable as error:
                verdict["reason"] = f"{verdict['reason']}; where is not known: {error}"
        # Afterwards: whoever holds more than an origin had written by then holds what it never wrote.
        cursors = await self.ask_all("cursors", self._accounts.own_cursors, STATUS_TIMEOUT_S)
        counted = {name: told for name, told in accounts.items() if "unreachable" not in sites[name]}
        faults, sums = judge_sums(counted, cursors, self._cluster.shards)
        if faults and verdict["converged"]:
            verdict.update(converged=False, reason="the trees are equal, but the sums do not add up")
        return {**verdict, "sites": sites, "faults": faults, "sums": sums}

    async def _ask_long(self, *methods: str) -> list[dict[str, Any]]:
        """Ask all sites several questions that take long, at the same time: who is quiet is waited for once."""
        handlers = self.peer_handlers()
        answers: dict[str, dict[str, Any]] = {}

        async def ask(method: str) -> None:
            answers[method] = await self.ask_all(method, handlers[method], DIGEST_TIMEOUT_S)

        async with trio.open_nursery() as nursery:
            for method in methods:
                nursery.start_soon(ask, method)
        return [answers[method] for method in methods]

    async def _first_difference(self, sites: dict[str, Any]) -> dict[str, Any] | None:
        """The first path at which another site's tree differs from this one's."""
        mine = sites[self._site.name]["digest"]
        other = next((name for name, answer in sites.items() if answer.get("digest", mine) != mine), None)
        if other is None:
            return None
        peer = self._cluster.site(other)
        after: bytes | None = None
        while True:
            args = {"after": after, "limit": MANIFEST_STEP}
            ours = await self._own_manifest(args)
            theirs = await self._queries.ask(peer, "manifest", args, timeout_s=DIGEST_TIMEOUT_S)
            if not _is_page(theirs):
                raise PeerUnreachable(f"site {other}: its answer is no page of paths")
            if ours["entries"] != theirs["entries"]:
                pairs = dict(map(tuple, ours["entries"])), dict(map(tuple, theirs["entries"]))
                differing = {path for path in {*pairs[0], *pairs[1]} if pairs[0].get(path) != pairs[1].get(path)}
                return {"path": min(differing, default=after), "sites": [self._site.name, other]}
            if not ours["more"] or not ours["entries"]:
                return None
            after = ours["entries"][-1][0]

    async def _own_manifest(self, args: dict[str, Any]) -> Any:
        fields = check_fields("manifest", args, READS["manifest"])
        after, limit = fields["after"], min(MANIFEST_STEP, fields["limit"] or MANIFEST_STEP)
        entries, more = await self._store.read(lambda view: view.manifest(after, limit))
        page: list[list[bytes]] = []
        page_bytes = 0
        for path, digest in entries:
            page_bytes += len(path) + PATH_OVERHEAD_BYTES
            if page and page_bytes > MANIFEST_BYTES_MAX:
                return {"entries": page, "more": True}
            page.append([path, digest])
        return {"entries": page, "more": more}

    async def _manifest(self, args: dict[str, Any]) -> Any:
        name = args.get("site")
        if name in (None, self._site.name):
            return await self._own_manifest(args)
        if not isinstance(name, str):
            raise CallerError("manifest: site is a name")
        rest: dict[str, Any] = {key: args[key] for key in ("after", "limit") if key in args}
        return await self._queries.ask(self._cluster.site(name), "manifest", rest, timeout_s=DIGEST_TIMEOUT_S)


def _unreachable(site: SiteConfig, reason: str) -> dict[str, Any]:
    return {"name": site.name, "site_id": site.site_id, "pid": None, "mode": None, "peers": {}, "unreachable": reason}


def _is_digest(answer: Mapping[str, Any], shards: int) -> bool:
    """Whether a peer's answer is what `digest` is answered with: it is the peer's word, and may be anything."""
    match answer:
        case {"digest": str(), "dead_letters": int(), "cursors": dict(cursors)}:
            try:
                told = cursors_from_json(cursors)
            except (ValueError, TypeError, AttributeError):
                return False
            return all(len(seqs) == shards and all(type(seq) is int for seq in seqs) for seqs in told.values())
    return False


def _is_page(answer: Mapping[str, Any]) -> bool:
    """Whether a peer's answer is a page of a manifest."""
    entries = answer.get("entries")
    return isinstance(entries, list) and all(
        isinstance(entry, list) and [type(part) for part in entry] == [bytes, bytes] for entry in entries
    )


def _judge(sites: dict[str, Any]) -> dict[str, Any]:
    """Whether the sites' trees are equal at equal cursors, and if not, why not."""
    unreachable = [name for name, answer in sites.items() if "unreachable" in answer]
    if unreachable:
        return _not_converged(f"not reachable: {', '.join(unreachable)}")
    dead = [name for name, answer in sites.items() if answer["dead_letters"]]
    if dead:
        commands = "; ".join(f"claudefs-repl deadletters list {name}" for name in dead)
        return _not_converged(f"dead letters are open at {', '.join(dead)}; see: {commands}")
    answers = list(sites.values())
    first = cursors_from_json(answers[0]["cursors"])
    if not all(equal(first, cursors_from_json(answer["cursors"])) for answer in answers[1:]):
        return _not_converged("the sites have not applied the same entries yet")
    if len({answer["digest"] for answer in answers}) > 1:
        return {**_not_converged("the trees differ at equal cursors"), "trees_differ": True}
    return {"converged": True, "reason": None, "first_difference": None, "trees_differ": False}


def _not_converged(reason: str) -> dict[str, Any]:
    return {"converged": False, "reason": reason, "first_difference": None, "trees_differ": False}
