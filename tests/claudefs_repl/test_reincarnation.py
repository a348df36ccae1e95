"""What a site finds out from its peers before it begins anew, against a model of sets of seqs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.journal import JournalId
from claudefs_repl.reincarnation import (
    Holdings,
    LostRange,
    Restamped,
    beyond_drift,
    carried_upto,
    highest,
    holds_restamped,
    is_sole,
    log_begin,
    lost_ranges,
    needed,
    to_close,
)

OLD, OLDER, ALPHA, GAMMA = JournalId(2, 7), JournalId(2, 5), JournalId(1, 1), JournalId(3, 3)
NONE = Restamped({}, {})


def peer(journal=ALPHA, received=None, firsts=None, told=None, restamped=NONE):
    return Holdings(journal, received or {}, firsts or {journal: (1, 1)}, told or {}, 0, restamped)


def test_the_highest_is_over_all_peers_for_each_shard():
    """Of one shard one peer has most, of another another."""
    assert highest([{OLD: (5, 1)}, {OLD: (2, 9)}, {}], OLD, 2) == (5, 9)
    assert highest([], OLD, 2) == (0, 0)


def test_what_is_to_close_is_on_the_disk_or_was_told_and_not_closed_before():
    """A site that was wiped and simply started closes the journal of before as well."""
    peers = [peer(told={OLD: (4, 4)}), peer(GAMMA, told={OLDER: (2, 2)})]
    assert to_close(None, peers, []) == [OLDER, OLD]
    assert to_close(JournalId(2, 9), peers, [OLDER]) == [OLD, JournalId(2, 9)]


def test_of_a_disk_that_is_gone_all_is_lost_that_nobody_holds():
    """From behind what the peers have to the end that they were told, shard by shard."""
    peers = [peer(received={OLD: (3, 0)}, told={OLD: (9, 4)}), peer(GAMMA, received={OLD: (5, 4)}, told={OLD: (7, 4)})]
    assert lost_ranges(OLD, peers, (0, 0), (1, 1)) == [LostRange(OLD, 0, 6, 9)]


@given(*[st.integers(0, 12)] * 3, st.integers(1, 13))
def test_lost_is_what_was_told_or_written_and_is_neither_held_nor_on_the_disk(held, told, has, first):
    """The ranges are exactly those seqs, each once, whatever was trimmed on the own disk."""
    first = min(first, has + 1)
    peers = [peer(received={OLD: (held,)}, told={OLD: (told,)})]
    ranges = lost_ranges(OLD, peers, (has,), (first,))
    seqs = [seq for one in ranges for seq in range(one.first_seq, one.last_seq + 1)]
    known = set(range(1, max(told, has) + 1))
    assert seqs == sorted(known - set(range(1, held + 1)) - set(range(first, has + 1)))


def test_a_snapshot_must_reach_to_where_the_logs_begin_that_it_will_be_followed_from():
    """A current journal comes from its own site, whatever replicas reach back to; a former one from the longest log."""
    peers = {
        1: peer(ALPHA, firsts={ALPHA: (5, 3), GAMMA: (1, 1), OLD: (9, 9)}),
        3: peer(GAMMA, firsts={ALPHA: (1, 1), GAMMA: (2, 8), OLD: (4, 4)}),
    }
    assert needed(peers, 1, {}) == {ALPHA: (4, 2), GAMMA: (1, 7), OLD: (3, 3)}


def test_a_snapshot_must_reach_to_where_the_old_logs_begin_as_far_as_its_site_has_got():
    """Otherwise what the old log alone has could not be appended behind it."""
    peers = {1: peer(ALPHA, received={OLD: (6, 9)}), 3: peer(GAMMA, received={OLD: (9, 9)}, firsts={GAMMA: (3, 1)})}
    firsts = {OLD: (8, 5), GAMMA: (1, 1), OLDER: (4, 4)}
    assert needed(peers, 1, firsts) == {ALPHA: (0, 0), GAMMA: (2, 0), OLD: (6, 4), OLDER: (0, 0)}


def test_who_holds_a_stamp_that_may_not_be_taken_is_nobody_to_begin_from():
    """A stamp at the limit may be taken, one behind it not."""
    peers = {1: Holdings(ALPHA, {}, {}, {}, 500, NONE), 3: Holdings(GAMMA, {}, {}, {}, 507, NONE)}
    assert beyond_drift(peers, 500) == {3: 7}


def begin(journal=OLD, applied=(5, 5), firsts=(1, 1), tails=(9, 9), silent=(), **received):
    peers = {
        1: peer(ALPHA, received={journal: received.get("alpha", (9, 9))}),
        3: peer(GAMMA, received={journal: received.get("gamma", (9, 9))}),
    }
    return log_begin(journal, applied=applied, peers=peers, silent=silent, firsts=firsts, tails=tails)


def test_a_new_log_begins_where_the_snapshot_ends_or_where_a_peer_lacks_something():
    """For each shard the least of what the snapshot and each peer has, and nobody else may have what lies between."""
    assert begin() == (5, 5)
    assert begin(alpha=(3, 7), gamma=(4, 2)) == (3, 2)
    assert begin(silent=[4]) == (0, 0)


def test_of_a_current_journal_its_origin_lacks_nothing():
    """Of a former one it may, for its disk may have been lost."""
    assert begin(ALPHA, alpha=(0, 0)) == (5, 5)
    assert begin(JournalId(1, 9), alpha=(0, 0)) == (0, 0)


@given(*[st.integers(0, 9)] * 3, st.integers(1, 10))
def test_a_new_log_has_no_hole_and_holds_what_it_can_of_what_a_peer_lacks(applied, lacks, tail, first):
    """What was trimmed from the old log stays out, and what does not reach to the snapshot's end is of no use."""
    first = min(first, tail + 1)
    (at,) = begin(applied=(applied,), alpha=(lacks,), gamma=(9,), firsts=(first,), tails=(tail,))
    of_use = range(max(lacks + 1, first), applied + 1) if tail >= applied else ()
    assert set(range(at + 1, applied + 1)) == set(of_use)


