"""A site: opens its nursery and wires its actors, and is the only place that does.

Start: lock, identity, logs, store, own journal replayed; then probes, conduits and the applier; then peers and clients
are let in. Stop, in nested nurseries from the inside out: no more clients and peers, the journal writer finishes what it
took, the senders get until the drain deadline, everything is persisted and closed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio
from structlog.typing import FilteringBoundLogger

from claudefs_repl.admission import Admission
from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.clock import HybridClock
from claudefs_repl.error import ConfigInvalid, DiskFull
from claudefs_repl.failover import FailoverManager, SiteMode
from claudefs_repl.health import ConduitState
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.accounts import Accounts
from nodes.admin import Admin, Limiters, read_pinned_mode
from nodes.applier import Applier
from nodes.bootstrap_source import BootstrapSource
from nodes.catch_up import has_caught_up
from nodes.client_service import ClientService
from nodes.clock_watch import ClockWatch
from nodes.conduit_receiver import Receiving, serve_conduit
from nodes.conduit_sender import run_conduit_sender
from nodes.conflict_keeper import ConflictKeeper
from nodes.conflict_service import ConflictService
from nodes.conflict_teller import ConflictTeller
from nodes.dead_letter_service import DeadLetterService
from nodes.dialing import Dialing, dialer_limits, monotonic_us
from nodes.failover_actor import log_own_event, run_failover_actor, run_own_health
from nodes.former_watch import FormerWatch
from nodes.health_prober import HealthReport, SelfView, run_health_prober, serve_probe
from nodes.housekeeper import Housekeeper, make_room_to_start
from nodes.journal_writer import QUEUE_MAX, WriteRequest, run_journal_writer
from nodes.link import Link
from nodes.listener import Listener
from nodes.peers import PeerRecord
from nodes.queries import PeerQueries, serve_queries
from nodes.reclaimer import run_reclaimer
from nodes.recovery import Recovered, recover
from nodes.shown_ids import ShownIds
from nodes.status import SiteStatus
from nodes.surroundings import Surroundings
from nodes.trace import Tracer
from nodes.write_gate import WriteGate
from protocol.handshake import LocalIdentity, Role
from protocol.keys import KeyRing

REPORTS_MAX = 256
"""Health reports under way: a few for each peer."""
STOPPING = "stopping"
CLOCK_WATCH_S = 0.5
"""A wrong clock's writes are refused half a second after the pongs that show it, however seldom the probes are."""


@dataclass(slots=True)
class _Running:
    """What the actors share, once the disk is recovered."""

    recovered: Recovered
    dialing: Dialing
    admission: Admission
    sending: AuthRateLimiter
    manager: FailoverManager
    receiving: Receiving
    teller: ConflictTeller
    applier: Applier
    housekeeper: Housekeeper
    status: SiteStatus
    source: BootstrapSource
    clients: ClientService
    writes: trio.MemorySendChannel[WriteRequest]
    requests: trio.MemoryReceiveChannel[WriteRequest]


