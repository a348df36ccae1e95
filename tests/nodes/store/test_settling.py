"""Settling conflicts, finding them by id and filter, and what is told of one: paths, places, values."""

from __future__ import annotations

import errno

import pytest

from claudefs_repl.error import OperationRefused
from nodes.conflict_service import PAGE_MAX, SCAN_MAX, conflict_details, conflict_page
from nodes.store.conflict_view import count_open, find_conflict, page_conflicts
from nodes.store.local import (
    CreateFile,
    MakeDir,
    MakeLink,
    Move,
    Remove,
    RemoveDir,
    RemoveX,
    SetAttributes,
    Settle,
    SetX,
    WriteData,
)
from nodes.store.resolutions import How, resolution_name

ALL = {"kind": None, "path": None, "since_us": None, "is_open": None}


def make_file(site, name, parent=1):
    return site.do(CreateFile(parent, name, 0o644, 0, 0, 0))[0].inode


def meet(*sites):
    for site in sites:
        for other in sites:
            if other is not site:
                site.pull(other)


def refusal(site, *ops) -> int:
    (outcome,) = site.run(ops)
    assert outcome.error is not None
    return outcome.error.errno


@pytest.fixture
def rivals(pair):
    """Two sites that set the mode of 30 files, by pairs in directories of their own, without hearing of each other."""
    one, two = pair
    inodes = []
    for number in range(15):
        directory = one.do(MakeDir(1, b"d%d" % number, 0o755, 0, 0, 0))[0].inode
        inodes += [make_file(one, name, directory) for name in (b"a", b"b")]
    two.pull(one)
    for inode in inodes:
        one.do(SetAttributes(inode, mode=0o600))
        two.do(SetAttributes(inode, mode=0o640))
    meet(one, two)
    return pair


def test_a_resolution_reaches_every_site_and_changes_no_tree(rivals):
    """Settled at one site is settled at the other, in the same words; digests stay equal and as they were."""
    one, two = rivals
    before = one.view.tree_digest()
    accepted, restored, *_ = page_conflicts(one.connection, None, 100)
    one.do(Settle(bytes.fromhex(accepted.id), How.ACCEPTED))
    two.do(Settle(bytes.fromhex(restored.id), How.RESTORED))
    meet(one, two)
    for site in rivals:
        settled = {found.id: found.resolution for found in page_conflicts(site.connection, None, 100)}
        assert (settled.pop(accepted.id), settled.pop(restored.id)) == ("accepted", "restored")
        assert set(settled.values()) == {None}
        assert count_open(site.connection) == {"attribute": 28}
        assert site.view.tree_digest() == before


def test_what_is_no_conflict_or_settled_already_is_refused(rivals):
    """ENOENT for an id that nothing has, EALREADY for the second of two resolutions; neither leaves an entry."""
    one, _ = rivals
    number = bytes.fromhex(page_conflicts(one.connection, None, 1)[0].id)
    assert refusal(one, Settle(bytes(8), How.ACCEPTED)) == errno.ENOENT
    one.do(Settle(number, How.ACCEPTED))
    assert refusal(one, Settle(number, How.RESTORED)) == errno.EALREADY


def test_a_conflict_whose_object_got_a_name_meanwhile_is_settled_all_the_same(pair, memory_site):
    """A link that comes from elsewhere hides the conflict; settled meanwhile, it is settled when it shows again."""
    one, two = pair
    three = memory_site(3)
    inode = make_file(one, b"f")
    two.pull(one)
    three.pull(one)
    three.do(MakeLink(inode, 1, b"g"))
    one.do(Remove(1, b"f"))
    two.do(WriteData(inode, 0, b"x"))
    meet(one, two)
    (found,) = page_conflicts(two.connection, None, 10)
    two.pull(three)
    assert page_conflicts(two.connection, None, 10) == []
    two.do(Settle(bytes.fromhex(found.id), How.RESTORED))
    two.do(Remove(1, b"g"))
    meet(one, two, three)
    for site in (one, two, three):
        assert [each.resolution for each in page_conflicts(site.connection, None, 10)] == ["restored"]
    three.close()


