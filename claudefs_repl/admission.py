"""Admission: what every inbound connection is charged, before a byte of it is read and when its handshake ends.

Until a dialler has proved its key it is nobody, so the attempt is charged to its source address; the proof refunds that
and charges the site that it proved to be. A stranger cannot lock a site out by naming it. Addresses that the
configuration gives to peers are not locked, because a flood that comes from there, or pretends to, must not shut the
peer out: they have a small number of open handshakes of their own instead.

Failures make a source wait, longer each time, as sshd's PerSourcePenalties do.
"""

from __future__ import annotations

import enum
import ipaddress
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from claudefs_repl.auth_ratelimit import KEYS_MAX, AuthRateLimiter, Blocked
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import RateLimitConfig

HALF_OPEN_BEGIN = 10
HALF_OPEN_FULL = 100
"""Open handshakes of strangers: from the first number some are refused, from the second all (sshd's MaxStartups)."""
HALF_OPEN_BEGIN_RATE = 0.3
PEER_HALF_OPEN_MAX = 8
"""Open handshakes of one configured address: a conduit, a probe and a question, each dialled anew once or twice."""
PENALTY_MAX_US = 600_000_000
PENALTY_GRACE_US = 15_000_000
"""A source is refused while its penalty is above this, so that a single failure costs nothing but is remembered."""

KINDS_MAX = 64
"""Kinds of refusal that are told apart: above all that there are, because a dialler that refuses us names its own."""
OTHER = "other"


class Failure(enum.Enum):
    """How a handshake failed, and what that adds to the source's penalty, in microseconds."""

    NO_AUTH = 5_000_000
    """Nothing came, or not in time."""
    NOT_OURS = 10_000_000
    """Another protocol, another cluster, an unknown site."""
    BAD_PROOF = 20_000_000
    """It claimed a site and had not its key."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A connection is not taken: a stable word, a sentence, and how long to stay away."""

    code: str
    detail: str
    wait_ms: int


@dataclass(slots=True)
class Ticket:
    """A connection that may shake hands; given back by `Admission.leave`."""

    source: int
    is_peer: bool
    is_open: bool = True


def address_key(address: str) -> int:
    """An address as an integer key: IPv4 as it is, of IPv6 the network of 64 bits, which one host may fill.

    Raises:
        ValueError: not a literal address.
    """
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        return (int(parsed) >> 64) | 1 << 64
    return int(parsed)


class Admission:
    """The gate before the handshake. Owned by the listener.

    Args:
        config: limits of attempts, for addresses and for sites.
        peer_addresses: literal addresses of configured peers.

    Attributes:
        refused: how many connections were refused since the start, by kind.
    """

    def __init__(self, config: RateLimitConfig, peer_addresses: Iterable[str]) -> None:
        self._addresses = AuthRateLimiter(config)
        self._sites = AuthRateLimiter(config)
        self._peers = frozenset(address_key(address) for address in peer_addresses if _is_literal(address))
        self._penalties: OrderedDict[int, int] = OrderedDict()
        self._half_open: dict[int, int] = {}
        self._strangers = 0
        self.refused: dict[str, int] = {}

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return sum(self._half_open.values())

    def arrive(self, source: int, *, now_us: int, draw: float) -> Ticket | Refusal:
        """Judge a new connection.

        Args:
            source: `address_key` of where it comes from.
            now_us: the time, microseconds.
            draw: a random number from 0 up to 1, for refusing some when many are open.
        """
        if source in self._peers:
            if self._half_open.get(source, 0) >= PEER_HALF_OPEN_MAX:
                return self._refuse("half_open", f"{PEER_HALF_OPEN_MAX} handshakes of this address are open", 1000)
            return self._open(source, is_peer=True)
        penalty_us = self._penalties.get(source, 0) - now_us
        if penalty_us > PENALTY_GRACE_US:
            return self._refuse("penalty", "this address failed too often", -(-penalty_us // 1000))
        if self._strangers >= HALF_OPEN_FULL or draw < _drop_rate(self._strangers):
            return self._refuse("half_open", f"{self._strangers} handshakes are open", 1000)
        result = self._addresses.check_auth_attempt(source, now_us)
        if isinstance(result, Blocked):
            return self._refuse("rate_limited", result.reason, -(-(result.until_us - now_us) // 1000))
        return self._open(source, is_peer=False)

    def prove(self, ticket: Ticket, site: SiteId, *, now_us: int) -> Refusal | None:
        """The dialler has proved to be a site: refund its address, charge the site."""
        self.leave(ticket)
        if not ticket.is_peer:
            self._addresses.refund_auth_attempt(ticket.source)
        self._penalties.pop(ticket.source, None)
        result = self._sites.check_auth_attempt(site, now_us)
        if isinstance(result, Blocked):
            return self._refuse("rate_limited", result.reason, -(-(result.until_us - now_us) // 1000))
        return None

    def blame(self, site: SiteId, *, now_us: int) -> None:
        """A proven site broke the protocol: that counts like one more attempt, so that repeating it locks the site."""
        self._sites.check_auth_attempt(site, now_us)

    def fail(self, ticket: Ticket, failure: Failure, *, now_us: int) -> None:
        """The handshake failed: the source's penalty grows."""
        self.leave(ticket)
        if ticket.is_peer:
            return
        if len(self._penalties) >= KEYS_MAX and ticket.source not in self._penalties:
            self._penalties.popitem(last=False)
        until_us = max(self._penalties.get(ticket.source, 0), now_us) + failure.value
        self._penalties[ticket.source] = min(until_us, now_us + PENALTY_MAX_US)
        self._penalties.move_to_end(ticket.source)

    def leave(self, ticket: Ticket) -> None:
        """The handshake is over, however it ended; nothing happens the second time."""
        if not ticket.is_open:
            return
        ticket.is_open = False
        self._half_open[ticket.source] -= 1
        if not self._half_open[ticket.source]:
            del self._half_open[ticket.source]
        self._strangers -= not ticket.is_peer

    def unblock_address(self, source: int) -> None:
        """The administrator's reset of an address."""
        self._addresses.reset_site(source)
        self._penalties.pop(source, None)

    def unblock_site(self, site: SiteId) -> None:
        """The administrator's reset of a site."""
        self._sites.reset_site(site)

    def reconfigure(self, config: RateLimitConfig) -> None:
        """Take new limits; what was counted stays counted."""
        self._addresses.reconfigure(config)
        self._sites.reconfigure(config)

    def _open(self, source: int, *, is_peer: bool) -> Ticket:
        self._half_open[source] = self._half_open.get(source, 0) + 1
        self._strangers += not is_peer
        return Ticket(source, is_peer)

    def count(self, code: str) -> None:
        """One more connection was refused, here or by the listener."""
        if code not in self.refused and len(self.refused) >= KINDS_MAX:
            code = OTHER
        self.refused[code] = self.refused.get(code, 0) + 1

    def _refuse(self, code: str, detail: str, wait_ms: int) -> Refusal:
        self.count(code)
        return Refusal(code, detail, wait_ms)


def _is_literal(address: str) -> bool:
    try:
        address_key(address)
    except ValueError:
        return False
    return True


def _drop_rate(open_handshakes: int) -> float:
    """How many of 1 new strangers are refused: none below BEGIN, then from BEGIN_RATE up to all at FULL."""
    if open_handshakes < HALF_OPEN_BEGIN:
        return 0.0
    share = (open_handshakes - HALF_OPEN_BEGIN) / (HALF_OPEN_FULL - HALF_OPEN_BEGIN)
    return HALF_OPEN_BEGIN_RATE + (1 - HALF_OPEN_BEGIN_RATE) * share
