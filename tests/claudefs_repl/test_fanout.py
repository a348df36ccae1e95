"""The retention floor: what a log must keep."""

from __future__ import annotations

from claudefs_repl.fanout import retention_floor
from claudefs_repl.journal import JournalId

OWN = JournalId(1, 77)


def floor(snapshot, peers, **more):
    return retention_floor(journal=OWN, shard_count=2, snapshot=snapshot, peers=peers, **more)


def test_without_a_snapshot_nothing_is_trimmed():
    """A log without a local snapshot is the only way to make the view: all of it is kept."""
    assert floor(None, {2: {OWN: (9, 9)}}) == (0, 0)


def test_the_floor_is_below_the_snapshot_and_below_every_peer():
    """For each shard the least of the snapshot's and the peers' cursors."""
    assert floor({OWN: (10, 10)}, {2: {OWN: (9, 20)}, 3: {OWN: (12, 7)}}) == (9, 7)


def test_a_peer_that_has_told_nothing_holds_everything():
    """Unknown is not durable."""
    assert floor({OWN: (10, 10)}, {2: {OWN: (10, 10)}, 3: {}}) == (0, 0)


def test_a_cut_off_peer_no_longer_counts():
    """What only a cut-off peer lacks may go."""
    assert floor({OWN: (10, 10)}, {2: {OWN: (9, 9)}, 3: {}}, cut_off=[3]) == (9, 9)


def test_an_origin_does_not_hold_its_own_replica():
    """The site that a journal is from has it, whatever it told."""
    assert floor({OWN: (4, 4)}, {1: {}, 2: {OWN: (3, 5)}}) == (3, 4)


def test_a_former_journal_is_kept_for_its_origin_too():
    """A site that lost a former journal of its own gets it back from its peers: they keep it until it has it."""
    assert floor({OWN: (4, 4)}, {1: {}, 2: {OWN: (3, 5)}}, is_former=True) == (0, 0)
    assert floor({OWN: (4, 4)}, {1: {OWN: (2, 9)}, 2: {OWN: (3, 5)}}, is_former=True) == (2, 4)
    assert floor({OWN: (4, 4)}, {1: {}, 2: {OWN: (3, 5)}}, is_former=True, cut_off=[1]) == (3, 4)