def test_clients_cannot_write_resolutions_as_attributes(rivals):
    """The reserved names are refused to SetX and RemoveX, and told with no object."""
    one, _ = rivals
    name = resolution_name(bytes.fromhex(page_conflicts(one.connection, None, 1)[0].id))
    assert refusal(one, SetX(1, name, b"1")) == errno.EPERM
    assert refusal(one, RemoveX(1, name)) == errno.EPERM
    assert count_open(one.connection) == {"attribute": 30}


def test_a_conflict_is_found_by_the_first_digits_of_its_id(rivals):
    """A whole id or enough of its digits will do, in capitals or not; what is ambiguous, too short or no id is refused."""
    one, _ = rivals
    for found in page_conflicts(one.connection, None, 100):
        assert find_conflict(one.connection, found.id) == found
        assert find_conflict(one.connection, found.id[:12].upper()) == found
    for prefix, number in (
        ("0" * 16, errno.ENOENT),
        ("", errno.EINVAL),
        ("abc", errno.EINVAL),
        ("xyz0", errno.EINVAL),
        ("0" * 17, errno.EINVAL),
        ("____", errno.EINVAL),
    ):
        with pytest.raises(OperationRefused) as refused:
            find_conflict(one.connection, prefix)
        assert refused.value.errno == number
    twins = [bytes.fromhex("abcd00000000000" + end) for end in "12"]
    columns = "object, facet, detail, kind, loser, run, winner, inode"
    one.connection.execute("BEGIN")
    for twin in twins:
        one.connection.execute(
            f"INSERT INTO conflict(id, {columns}) SELECT ?, {columns} FROM conflict LIMIT 1", (twin,)
        )
    one.connection.execute("COMMIT")
    with pytest.raises(OperationRefused, match="abcd000000000001 and abcd000000000002; give more digits"):
        find_conflict(one.connection, "abcd")


def everything(site, **filters):
    found, after = [], None
    while True:
        page = conflict_page(site.view, after=after, limit=7, **{**ALL, **filters})
        assert len(page["conflicts"]) <= 7
        found += page["conflicts"]
        after = page["next"]
        if after is None:
            return found


def test_pages_and_filters_show_each_conflict_once(rivals):
    """Page by page the list is whole and in order; kind, path, time and state leave out just what does not fit."""
    one, _ = rivals
    whole = everything(one)
    assert [found["id"] for found in whole] == [found.id for found in page_conflicts(one.connection, None, 100)]
    assert {found["path"] for found in whole} == {b"/d%d/%s" % (n, name) for n in range(15) for name in (b"a", b"b")}
    assert everything(one, path=b"/d1") == [found for found in whole if found["path"].startswith(b"/d1/")]
    assert everything(one, path=b"/d1/") == everything(one, path=b"/d1")
    assert len(everything(one, path=b"/")) == 30
    assert everything(one, kind="content") == []
    middle = whole[17]["winner"]["timestamp_us"]
    later = [found for found in whole if found["winner"]["timestamp_us"] >= middle]
    assert 0 < len(later) < 30
    assert everything(one, since_us=middle) == later
    one.do(Settle(bytes.fromhex(whole[3]["id"]), How.ACCEPTED))
    assert [found["id"] for found in everything(one, is_open=True)] == [
        found["id"] for found in whole if found is not whole[3]
    ]


def test_a_page_looks_at_a_bounded_number_of_conflicts(rivals, monkeypatch):
    """Where few conflicts are at the path that is asked for, an answer comes all the same, with a cursor to go on from."""
    one, _ = rivals
    monkeypatch.setattr("nodes.conflict_service.SCAN_MAX", 4)
    monkeypatch.setattr("nodes.conflict_service.PAGE_MAX", 3)
    page = conflict_page(one.view, after=None, limit=10, **{**ALL, "path": b"/d14"})
    assert page["conflicts"] == []
    assert page["next"] is not None
    assert len(everything(one, path=b"/d14")) == 2
    assert PAGE_MAX <= SCAN_MAX


