"""How a site dials its peers: from its own address, with its own keys, and never so often that a peer would lock it out."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from claudefs_repl.auth_ratelimit import AuthRateLimiter, Blocked
from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import Incarnation, SiteId
from claudefs_repl.topology import RateLimitConfig, SiteConfig
from nodes.link import Link, dial
from nodes.seams import Entropy
from protocol.handshake import LocalIdentity, Role
from protocol.keys import KeyRing

OWN_LOCK_S = 1
"""A dialler that has used up its attempts looks again every second whether the oldest has left the window."""


def monotonic_us() -> int:
    """Trio's time in microseconds: limits do not move with the wall clock."""
    return int(trio.current_time() * 1e6)


def dialer_limits(config: RateLimitConfig) -> RateLimitConfig:
    """Under half of what a peer allows, so that not even a restart in between reaches its limit."""
    attempts = max(1, (config.max_auth_attempts_per_minute - 1) // 2)
    return RateLimitConfig(max_auth_attempts_per_minute=attempts, lockout_duration_secs=OWN_LOCK_S)


@dataclass(slots=True)
class LiveLinks:
    """Every authenticated link of a site, in both directions. Owned by the site."""

    _links: set[Link] = field(default_factory=set)

    def add(self, link: Link) -> None:
        """A link is up."""
        self._links.add(link)

    async def close(self, link: Link) -> None:
        """Close a link."""
        self._links.discard(link)
        await link.aclose()

    async def close_retired(self, keys: KeyRing) -> int:
        """End the links whose key is no longer in the ring; their tasks close them, and connect again."""
        retired = [link for link in self._links if not link.has_key_in(keys)]
        for link in retired:
            await link.hang_up()
        return len(retired)


@dataclass(slots=True)
class Dialing:
    """What every connection of this site begins with.

    Attributes:
        keys: the ring as it is now; a reload replaces it.
        limiter: of this site's own attempts, by peer.
        live: every authenticated link of this site, in both directions.
        learn: told of the incarnation that a peer's handshake has proved.
    """

    identity: LocalIdentity
    local_address: str
    keys: KeyRing
    entropy: Entropy
    timeout_s: float
    limiter: AuthRateLimiter
    live: LiveLinks = field(default_factory=LiveLinks)
    learn: Callable[[SiteId, Incarnation], None] = lambda origin, incarnation: None

    async def dial(self, peer: SiteConfig, role: Role) -> Link:
        """Connect to a peer in a role.

        Raises:
            PeerRefused: as `nodes.link.dial`, and `own_limit`, `out_of_reach`, `key_retired`.
            OSError, trio.TooSlowError, ProtocolViolation: as `nodes.link.dial`.
        """
        if _is_loopback(self.local_address) and not _is_loopback(peer.address):
            detail = f"this site's address {self.local_address} reaches no other machine: give it one that does"
            raise PeerRefused("out_of_reach", detail)
        result = self.limiter.check_auth_attempt(peer.site_id, monotonic_us())
        if isinstance(result, Blocked):
            raise PeerRefused("own_limit", "this site dials no more often", wait_ms=OWN_LOCK_S * 1000)
        try:
            link = await dial(
                identity=self.identity,
                local_address=self.local_address,
                peer=peer,
                role=role,
                keys=self.keys,
                entropy=self.entropy,
                timeout_s=self.timeout_s,
            )
        except BaseException:
            # A peer charges a site for what it has proved, so an attempt without a proof has cost nothing.
            self.limiter.refund_auth_attempt(peer.site_id)
            raise
        if not link.has_key_in(self.keys):
            # A reload came meanwhile, and has closed the links that were live then.
            await link.aclose()
            raise PeerRefused("key_retired", "the key was retired while this site dialled")
        self.live.add(link)
        self.has_met(link)
        return link

    def has_met(self, link: Link) -> None:
        """Take note of what a handshake, in either direction, has proved of a peer."""
        # A site that bootstraps asks under an incarnation that it has not begun yet, and may never begin.
        if link.session.role is not Role.QUERY:
            self.learn(link.session.peer, link.session.peer_incarnation)


def _is_loopback(address: str) -> bool:
    """Whether an address is this machine's alone; a host's name is taken for one that others reach."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
