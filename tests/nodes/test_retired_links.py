"""Links whose key is retired while they are being made."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
import trio

import nodes.dialing
import nodes.listener
from claudefs_repl.admission import Admission
from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.error import PeerRefused
from claudefs_repl.journal import Incarnation, SiteId
from claudefs_repl.topology import RateLimitConfig, ReplicationConfig, SiteConfig
from nodes.dialing import Dialing
from nodes.events import make_logger
from nodes.link import LINK_ERRORS
from nodes.listener import Listener
from nodes.peers import PeerRecord
from nodes.runtime import SystemClock
from protocol.handshake import LocalIdentity, Role
from protocol.keys import KeyRing, PairKey
from protocol.messages import Ping

A, B = SiteId(1), SiteId(2)
SECRETS = {("k1", A, B): b"1" * 32, ("k2", A, B): b"2" * 32, ("k1", B, A): b"3" * 32, ("k2", B, A): b"4" * 32}


def ring(site, *key_ids):
    keys = [PairKey(key_id, d, i, secret) for (key_id, d, i), secret in SECRETS.items() if key_id in key_ids]
    return KeyRing(site, keys, key_ids[0])


def dialing_of(site, address):
    return Dialing(
        LocalIdentity("rotation", 1, site, Incarnation(site)),
        address,
        ring(site, "k1", "k2"),
        os.urandom,
        5.0,
        AuthRateLimiter(RateLimitConfig()),
    )


@pytest.fixture
async def beta(tmp_path, nursery):
    """A listening site, its configuration, and what its servers were given."""
    served = []

    async def server(link, record):
        served.append(link)
        await trio.sleep_forever()

    dialing = dialing_of(B, "127.0.0.2")
    listener = Listener(
        site=SiteConfig("beta", B, "127.0.0.2", 0, tmp_path),
        dialing=dialing,
        config=ReplicationConfig(),
        admission=Admission(RateLimitConfig(), []),
        peers={A: PeerRecord(SiteConfig("alpha", A, "127.0.0.1", 1, Path("alpha")))},
        servers=dict.fromkeys(Role, server),
        rng=random.Random(0),
        logger=make_logger(tmp_path / "events.jsonl", "beta", SystemClock()),
    )
    listeners = await nursery.start(listener.run)
    port = listeners[0].socket.getsockname()[1]
    yield SiteConfig("beta", B, "127.0.0.2", port, tmp_path), dialing, served
    nursery.cancel_scope.cancel()


async def test_a_key_retired_while_a_site_dials_makes_no_link(beta, monkeypatch):
    """The reload that came meanwhile has closed all other links of that key; this one ends as well."""
    config, _, _ = beta
    alpha = dialing_of(A, "127.0.0.1")

    async def dial_slowly(**args):
        link = await nodes.link.dial(**args)
        alpha.keys = ring(A, "k2")
        assert await alpha.live.close_retired(alpha.keys) == 0
        return link

    monkeypatch.setattr(nodes.dialing, "dial", dial_slowly)
    with pytest.raises(PeerRefused) as refused:
        await alpha.dial(config, Role.PROBE)
    assert refused.value.code == "key_retired"
    monkeypatch.undo()
    link = await alpha.dial(config, Role.PROBE)
    assert link.session.key_id == "k2"
    await alpha.live.close(link)


async def test_a_key_retired_while_a_site_is_dialled_makes_no_link(beta, monkeypatch):
    """The listener's side of it: nothing is served under a key that is gone."""
    config, dialing, served = beta

    async def welcome_slowly(*args, **more):
        link = await nodes.link.welcome_dialer(*args, **more)
        dialing.keys = ring(B, "k2")
        assert await dialing.live.close_retired(dialing.keys) == 0
        return link

    monkeypatch.setattr(nodes.listener, "welcome_dialer", welcome_slowly)
    alpha = dialing_of(A, "127.0.0.1")
    link = await alpha.dial(config, Role.PROBE)
    with trio.fail_after(10), pytest.raises((PeerRefused, *LINK_ERRORS)):
        await link.expect(Ping)
    assert served == []
    await alpha.live.close(link)
