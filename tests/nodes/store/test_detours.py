"""Entries that come in an order of their own: by a detour over another site, or after what covered them was forgotten."""

from __future__ import annotations

import pytest

from claudefs_repl.journal import ROOT_INODE, make_inode, shard_of
from nodes.store import local
from nodes.store.conflict_view import page_conflicts
from nodes.store.lost_content import LostContent, lost_content
from tests.nodes.store.conflict_model import ConflictModel
from tests.nodes.store.history import facts_of, tree_of
from tests.nodes.store.test_conflicts import found_by


@pytest.fixture
def sites(memory_site):
    made = [memory_site(number) for number in (1, 2, 3)]
    yield made
    for site in made:
        site.close()


def check(sites):
    """With everything everywhere, each site has the model's tree and list; the list."""
    for site in sites:
        for other in sites:
            site.pull(other)
    model = ConflictModel(
        [fact for site in sites for some in site.blocks.values() for fact in facts_of(site.journal, some)]
    )
    for site in sites:
        assert tree_of(site.view) == model.tree.tree()
        assert found_by(site) == sorted(model.found)
    return model.found


def create(site, name):
    (result,) = site.do(local.CreateFile(ROOT_INODE, name, 0o600, 0, 0, 0))
    return result.inode


def test_a_settled_removal_is_no_rival_of_what_it_had_seen(sites):
    """A removed directory that still shows is renamed after its removal is stable: its making has lost to nothing."""
    one, two, _ = sites
    (made,) = one.do(local.MakeDir(ROOT_INODE, b"dir", 0o700, 0, 0, 0))
    two.pull(one)
    two.do(local.RemoveDir(ROOT_INODE, b"dir"))
    one.do(local.CreateFile(made.inode, b"file", 0o600, 0, 0, 0))
    assert [found.kind for found in check(sites)] == ["rmdir_create"]
    for _ in range(2):
        for site in sites:
            site.hear_and_forget([other for other in sites if other is not site], heard=[True, True])
    two.do(local.Move(ROOT_INODE, b"dir", ROOT_INODE, b"renamed", replace=False))
    assert [found.kind for found in check(sites)] == ["rmdir_create"]


def make_dir(site, name):
    (result,) = site.do(local.MakeDir(ROOT_INODE, name, 0o700, 0, 0, 0))
    return result.inode


@pytest.mark.parametrize("makes", [create, make_dir])
def test_a_stable_claim_goes_on_covering_one_of_another_shard(sites, makes):
    """A name is given twice by one site, and lost twice: the first claim, which the second covers, is in no list."""
    one, two, three = sites
    first = makes(two, b"name")
    two.do(local.Move(ROOT_INODE, b"name", ROOT_INODE, b"elsewhere", replace=False))
    while shard_of(make_inode(2, two.wall_us), two.shard_count) == shard_of(first, two.shard_count):
        two.wall_us += 1
    second = create(two, b"name")
    shard = shard_of(second, two.shard_count)
    assert shard != shard_of(first, two.shard_count)
    for site in (one, three):
        site.take(two.journal, two.blocks[shard])
    two.hear_and_forget([one, three], heard=[True, True])
    one.do(local.Remove(ROOT_INODE, b"name"))
    create(one, b"name")
    for block in sorted(
        (block for some in one.blocks.values() for block in some), key=lambda block: block.timestamps[0]
    ):
        two.take(one.journal, [block])
    assert check(sites) == []


@pytest.mark.parametrize("is_late", [False, True])
def test_what_a_maker_did_before_naming_belongs_to_the_making(sites, is_late):
    """An object that was found by a name from another site is removed, changed and changed again: only what came later lost.

    What its maker did to it before naming it is in no list, whether it comes before the removal or after.
    """
    one, two, three = sites
    (made,) = one.do(local.CreateFile(None, None, 0o600, 0, 0, 0))
    one.do(local.SetAttributes(made.inode, mode=0o640, mtime_ns=7))
    one.do(local.SetX(made.inode, b"user.a", b"first"))
    one.do(local.NameFile(made.inode, ROOT_INODE, b"name", replace=False))
    one.do(local.SetX(made.inode, b"user.b", b"later"))
    two.pull(one)
    two.do(local.Move(ROOT_INODE, b"name", ROOT_INODE, b"renamed", replace=False))
    shard = shard_of(made.inode, one.shard_count)
    three.take(one.journal, one.blocks[shard][:1])
    three.pull(two)
    three.do(local.SetAttributes(made.inode, mode=0o600, mtime_ns=8), local.SetX(made.inode, b"user.a", b"second"))
    three.do(local.Remove(ROOT_INODE, b"renamed"))
    if is_late:
        three.take(one.journal, one.blocks[shard])
    assert [(found.kind, found.loser.origin) for found in check(sites)] == [("delete_modify", 1)]


