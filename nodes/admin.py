"""The administrator's hand on a running site: reload, unblock, mode."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from structlog.typing import FilteringBoundLogger

from claudefs_repl.admission import Admission, address_key
from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.error import CallerError, PeerRefused, WorldError
from claudefs_repl.failover import FailoverManager, SiteFailoverState, SiteMode
from claudefs_repl.topology import ClusterConfig, RateLimitConfig, SiteConfig
from nodes.config import load_cluster
from nodes.conflict_keeper import ConflictKeeper
from nodes.conflict_teller import ConflictTeller
from nodes.dialing import Dialing, dialer_limits
from nodes.failover_actor import log_own_event
from nodes.key_files import load_keys
from nodes.link import LINK_ERRORS
from nodes.queries import Handler
from nodes.runtime import ShiftedClock
from nodes.seams import LimitedStorage, Storage
from nodes.shown_ids import ShownIds
from nodes.small_json import parse_json
from nodes.write_gate import WriteGate
from protocol.handshake import Role

MODE_FILE = "mode.json"


async def read_pinned_mode(storage: Storage) -> SiteMode | None:
    """The mode that an operator pinned before the last stop, None if none is."""
    content = await storage.read_file(MODE_FILE)
    if content is None:
        return None
    try:
        return SiteMode(parse_json(content)["pinned"])
    except (ValueError, KeyError, TypeError) as error:
        raise WorldError(f"{MODE_FILE} cannot be read ({error!r}); remove it to start without a pinned mode") from error


@dataclass(frozen=True, slots=True)
class Limiters:
    """Every limiter of a site that follows `[rate_limit]`."""

    admission: Admission
    dialing: AuthRateLimiter
    paced: Sequence[AuthRateLimiter]

    def reconfigure(self, config: RateLimitConfig) -> None:
        """Take new limits; what was counted stays counted."""
        self.admission.reconfigure(config)
        self.dialing.reconfigure(dialer_limits(config))
        for limiter in self.paced:
            limiter.reconfigure(config)


def _needing_restart(cluster: ClusterConfig, section: str) -> Any:
    """What of a section is read only at the start."""
    if section == "sites":
        return tuple(replace(site, identity=(), clock_offset_s=0.0, disk_quota_bytes=0) for site in cluster.sites)
    return getattr(cluster, section)


class Admin:
    """Serves the administrator's requests on the client socket."""

    def __init__(
        self,
        *,
        cluster: ClusterConfig,
        site: SiteConfig,
        storage: LimitedStorage,
        dialing: Dialing,
        limiters: Limiters,
        shown_ids: ShownIds,
        conflicts: Sequence[ConflictTeller | ConflictKeeper],
        manager: FailoverManager,
        gate: WriteGate,
        wall_clock: ShiftedClock,
        logger: FilteringBoundLogger,
    ) -> None:
        self._cluster = cluster
        self._rate_limit = cluster.rate_limit
        self._site = site
        self._storage = storage
        self._dialing = dialing
        self._limiters = limiters
        self._shown_ids = shown_ids
        self._conflicts = conflicts
        self._manager = manager
        self._gate = gate
        self._wall_clock = wall_clock
        self._clock_offset_s = site.clock_offset_s
        self._disk_quota_bytes = site.disk_quota_bytes
        self._logger = logger

    def handlers(self) -> dict[str, Handler]:
        """What the client service asks."""
        return {"reload": self._reload, "unblock": self._unblock, "mode": self._mode}

    async def _reload(self, args: dict[str, Any]) -> Any:
        """Read `cluster.toml` and the keys again: what is not among `changed` changes at the next start only."""
        found = load_cluster(self._cluster.path)
        site = found.site(self._site.name)
        keys = load_keys(found.key_file(site), self._site)
        changed = []
        if found.rate_limit != self._rate_limit:
            self._limiters.reconfigure(found.rate_limit)
            changed.append("rate_limit")
        if self._shown_ids.replace_tables(site):
            changed.append("identity")
        if any(each.config != found.conflicts for each in self._conflicts):
            for each in self._conflicts:
                each.config = found.conflicts
            changed.append("conflicts")
        if keys != self._dialing.keys:
            self._dialing.keys = keys
            closed = await self._dialing.live.close_retired(keys)
            changed.append(f"keys ({closed} connections of retired keys closed)")
        if site.clock_offset_s != self._clock_offset_s:
            self._wall_clock.shift(site.clock_offset_s)
            self._clock_offset_s = site.clock_offset_s
            changed.append(f"clock_offset_s ({site.clock_offset_s:g} s)")
        if site.disk_quota_bytes != self._disk_quota_bytes:
            self._storage.set_quota(site.disk_quota_bytes)
            self._disk_quota_bytes = site.disk_quota_bytes
            changed.append(f"disk_quota_bytes ({site.disk_quota_bytes:,} bytes)")
        restart_needed = [
            field.name
            for field in fields(ClusterConfig)
            if field.name not in ("path", "rate_limit", "conflicts")
            and _needing_restart(found, field.name) != _needing_restart(self._cluster, field.name)
        ]
        self._rate_limit = found.rate_limit
        self._logger.info("reloaded", changed=changed, restart_needed=restart_needed)
        return {"changed": changed, "restart_needed": restart_needed}

    async def _unblock(self, args: dict[str, Any]) -> Any:
        site, address = args.get("site"), args.get("address")
        peer: SiteConfig | None = None
        if isinstance(site, str):
            peer = self._cluster.site(site)
            self._limiters.admission.unblock_site(peer.site_id)
            unblocked = site
        elif isinstance(address, str):
            try:
                self._limiters.admission.unblock_address(address_key(address))
            except ValueError as error:
                raise CallerError(f"unblock: {address!r} is neither a site's name nor an IP address") from error
            unblocked = address
        else:
            raise CallerError("unblock: name a site or an address")
        self._logger.info("unblocked", what=unblocked)
        if peer is not None and peer.site_id != self._site.site_id:
            await self._call(peer)
        return {"unblocked": unblocked}

    async def _call(self, peer: SiteConfig) -> None:
        """Dial a peer and hang up: whom it finds waiting to dial us it wakes. Nothing is lost if it cannot be reached."""
        try:
            link = await self._dialing.dial(peer, Role.QUERY)
        except (PeerRefused, *LINK_ERRORS):
            return
        await self._dialing.live.close(link)

    async def _mode(self, args: dict[str, Any]) -> Any:
        own = self._site.site_id
        wanted = args.get("mode")
        if wanted is not None:
            mode = next((mode for mode in SiteMode if mode.value == wanted), None)
            if mode is None:
                raise CallerError(f"mode: one of {', '.join(mode.value for mode in SiteMode)}, not {wanted!r}")
            # Also without `pin`, if it was pinned before: a restart must not bring back the mode of then.
            pin = args.get("pin") is True or (await self._own_state()).pinned
            if pin:
                await self._storage.replace_file(MODE_FILE, json.dumps({"pinned": mode.value}).encode())
            for event in await self._manager.force_mode(own, mode, pin=pin):
                log_own_event(event, self._logger)
            self._gate.mode = mode
        if args.get("release") is True:
            await self._storage.remove(MODE_FILE)
            await self._storage.sync_dir(".")
            await self._manager.release(own)
        state = await self._own_state()
        self._gate.pinned = state.pinned
        return {"mode": state.mode.value, "pinned": state.pinned, "failover_count": state.failover_count}

    async def _own_state(self) -> SiteFailoverState:
        states = await self._manager.all_states()
        return next(state for state in states if state.site_id == self._site.site_id)
