"""What the content that lost takes is counted exactly, and goes oldest first, while the list stays the same everywhere."""

from __future__ import annotations

import pytest

from claudefs_repl.error import OperationRefused
from nodes.store.conflict_view import find_conflict, page_conflicts
from nodes.store.keeping import GivingUp, count_kept
from nodes.store.local import CreateFile, Remove, SetAttributes, Settle, SetX, WriteData
from nodes.store.lost_content import lost_content, read_lost
from nodes.store.resolutions import How


def make_file(site, name, data=b""):
    return site.do(CreateFile(1, name, 0o644, 0, 0, 0), WriteData(-1, 0, data))[0].inode


def meet(*sites):
    for site in sites:
        for other in sites:
            if other is not site:
                site.pull(other)


def give_up(site, excess_bytes, *, rounds=None, rows_max=100, conflicts_max=100):
    site.connection.execute("BEGIN")
    step = (rounds or GivingUp()).step
    before = count_kept(site.connection).kept_bytes
    gone, freed_bytes = step(site.connection, excess_bytes, rows_max=rows_max, conflicts_max=conflicts_max)
    assert count_kept(site.connection).kept_bytes == before - freed_bytes
    site.connection.execute("COMMIT")
    return gone


def listed(site):
    return [(found.id, found.kind, found.resolution) for found in page_conflicts(site.connection, None, 100)]


@pytest.fixture
def rivals(pair):
    """Conflicts, oldest first: 100 bytes written, 20 of an xattr, 3,000 of a removed file, 40 written; and a mode."""
    one, two = pair
    inodes = [make_file(one, b"%d" % number, bytes(1000)) for number in range(5)]
    two.pull(one)
    one.do(WriteData(inodes[0], 0, b"a" * 100))
    one.do(SetX(inodes[1], b"user.a", b"v" * 20))
    one.do(WriteData(inodes[2], 1000, b"m" * 2000))
    one.do(WriteData(inodes[3], 0, b"b" * 40))
    one.do(SetAttributes(inodes[4], mode=0o600))
    two.do(WriteData(inodes[0], 0, b"A" * 500))
    two.do(SetX(inodes[1], b"user.a", b"w"))
    two.do(Remove(1, b"2"))
    two.do(WriteData(inodes[3], 0, b"B" * 40))
    two.do(SetAttributes(inodes[4], mode=0o640))
    meet(one, two)
    assert [kind for _, kind, _ in listed(one)] == ["content", "xattr", "delete_modify", "content", "attribute"]
    return pair


def test_content_is_counted_by_what_it_takes(rivals):
    """Pieces, values, and the whole of an object that is there for a conflict alone."""
    kept = count_kept(rivals[0].connection)
    assert kept.kept_bytes == 100 + 20 + 3000 + 40
    assert kept.open == {"content": 2, "attribute": 1, "xattr": 1, "delete_modify": 1}
    assert kept.given_up == 0


def test_the_oldest_content_goes_first_and_only_as_much_as_must(rivals):
    """Each step takes conflicts in the order of the list until the excess is gone; the list itself does not change."""
    one, two = rivals
    before = listed(one)
    gone = give_up(one, 101)
    assert [(each.conflict.kind, each.content_bytes) for each in gone] == [("content", 100), ("xattr", 20)]
    assert count_kept(one.connection).kept_bytes == 3040
    assert count_kept(one.connection).given_up == 2
    assert listed(one) == listed(two) == before
    assert [found.is_kept for found in page_conflicts(one.connection, None, 10)] == [False, False, True, True, True]
    assert [each.conflict.kind for each in give_up(one, 1 << 40)] == ["delete_modify", "content"]
    assert give_up(one, 1 << 40) == []
    assert count_kept(one.connection).kept_bytes == 0
    assert one.view.tree_digest() == two.view.tree_digest()


def test_content_that_was_given_up_is_told_as_such(rivals):
    """It is neither read as zeros nor offered for restoring; the other site still has it."""
    one, two = rivals
    number = bytes.fromhex(listed(one)[0][0])
    give_up(one, 1)
    with pytest.raises(OperationRefused, match="given up here") as refused:
        read_lost(one.view, number, 0, 10)
    assert refused.value.code == "ENODATA"
    with pytest.raises(OperationRefused, match="given up here"):
        lost_content(one.view, find_conflict(one.connection, number.hex()))
    assert read_lost(two.view, number, 0, 10) == b"a" * 10


def test_a_settled_conflict_gives_its_content_up_first_and_silently(rivals):
    """Nobody wants it back, however new it is."""
    one, _ = rivals
    newest = [found for found in page_conflicts(one.connection, None, 10) if found.kind == "content"][-1]
    one.do(Settle(bytes.fromhex(newest.id), How.ACCEPTED))
    assert give_up(one, 40) == []
    assert count_kept(one.connection).kept_bytes == 3120
    assert count_kept(one.connection).given_up == 0


def test_a_step_is_bounded(rivals):
    """No more conflicts go, or are looked at, than the caller allows; the next steps go on from there, round after round."""
    one, _ = rivals
    rounds = GivingUp()
    kinds = [
        [each.conflict.kind for each in give_up(one, 1 << 40, rounds=rounds, rows_max=rows, conflicts_max=conflicts)]
        for rows, conflicts in ((100, 1), (1, 100), (2, 100), (2, 100))
    ]
    assert kinds == [["content"], ["xattr"], ["delete_modify", "content"], []]
    assert count_kept(one.connection).kept_bytes == 0


def test_a_round_meets_what_comes_before_its_place_in_the_next_one(rivals):
    """Content that is older than where a round has come to is not forgotten."""
    one, _ = rivals
    rounds = GivingUp()
    oldest = page_conflicts(one.connection, None, 1)[0].id
    assert len(give_up(one, 101, rounds=rounds)) == 2
    one.connection.execute("UPDATE piece SET data = zeroblob(high - low) WHERE conflict = ?", (bytes.fromhex(oldest),))
    gone = [each.conflict.kind for each in give_up(one, 1 << 40, rounds=rounds)]
    assert gone == ["delete_modify", "content", "content"]


def test_an_object_whose_conflict_is_not_kept_is_reclaimed_when_it_is_stable(rivals):
    """Its bytes go from the store, and the sites go on with equal lists and trees."""
    one, two = rivals
    removed = next(found for found in page_conflicts(one.connection, None, 10) if found.kind == "delete_modify").inode
    assert one.view.stat(removed).size == 3000
    give_up(one, 3120)
    for _ in range(3):
        for site, other in ((one, two), (two, one)):
            site.hear_and_forget([other], heard=[True])
    with pytest.raises(OperationRefused, match="no such object"):
        one.view.stat(removed)
    assert two.view.stat(removed).size == 3000
    assert listed(one) == listed(two)
    assert one.view.tree_digest() == two.view.tree_digest()


def test_what_loses_after_its_conflict_was_given_up_is_counted_and_given_up_again(pair):
    """More pieces of a loser may come later: they count, and go like any others."""
    one, two = pair
    inode = make_file(one, b"f", bytes(100))
    two.pull(one)
    one.do(WriteData(inode, 0, b"a" * 100))
    two.do(WriteData(inode, 0, b"B" * 10))
    one.pull(two)
    give_up(one, 10)
    two.do(WriteData(inode, 50, b"B" * 10))
    one.pull(two)
    assert count_kept(one.connection).kept_bytes == 10
    give_up(one, 10)
    assert count_kept(one.connection).kept_bytes == 0
