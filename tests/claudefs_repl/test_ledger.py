"""The sums of the ledger: whatever does not add up is found, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.journal import JournalId
from claudefs_repl.ledger import Balance, ShardAccount, SiteLedger, balance, find_faults

ALPHA, BETA = JournalId(1, 1), JournalId(2, 2)


def account(count, *, tail=None, **counts):
    sound = ShardAccount(
        tail=count if tail is None else tail,
        durable=count if tail is None else tail,
        applied=count,
        folded=count,
        chain=count * 7,
        log_chain=count * 7,
        current=count // 2,
        lost=0,
        last_showing=count,
        dead_letters=0,
    )
    return replace(sound, **counts)


def ledger(own, accounts, **told):
    tails = {journal: tuple(each.tail for each in shards) for journal, shards in accounts.items()}
    return SiteLedger(**{"accounts": accounts, "acked": {}, "tails": tails, "sent": {}, "own": own, **told})


def sound(alpha=10, beta=10):
    """Two sites and the journal of the one."""
    return {
        "alpha": ledger(ALPHA, {ALPHA: (account(alpha), account(3))}, acked={"beta": (beta, 3)}),
        "beta": ledger(BETA, {ALPHA: (account(beta), account(3))}),
    }


@given(beta=st.integers(0, 10))
def test_sound_ledgers_have_no_fault(beta):
    """A site that is behind has nothing wrong with it."""
    assert find_faults(sound(10, beta)) == []


PLANTED = {
    "an entry lost from the log": {"durable": 9},
    "a cursor beyond the log": {"applied": 11, "folded": 11},
    "a cursor moved without folding": {"folded": 9},
    "an entry folded twice": {"folded": 11},
    "a log that holds something else": {"log_chain": 1},
    "a view that shows what it has not applied": {"last_showing": 11},
    "more shown than was folded": {"current": 8, "lost": 2, "dead_letters": 1},
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_does_not_add_up_at_a_site_is_told_with_its_place(name):
    """Site, journal and shard are named, and only that one."""
    planted = sound()
    planted["beta"].accounts[ALPHA] = (account(10, **PLANTED[name]), account(3))
    (fault, *others) = find_faults(planted)
    assert (fault.site, fault.journal, fault.shard) == ("beta", ALPHA, 0)
    assert {(other.site, other.shard) for other in others} <= {("beta", 0)}


def test_a_log_that_was_trimmed_is_not_held_against_the_view():
    """Its chain is not known, and that is no fault."""
    planted = sound()
    planted["beta"].accounts[ALPHA] = (account(10, log_chain=None), account(3))
    assert find_faults(planted) == []


def test_other_entries_at_equal_cursors_are_found():
    """As many entries are not the same entries."""
    planted = sound()
    planted["beta"].accounts[ALPHA] = (account(10), account(3, chain=1, log_chain=1))
    (fault,) = find_faults(planted)
    assert (fault.site, fault.shard) == ("beta", 1)
    assert "alpha" in str(fault)


def test_a_replica_ahead_of_its_origin_is_found():
    """Nobody holds what the origin has not written."""
    (fault,) = find_faults(sound(9, 10) | {"alpha": ledger(ALPHA, {ALPHA: (account(9), account(3))})})
    assert (fault.site, fault.shard) == ("beta", 0)
    assert "alpha has written 9" in fault.what


def test_an_ack_for_what_is_not_durable_is_found():
    """What was acknowledged stays, for ever."""
    planted = sound()
    planted["alpha"] = replace(planted["alpha"], acked={"beta": (10, 4)})
    (fault,) = find_faults(planted)
    assert (fault.site, fault.shard) == ("beta", 1)
    del planted["beta"].tails[ALPHA]
    assert len(find_faults(planted)) == 2


def test_the_balance_shows_where_every_entry_is():
    """Written is durable, in flight and missing; applied is current, superseded and dead letters."""
    ledgers = {
        "alpha": ledger(ALPHA, {ALPHA: (account(10), account(5))}, sent={"beta": (8, 5)}),
        "beta": ledger(BETA, {ALPHA: (account(4, tail=6, dead_letters=1), account(5))}),
    }
    assert balance("beta", ALPHA, ledgers) == Balance(
        written=15, durable=11, in_flight=2, missing=2, applied=9, current=4, lost=0, superseded=4, dead_letters=1
    )
    here = balance("alpha", ALPHA, ledgers)
    assert (here.written, here.durable, here.in_flight, here.missing) == (15, 15, 0, 0)
    del ledgers["alpha"]
    unknown = balance("beta", ALPHA, ledgers)
    assert (unknown.written, unknown.in_flight, unknown.missing, unknown.durable) == (None, None, None, 11)


@given(
    tails=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    sent=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    durable=st.tuples(st.integers(0, 20), st.integers(0, 20)),
)
def test_the_parts_are_never_negative_and_add_up_when_no_more_is_durable_than_written(tails, sent, durable):
    """Answers of different moments do not make less than nothing of anything."""
    ledgers = {
        "alpha": ledger(ALPHA, {ALPHA: tuple(map(account, tails))}, sent={"beta": sent}),
        "beta": ledger(BETA, {ALPHA: tuple(map(account, durable))}),
    }
    found = balance("beta", ALPHA, ledgers)
    assert min(found.in_flight, found.missing) >= 0
    if all(max(parts) <= written for written, *parts in zip(tails, durable, sent, strict=True)):
        assert found.durable + found.in_flight + found.missing == found.written