class Site:
    """One site's wiring. Whoever starts it runs it once (`nodes.site_start`)."""

    def __init__(
        self,
        cluster: ClusterConfig,
        site: SiteConfig,
        keys: KeyRing,
        around: Surroundings,
        logger: FilteringBoundLogger,
    ) -> None:
        self._cluster = cluster
        self._site = site
        self._keys = keys
        self._around = around
        self._storage = around.storage
        self._wall_clock = around.wall_clock
        self._rng = around.rng
        self._logger = logger
        self._is_scarce = around.is_scarce
        failover = cluster.failover
        becomes_active = failover.active_active or failover.initial_active == site.name
        self._gate = WriteGate(site.name, SiteMode.STANDBY_READ_ONLY, becomes_active=becomes_active)
        self._peers = {peer.site_id: PeerRecord(peer) for peer in cluster.peers_of(site.site_id)}
        self._peer_modes = dict.fromkeys(self._peers, SiteMode.ACTIVE_READ_WRITE)
        self._stop = trio.Event()

    async def run(self) -> None:
        """Run until `stop`; what is cancelled instead ends at once, as if it were killed."""
        self._logger.info(
            "site_started",
            pid=self._around.pid,
            address=self._site.address,
            port=self._site.port,
            data_dir=str(self._site.data_dir),
        )
        await make_room_to_start(self._storage, self._gate, self._logger)
        recovered = await recover(
            cluster=self._cluster,
            site=self._site,
            storage=self._storage,
            entropy=self._around.entropy,
            gate=self._gate,
            logger=self._logger,
            store_runner=self._around.store_runner,
        )
        try:
            await self._serve(self._wire(recovered))
        finally:
            with trio.CancelScope(shield=True):
                await recovered.close()
        self._logger.info("site_stopped", undelivered_entries=self._undelivered(recovered))

    def stop(self, reason: str) -> bool:
        """Begin to stop in order; False if that had begun already."""
        if self._stop.is_set():
            return False
        self._logger.info("site_stopping", reason=reason)
        self._stop.set()
        return True

    def _wire(self, recovered: Recovered) -> _Running:
        journals, store = recovered.journals, recovered.store
        config = self._cluster.replication
        identity = LocalIdentity(
            self._cluster.cluster_id, self._cluster.shards, self._site.site_id, journals.own.journal.incarnation
        )
        limits = self._cluster.rate_limit
        dialing = Dialing(
            identity=identity,
            local_address=self._site.address,
            keys=self._keys,
            entropy=self._around.entropy,
            timeout_s=config.handshake_timeout_s,
            limiter=AuthRateLimiter(dialer_limits(limits)),
            learn=recovered.incarnations.learn,
        )
        admission = Admission(limits, [record.site.address for record in self._peers.values()])
        receiving = Receiving(
            journals=journals,
            incarnations=recovered.incarnations,
            store=store,
            config=config,
            limiter=AuthRateLimiter(limits),
            blame=lambda site_id: admission.blame(site_id, now_us=monotonic_us()),
            gate=self._gate,
            mode=lambda: self._gate.mode.value,
            wall_clock=self._wall_clock,
            logger=self._logger,
        )
        manager = FailoverManager(self._cluster.failover, self._site.site_id)
        teller = ConflictTeller(
            cluster=self._cluster,
            site=self._site,
            store=store,
            report=manager.report_conflict,
            wall_clock=self._wall_clock,
            logger=self._logger,
        )
        applier = Applier(
            journals=journals,
            store=store,
            share=config.applier_share,
            gate=self._gate,
            logger=self._logger,
            on_conflicts=teller.tell,
        )
        keeper = ConflictKeeper(store=store, config=self._cluster.conflicts, logger=self._logger)
        housekeeper = Housekeeper(
            storage=self._storage,
            root=self._site.data_dir,
            config=self._cluster.journal,
            shard_count=self._cluster.shards,
            journals=journals,
            incarnations=recovered.incarnations,
            store=store,
            peers=self._peers,
            gate=self._gate,
            snapshot=recovered.snapshot,
            keeper=keeper,
            logger=self._logger,
        )
        queries = PeerQueries(dialing)
        source = BootstrapSource(
            storage=self._storage,
            shard_count=self._cluster.shards,
            journals=journals,
            store=store,
            housekeeper=housekeeper,
            wall_clock=self._wall_clock,
        )
        status = SiteStatus(
            cluster=self._cluster,
            site=self._site,
            pid=self._around.pid,
            journals=journals,
            store=store,
            peers=self._peers,
            peer_modes=self._peer_modes,
            gate=self._gate,
            queries=queries,
            wall_clock=self._wall_clock,
            applier=applier.stats,
            receiver=receiving.stats,
            housekeeper=housekeeper.stats,
            accounts=Accounts(journals=journals, store=store, peers=self._peers),
            tracer=Tracer(
                cluster=self._cluster,
                site=self._site,
                journals=journals,
                store=store,
                peers=self._peers,
                queries=queries,
                wall_clock=self._wall_clock,
            ),
            keeper=keeper,
        )
        sending = AuthRateLimiter(limits)
        shown_ids = ShownIds(self._cluster, self._site)
        admin = Admin(
            cluster=self._cluster,
            site=self._site,
            storage=self._storage,
            dialing=dialing,
            limiters=Limiters(admission, dialing.limiter, (sending, receiving.limiter)),
            shown_ids=shown_ids,
            conflicts=(teller, keeper),
            manager=manager,
            gate=self._gate,
            wall_clock=self._wall_clock,
            logger=self._logger,
        )
        dead_letters = DeadLetterService(cluster=self._cluster, store=store, retry=applier.retry_dead_letters)
        writes, requests = trio.open_memory_channel[WriteRequest](QUEUE_MAX)
        clients = ClientService(
            store=store,
            writes=writes,
            gate=self._gate,
            shown_ids=shown_ids,
            extra={
                **status.client_handlers(),
                **admin.handlers(),
                **dead_letters.handlers(),
                **ConflictService(store=store, gate=self._gate).handlers(),
            },
            logger=self._logger,
            is_scarce=self._is_scarce,
        )
        status.clients = clients.stats
        status.refused = admission.refused
        return _Running(
            recovered=recovered,
            dialing=dialing,
            admission=admission,
            sending=sending,
            manager=manager,
            receiving=receiving,
            teller=teller,
            applier=applier,
            housekeeper=housekeeper,
            status=status,
            source=source,
            clients=clients,
            writes=writes,
            requests=requests,
        )

    async def _serve(self, running: _Running) -> None:
        await running.manager.register_site(self._site.site_id, initial=SiteMode.STANDBY_READ_ONLY)
        for site_id, record in self._peers.items():
            record.acked = running.recovered.evidence.acked.get(site_id, ())
            record.note_tails(running.recovered.evidence.told)
        pinned = await read_pinned_mode(self._storage)
        if pinned is not None:
            await running.manager.force_mode(self._site.site_id, pinned, pin=True)
            self._gate.mode = pinned
            self._gate.pinned = True
        for site_id in self._peers:
            await running.manager.register_site(site_id)
        async with trio.open_nursery() as background:
            self._start_background(background, running)
            async with trio.open_nursery() as entrance:
                await self._open_entrance(entrance, running)
                self._logger.info("site_ready", mode=self._gate.mode.value)
                await self._stop.wait()
                entrance.cancel_scope.cancel()
            self._gate.close(STOPPING, "it is stopping")
            await running.writes.aclose()
            await self._drain(running.recovered)
            background.cancel_scope.cancel()
        try:
            await running.housekeeper.write_evidence()
            await running.recovered.store.make_durable()
        except DiskFull as full:
            # Both only make the next start quicker: the journals are durable, and the view is folded from them.
            self._gate.close_for_disk(full, self._logger)

    def _start_background(self, nursery: trio.Nursery, running: _Running) -> None:
        recovered = running.recovered
        interval_s = self._cluster.failover.check_interval_ms / 1000
        reports, incoming = trio.open_memory_channel[HealthReport](REPORTS_MAX)
        nursery.start_soon(
            lambda: run_journal_writer(
                requests=running.requests,
                log=recovered.journals.own,
                store=recovered.store,
                clock=HybridClock(floor_us=recovered.journals.own.last_timestamp_us),
                wall_clock=self._wall_clock,
                gate=self._gate,
                catch_up=running.applier.catch_up,
                logger=self._logger,
            )
        )
        nursery.start_soon(running.teller.run)
        nursery.start_soon(running.applier.run)
        nursery.start_soon(running.housekeeper.run)
        nursery.start_soon(
            lambda: run_failover_actor(
                manager=running.manager,
                reports=incoming,
                names={site.site_id: site.name for site in self._cluster.sites},
                gate=self._gate,
                wall_clock=self._wall_clock,
                logger=self._logger,
                on_mode=self._note_mode,
            )
        )
        clock_watch = ClockWatch(
            peers=self._peers.values(),
            limit_us=int(self._cluster.replication.max_clock_drift_s * 1e6),
            gate=self._gate,
            logger=self._logger,
        )
        nursery.start_soon(clock_watch.run, min(interval_s, CLOCK_WATCH_S))
        former_watch = FormerWatch(
            journals=recovered.journals,
            incarnations=recovered.incarnations,
            peers=self._peers.values(),
            gate=self._gate,
            logger=self._logger,
        )
        nursery.start_soon(former_watch.run, interval_s)
        nursery.start_soon(
            lambda: run_own_health(
                site_id=self._site.site_id,
                interval_s=interval_s,
                caught_up=lambda: has_caught_up(recovered, self._peers.values(), self._gate, self._logger),
                # A journal or store that fails ends the process: what is left to ask is the clock.
                healthy=lambda: clock_watch.is_in_bounds,
                startup_wait_s=self._cluster.startup.startup_wait_s,
                peers_reached=lambda: all(record.first_tails is not None for record in self._peers.values()),
                on_caught_up=lambda: self._begin_active(running.manager),
                reports=reports,
                logger=self._logger,
            )
        )
        nursery.start_soon(
            lambda: run_reclaimer(
                journal=recovered.journals.own.journal,
                store=recovered.store,
                stable=lambda: running.housekeeper.stats.stable,
                writes=running.writes,
                gate=self._gate,
                logger=self._logger,
            )
        )
        for record in self._peers.values():
            nursery.start_soon(self._run_sender(record, running))
            nursery.start_soon(self._run_prober(record, running, interval_s, reports.clone()))

    def _run_sender(self, record: PeerRecord, running: _Running) -> Callable[[], Awaitable[None]]:
        return lambda: run_conduit_sender(
            dialing=running.dialing,
            record=record,
            journals=running.recovered.journals,
            config=self._cluster.replication,
            limiter=running.sending,
            gate=self._gate,
            wall_clock=self._wall_clock,
            rng=self._rng,
            logger=self._logger,
        )

    def _run_prober(
        self,
        record: PeerRecord,
        running: _Running,
        interval_s: float,
        reports: trio.MemorySendChannel[HealthReport],
    ) -> Callable[[], Awaitable[None]]:
        return lambda: run_health_prober(
            dialing=running.dialing,
            record=record,
            interval_s=interval_s,
            probes_until_offline=2 * self._cluster.failover.failure_threshold,
            view=lambda: self._view(running.recovered),
            wall_clock=self._wall_clock,
            reports=reports,
            logger=self._logger,
        )

    async def _open_entrance(self, nursery: trio.Nursery, running: _Running) -> None:
        config = self._cluster.replication

        async def conduit(link: Link, record: PeerRecord) -> None:
            await serve_conduit(link, record, running.receiving)

        async def probe(link: Link, record: PeerRecord) -> None:
            view = partial(self._view, running.recovered)
            await serve_probe(link, record, view, self._wall_clock, config.idle_timeout_s)

        async def query(link: Link, record: PeerRecord) -> None:
            handlers = {**running.status.peer_handlers(), **running.source.peer_handlers(record)}
            await serve_queries(link, handlers, config.idle_timeout_s)

        listener = Listener(
            site=self._site,
            dialing=running.dialing,
            config=config,
            admission=running.admission,
            peers=self._peers,
            servers={Role.CONDUIT: conduit, Role.PROBE: probe, Role.QUERY: query},
            rng=self._rng,
            logger=self._logger,
            is_scarce=self._is_scarce,
        )
        try:
            await nursery.start(listener.run)
        except OSError as error:
            place = f"{self._site.address}:{self._site.port}"
            remedy = f"end what uses that port or choose another in {self._cluster.path}"
            why = f"site {self._site.name} cannot listen at {place}: {error.strerror or error}; {remedy}"
            raise ConfigInvalid([why]) from error
        await nursery.start(running.clients.run, self._around.open_clients)

    def _view(self, recovered: Recovered) -> SelfView:
        own = recovered.journals.own
        return SelfView(
            mode=self._gate.mode.value,
            received=recovered.journals.received(),
            applied=recovered.store.applied,
            tails={own.journal: own.tails},
        )

    async def _begin_active(self, manager: FailoverManager) -> None:
        """Without `active_active`, health alone makes no standby writable: the configuration says who begins."""
        failover = self._cluster.failover
        if failover.active_active or failover.initial_active != self._site.name or self._gate.pinned:
            return
        events = await manager.force_mode(self._site.site_id, SiteMode.ACTIVE_READ_WRITE)
        self._gate.mode = SiteMode.ACTIVE_READ_WRITE
        for event in events:
            log_own_event(event, self._logger)

    def _note_mode(self, site_id: SiteId, mode: SiteMode) -> None:
        if site_id in self._peer_modes:
            self._peer_modes[site_id] = mode

    async def _drain(self, recovered: Recovered) -> None:
        """Let connected conduits deliver what they have, until the deadline."""
        with trio.move_on_after(self._cluster.replication.drain_deadline_s):
            while any(
                record.conduit_state is ConduitState.CONNECTED and record.acked != recovered.journals.own.tails
                for record in self._peers.values()
            ):
                await trio.sleep(0.02)

    def _undelivered(self, recovered: Recovered) -> int:
        tails = sum(recovered.journals.own.tails)
        return max((tails - sum(record.acked) for record in self._peers.values() if record.acked), default=0)
