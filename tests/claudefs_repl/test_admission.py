"""The gate before the handshake: who is charged, who is refused, what stays bounded."""

from __future__ import annotations

import pytest

from claudefs_repl.admission import (
    HALF_OPEN_BEGIN,
    HALF_OPEN_FULL,
    PEER_HALF_OPEN_MAX,
    Admission,
    Failure,
    Refusal,
    Ticket,
    address_key,
)
from claudefs_repl.topology import RateLimitConfig

SECOND = 1_000_000
T0 = 1_700_000_000 * SECOND
PEER, STRANGER = address_key("127.0.0.2"), address_key("192.0.2.7")


@pytest.fixture
def admission():
    return Admission(
        RateLimitConfig(max_auth_attempts_per_minute=5, lockout_duration_secs=100), ["127.0.0.2", "host.name"]
    )


def arrive(admission, source, now_us=T0, draw=0.999):
    return admission.arrive(source, now_us=now_us, draw=draw)


def test_a_stranger_is_locked_after_its_attempts(admission):
    """Attempts that prove nothing are charged to the address, which is then refused for the lock's time."""
    for _ in range(5):
        admission.leave(arrive(admission, STRANGER))
    refusal = arrive(admission, STRANGER)
    assert (refusal.code, refusal.wait_ms) == ("rate_limited", 100_000)
    assert isinstance(arrive(admission, address_key("192.0.2.8")), Ticket)


def test_a_proof_refunds_the_address_and_charges_the_site(admission):
    """A site that connects often enough locks itself, not the address that it comes from."""
    for _ in range(5):
        assert admission.prove(arrive(admission, STRANGER), 2, now_us=T0) is None
    refusal = admission.prove(arrive(admission, STRANGER), 2, now_us=T0)
    assert refusal.code == "rate_limited"
    assert admission.prove(arrive(admission, STRANGER), 3, now_us=T0) is None


def test_a_flood_from_a_peers_address_never_locks_it(admission):
    """A configured address has open handshakes of its own, and no lock."""
    tickets = [arrive(admission, PEER) for _ in range(PEER_HALF_OPEN_MAX)]
    assert arrive(admission, PEER).code == "half_open"
    for ticket in tickets:
        admission.fail(ticket, Failure.BAD_PROOF, now_us=T0)
    for _ in range(1000):
        admission.fail(arrive(admission, PEER), Failure.BAD_PROOF, now_us=T0)
    assert isinstance(arrive(admission, PEER), Ticket)


def test_strangers_cannot_take_a_peers_handshakes(admission):
    """With all strangers' handshakes open, a peer is still admitted."""
    for i in range(HALF_OPEN_FULL):
        assert isinstance(arrive(admission, i), Ticket)
    assert arrive(admission, 10_000).code == "half_open"
    assert isinstance(arrive(admission, PEER), Ticket)


def test_some_are_refused_early_when_many_are_open(admission):
    """Below the beginning none is dropped, above it a share that grows."""
    for i in range(HALF_OPEN_BEGIN):
        assert isinstance(arrive(admission, i, draw=0.0), Ticket)
    assert isinstance(arrive(admission, 999, draw=0.29), Refusal)
    assert isinstance(arrive(admission, 999, draw=0.31), Ticket)


def test_failures_make_a_source_wait_longer_each_time(admission):
    """A first failure costs nothing; repeated ones are refused until the penalty has run down."""
    admission.fail(arrive(admission, STRANGER), Failure.BAD_PROOF, now_us=T0)
    admission.unblock_address(STRANGER)
    admission.fail(arrive(admission, STRANGER), Failure.NOT_OURS, now_us=T0)
    admission.fail(arrive(admission, STRANGER), Failure.NOT_OURS, now_us=T0)
    refusal = arrive(admission, STRANGER)
    assert (refusal.code, refusal.wait_ms) == ("penalty", 20_000)
    assert arrive(admission, STRANGER, T0 + 4_999_999).code == "penalty"
    assert isinstance(arrive(admission, STRANGER, T0 + 5_000_000), Ticket)


def test_a_ticket_is_given_back_once(admission):
    """Leaving twice frees one handshake only."""
    first, second = arrive(admission, STRANGER), arrive(admission, STRANGER)
    admission.leave(first)
    admission.leave(first)
    assert admission.half_open == 1
    admission.leave(second)
    assert admission.half_open == 0


def test_the_administrator_unblocks_addresses_and_sites(admission):
    """After the reset both connect at once."""
    for _ in range(6):
        arrive(admission, STRANGER)
    admission.unblock_address(STRANGER)
    assert isinstance(arrive(admission, STRANGER), Ticket)
    for _ in range(6):
        admission.prove(arrive(admission, PEER), 2, now_us=T0)
    admission.unblock_site(2)
    assert admission.prove(arrive(admission, PEER), 2, now_us=T0) is None


def test_refusals_are_counted_by_their_reason(admission):
    """What status shows is what was refused."""
    for _ in range(7):
        arrive(admission, STRANGER)
    assert admission.refused == {"rate_limited": 2}


def test_ipv6_counts_by_network():
    """One host may use any address of its 64-bit network; IPv4 never collides with it."""
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff")
    assert address_key("2001:db8:0:1::1") != address_key("2001:db8::1")
    assert address_key("0.0.0.1") != address_key("::1")


def test_a_proven_site_that_breaks_the_protocol_is_charged(admission):
    """Blame counts like an attempt: enough of it locks the site, and only it."""
    for _ in range(5):
        admission.blame(2, now_us=T0)
    assert admission.prove(arrive(admission, PEER), 2, now_us=T0).code == "rate_limited"
    assert admission.prove(arrive(admission, PEER), 3, now_us=T0) is None
