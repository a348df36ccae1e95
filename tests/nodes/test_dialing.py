"""How a site dials."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import Incarnation, SiteId
from claudefs_repl.topology import RateLimitConfig, SiteConfig
from nodes.dialing import Dialing, dialer_limits
from protocol.handshake import LocalIdentity, Role
from protocol.keys import KeyRing


async def test_a_site_of_this_machine_alone_says_why_it_reaches_nobody() -> None:
    """From a loopback address no other machine is dialled, and the reason names the address."""
    identity = LocalIdentity("c", 4, SiteId(1), Incarnation(1))
    limiter = AuthRateLimiter(dialer_limits(RateLimitConfig()))
    dialing = Dialing(identity, "127.0.0.1", KeyRing(SiteId(1), [], "k1"), os.urandom, 1.0, limiter)
    with pytest.raises(PeerRefused) as refused:
        await dialing.dial(SiteConfig("beta", SiteId(2), "192.0.2.7", 7400, Path()), Role.PROBE)
    assert refused.value.code == "out_of_reach"
    assert "127.0.0.1" in str(refused.value)


@pytest.mark.parametrize(("allowed", "own"), [(60, 29), (3, 1), (1, 1)])
def test_a_dialler_stays_under_half_of_what_its_peers_allow(allowed: int, own: int) -> None:
    """Not even a restart in between reaches a peer's limit."""
    config = dialer_limits(RateLimitConfig(max_auth_attempts_per_minute=allowed))
    assert config.max_auth_attempts_per_minute == own