def details(site, kind):
    (found,) = [each for each in page_conflicts(site.connection, None, 10) if each.kind == kind]
    return conflict_details(site.view, found)


def test_paths_follow_what_is_moved(pair):
    """The path of a conflict is where its object is now, however its directories were renamed since."""
    one, two = pair
    directory = one.do(MakeDir(1, b"d", 0o755, 0, 0, 0))[0].inode
    inode = make_file(one, b"f", directory)
    two.pull(one)
    one.do(SetX(inode, b"user.a", b"1"))
    two.do(SetX(inode, b"user.a", b"2"))
    meet(one, two)
    assert details(one, "xattr")["path"] == b"/d/f"
    one.do(Move(1, b"d", 1, b"e"), Move(directory, b"f", directory, b"g"))
    told = details(one, "xattr")
    assert (told["path"], told["value"], told["current"]) == (b"/e/g", b"1", b"2")
    one.do(Remove(directory, b"g"))
    assert details(one, "xattr")["path"] is None


def test_a_removed_file_has_the_last_path_that_is_known(pair):
    """Although its directory was removed as well, and moved before that."""
    one, two = pair
    directory = one.do(MakeDir(1, b"d", 0o755, 0, 0, 0))[0].inode
    inode = make_file(one, b"f", directory)
    two.pull(one)
    one.do(Remove(directory, b"f"), RemoveDir(1, b"d"))
    two.do(WriteData(inode, 0, b"x"))
    meet(one, two)
    told = details(two, "delete_modify")
    assert (told["path"], told["names"], told["is_placed"]) == (b"/d/f", [], False)
    assert (told["place"]["path"], told["place"]["is_there"]) == (b"/d/f", False)


def test_a_removed_directory_is_remembered_as_long_as_an_open_conflict_has_its_path_by_it(pair):
    """What a site has forgotten by now must not show in what it tells of a conflict: others tell the path as well."""
    one, two = pair
    top = one.do(MakeDir(1, b"top", 0o755, 0, 0, 0))[0].inode
    below = one.do(MakeDir(top, b"below", 0o755, 0, 0, 0))[0].inode
    file = make_file(one, b"f", below)
    two.pull(one)
    one.do(WriteData(file, 0, b"changed"))
    two.do(Remove(below, b"f"))
    two.do(RemoveDir(top, b"below"))
    two.do(RemoveDir(1, b"top"))
    meet(one, two)
    for _ in range(3):
        one.hear_and_forget([two], heard=[True])
    for site in pair:
        (told,) = conflict_page(site.view, after=None, limit=10, **ALL)["conflicts"]
        assert (told["kind"], told["path"]) == ("delete_modify", b"/top/below/f")
    assert one.view.tree_digest() == two.view.tree_digest()
    one.do(Settle(bytes.fromhex(told["id"]), How.ACCEPTED))
    meet(one, two)
    for _ in range(3):
        one.hear_and_forget([two], heard=[True])
    assert one.connection.execute("SELECT count(*) FROM trash").fetchone() == (0,)


def test_both_sides_of_a_name_are_told_with_where_they_show(pair):
    """The winner by the name, the loser by its conflict name; when the winner has left the name, by that."""
    one, two = pair
    lost, won = make_file(one, b"n"), make_file(two, b"n")
    meet(one, two)
    told = details(one, "name")
    assert (told["path"], told["inode"], told["winner_inode"]) == (b"/n", lost, won)
    assert [name["path"] for name in told["winner_names"]] == [b"/n"]
    assert [name["path"] for name in told["names"]] == [b"/n.conflict-1-%x" % lost]
    one.do(Move(1, b"n", 1, b"m"))
    told = details(one, "name")
    assert (told["winner_inode"], told["winner_names"]) == (None, [])
    assert [name["path"] for name in told["names"]] == [b"/n"]