def test_what_a_lost_truncate_would_leave_is_the_same_in_whatever_pieces_a_site_keeps_it(sites):
    """A write won against a truncate; where somebody else's truncate had cut the write before, it won in two pieces."""
    one, two, three = sites
    inode = create(one, b"file")
    one.do(local.WriteData(inode, 0, bytes(341)))
    for site in (two, three):
        site.pull(one)
    one.do(local.TruncateFile(inode, 96))
    two.wall_us = one.wall_us + 1
    two.do(local.WriteData(inode, 97, b"x" * 97))
    three.wall_us = two.wall_us + 1
    three.do(local.TruncateFile(inode, 110))
    two.pull(three)
    for site, other in ((two, one), (one, two), (one, three)):
        site.pull(other)
    one.do(local.TruncateFile(inode, 41))
    one.do(local.TruncateFile(inode, 168))
    assert {found.kind for found in check(sites)} == {"content"}
    lost = [
        [lost_content(site.view, conflict) for conflict in page_conflicts(site.connection, None, 10)] for site in sites
    ]
    assert lost[0] == lost[1] == lost[2]
    assert LostContent(97, []) in lost[0]


@pytest.fixture
def begun_anew(memory_site):
    """Site 1 with another journal than the one in `sites`."""
    site = memory_site(1, incarnation=0x1000)
    yield site
    site.close()


def make_and_name(site):
    (made,) = site.do(local.CreateFile(None, None, 0o600, 0, 0, 0))
    site.do(local.WriteData(made.inode, 0, b"made"))
    site.do(local.NameFile(made.inode, ROOT_INODE, b"name", replace=False))
    return made.inode


@pytest.mark.parametrize("makes", [create, lambda site, _: make_and_name(site)])
def test_a_name_that_a_maker_gave_in_a_later_journal_is_not_the_first(sites, begun_anew, makes):
    """A site sets an attribute, loses its journal and renames the file in another one, which comes first to a third site."""
    one, two, three = sites
    inode = makes(one, b"name")
    two.pull(one)
    one.do(local.SetX(inode, b"user.a", b"first"))
    two.wall_us = one.wall_us + 1
    two.do(local.SetX(inode, b"user.a", b"second"))
    begun_anew.wall_us = two.wall_us + 1
    begun_anew.pull(one)
    begun_anew.do(local.Move(ROOT_INODE, b"name", ROOT_INODE, b"renamed", replace=False))
    three.pull(begun_anew)
    assert [found.kind for found in check([*sites, begun_anew])] == ["xattr"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda inode, value: local.SetAttributes(inode, mode=value[0]), "attribute"),
        (lambda inode, value: local.WriteData(inode, 0, value), "content"),
    ],
)
def test_what_a_site_does_in_a_later_journal_does_not_belong_to_the_making(sites, begun_anew, change, kind):
    """It comes to a third site before the making, and so does what somebody else did concurrently."""
    one, two, three = sites
    inode = make_and_name(one)
    for site in (two, begun_anew):
        site.pull(one)
    two.wall_us = begun_anew.wall_us = one.wall_us + 1
    begun_anew.do(change(inode, b"a"))
    three.pull(begun_anew)
    create(one, b"other")
    begun_anew.pull(one)
    begun_anew.do(change(inode, b"b"))
    two.wall_us += 5
    two.do(change(inode, b"c"))
    three.pull(begun_anew)
    three.pull(two)
    assert [found.kind for found in check([*sites, begun_anew])] == [kind] * 2


def test_bytes_that_a_maker_wrote_again_before_naming_are_judged_by_every_site(sites, begun_anew):
    """A third site found the file by a name from a later journal, before it had what the maker wrote and wrote again."""
    one, two, three = sites
    (made,) = one.do(local.CreateFile(None, None, 0o600, 0, 0, 0))
    one.do(local.WriteData(made.inode, 4, b"first" * 2))
    create(two, b"other")
    one.pull(two)
    one.do(local.WriteData(made.inode, 10, b"second"))
    one.do(local.NameFile(made.inode, ROOT_INODE, b"name", replace=False))
    two.pull(one)
    begun_anew.wall_us = one.wall_us + 1
    for site in (one, two):
        begun_anew.pull(site)
    begun_anew.do(local.Move(ROOT_INODE, b"name", ROOT_INODE, b"renamed", replace=False))
    three.take(one.journal, one.blocks[shard_of(made.inode, one.shard_count)][:1])
    three.pull(begun_anew)
    three.wall_us = begun_anew.wall_us + 1
    three.do(local.WriteData(made.inode, 12, b"third"))
    assert [(found.kind, found.loser.origin) for found in check([*sites, begun_anew])] == [("content", 1)] * 2