def test_a_site_is_the_only_one_to_have_what_was_trimmed_before_a_peer_lost_it():
    """Peers had it all when it was trimmed; one whose disk was lost since holds nothing."""
    assert is_sole(OLD, [peer(received={OLD: (9, 3)}), peer(GAMMA)], (10, 5))
    assert is_sole(OLD, [peer()], (2, 1))
    assert not is_sole(OLD, [peer(received={OLD: (9, 0)}), peer(GAMMA, received={OLD: (0, 4)})], (10, 5))
    assert not is_sole(OLD, [peer()], (1, 1))


def carried(journal, origin=None, restamped=NONE, tails=(9, 5), sound=(6, 5)):
    return carried_upto(journal, tails=tails, sound=sound, origin=origin, restamped=restamped)


def test_what_is_stamped_too_far_ahead_is_left_to_its_own_site():
    """If that has all of it in a journal that it still writes; nothing is left out that may be nowhere else."""
    has = {"received": {GAMMA: (9, 7)}, "firsts": {GAMMA: (7, 1)}}
    assert carried(GAMMA, peer(GAMMA, **has)) == (6, 5)
    assert carried(GAMMA, peer(GAMMA, **has), sound=(9, 5)) == (9, 5)
    for less in ({"received": {GAMMA: (8, 7)}}, {"firsts": {GAMMA: (8, 1)}}):
        assert carried(GAMMA, peer(GAMMA, **{**has, **less})) is None
    assert carried(GAMMA) is None
    assert carried(OLD, peer(JournalId(2, 9))) is None


def test_what_another_site_journaled_again_is_left_out():
    """From where it began to do so, which may be earlier than what is too far ahead by now; nothing beyond its end."""
    again = Restamped({OLD: (4, 5)}, {OLD: (9, 5)})
    assert carried(OLD, restamped=again) == (4, 5)
    assert carried(OLD, restamped=again, tails=(10, 5)) is None
    assert carried(OLDER, restamped=again) is None
    assert holds_restamped(peer(received={OLD: (5, 5)}), again)
    assert not holds_restamped(peer(received={OLD: (4, 8)}), Restamped({OLD: (4, 8)}, {OLD: (9, 8)}))
