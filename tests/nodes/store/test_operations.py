"""Each local operation: what it does to the tree, what it refuses, and that another site sees the same."""

from __future__ import annotations

import errno
import re

import pytest

from claudefs_repl.error import OperationRefused
from claudefs_repl.journal import FILE_BYTES_MAX, ROOT_INODE, Incarnation, JournalId, SiteId
from nodes.store.local import (
    CreateFile,
    GiveUp,
    MakeDir,
    MakeLink,
    MakeSymlink,
    Move,
    NameFile,
    Remove,
    RemoveDir,
    RemoveX,
    SetAttributes,
    SetX,
    TruncateFile,
    WriteData,
)
from nodes.store.view import conflict_name


def make_file(parent, name, data=b""):
    return (
        CreateFile(None, None, 0o644, 10, 20, 30),
        WriteData(-1, 0, data),
        SetAttributes(-1, mtime_ns=30),
        NameFile(-1, parent, name, replace=True),
    )


def make_dir(parent, name, **fields):
    return MakeDir(parent, name, 0o755, 1, 2, 3, **fields)


def refusal(site, *ops) -> str:
    (outcome,) = site.run(ops)
    assert outcome.error is not None
    return outcome.error.code


def meet(*sites):
    for site in sites:
        for other in sites:
            if other is not site:
                site.pull(other)
    assert len({site.view.tree_digest() for site in sites}) == 1


def test_the_root_is_there_from_the_start(site):
    """A new store shows an empty root directory, 0755, root's, as old as time."""
    root = site.view.resolve(b"/")
    assert (root.inode, root.kind, root.mode, root.uid, root.gid, root.mtime_ns) == (ROOT_INODE, "dir", 0o755, 0, 0, 0)
    assert site.listing() == {}


def test_create_shows_a_file_with_its_attributes(site):
    """A created file has the attributes given, no bytes, and one name."""
    (made,) = site.do(CreateFile(1, b"f", 0o640, 5, 6, -7))
    found = site.view.resolve(b"/f")
    assert found.inode == made.inode
    assert (found.kind, found.mode, found.uid, found.gid, found.mtime_ns) == ("file", 0o640, 5, 6, -7)
    assert (found.size, found.nlink, found.parent, found.name) == (0, 1, 1, b"f")


def test_a_nameless_file_is_filled_and_then_named(site):
    """What is made without a name is seen nowhere until one Rename gives it its name, replacing what had it."""
    site.do(*make_file(1, b"f", b"old"))
    made, *_ = site.do(CreateFile(None, None, 0o600, 0, 0, 0), WriteData(-1, 0, b"new"))
    assert site.view.read(site.view.resolve(b"/f").inode, 0, 10) == b"old"
    assert site.view.nameless(site.journal) == [made.inode]
    site.do(NameFile(made.inode, 1, b"f", replace=True))
    assert site.view.read(site.view.resolve(b"/f").inode, 0, 10) == b"new"
    assert site.view.nameless(site.journal) == []
    assert list(site.listing()) == [b"f"]


def test_a_nameless_file_is_given_up_with_its_data(site):
    """Giving up removes object and data at once; it cannot be named afterwards."""
    made, *_ = site.do(CreateFile(None, None, 0o600, 0, 0, 0), WriteData(-1, 0, b"x"), SetX(-1, b"user.a", b"1"))
    site.do(GiveUp(made.inode))
    assert site.view.nameless(site.journal) == []
    assert site.view.counts()["bytes"] == 0
    assert refusal(site, NameFile(made.inode, 1, b"f")) == "ENOENT"
    assert refusal(site, GiveUp(made.inode)) == "ENOENT"


def test_only_the_maker_lists_and_changes_its_nameless_files(pair):
    """A peer's unfinished files are the peer's: nobody else can be concurrent with what it does to them."""
    one, two = pair
    made, *_ = one.do(CreateFile(None, None, 0o600, 0, 0, 0))
    two.pull(one)
    assert two.view.nameless(two.journal) == []
    assert two.view.nameless(one.journal) == [made.inode]
    assert two.view.nameless(JournalId(one.journal.origin, Incarnation(7))) == [], "another journal of its site"
    for op in (
        GiveUp(made.inode),
        WriteData(made.inode, 0, b"x"),
        SetAttributes(made.inode, mode=0o600),
        NameFile(made.inode, 1, b"f"),
        MakeLink(made.inode, 1, b"f"),
    ):
        assert refusal(two, op) == "ENOENT"


def test_a_named_file_is_not_given_up(site):
    """Only what never had a name can be given up, or named without one; what has lost its last is gone for everybody."""
    (made,) = site.do(CreateFile(1, b"f", 0o600, 0, 0, 0))
    for op in (GiveUp(made.inode), NameFile(made.inode, 1, b"g")):
        assert refusal(site, op) == "EINVAL"
    site.do(Remove(1, b"f"))
    for op in (GiveUp(made.inode), NameFile(made.inode, 1, b"g"), MakeLink(made.inode, 1, b"g")):
        assert refusal(site, op) == "ENOENT"


def test_results_of_a_request_are_named_by_their_number(site):
    """-k stands for the k-th result of the same request, in every place where an inode goes."""
    results = site.do(
        make_dir(1, b"d"), CreateFile(-1, b"f", 0, 0, 0, 0), Move(-1, b"f", 1, b"g"), MakeLink(-2, -1, b"h")
    )
    assert site.view.resolve(b"/g").inode == site.view.resolve(b"/d/h").inode == results[1].inode
    assert refusal(site, WriteData(-1, 0, b"x")) == "EINVAL"
    assert refusal(site, make_dir(1, b"e"), WriteData(-2, 0, b"x")) == "EINVAL"


def test_a_request_stops_at_the_first_refusal(site):
    """What came before the refused operation stands, what comes after it does not happen."""
    (outcome,) = site.run([make_dir(1, b"a"), make_dir(1, b"a"), make_dir(1, b"b")])
    assert (len(outcome.results), outcome.error.code) == (1, "EEXIST")
    assert list(site.listing()) == [b"a"]


def test_requests_of_a_group_see_each_other(site):
    """Two clients that create one name in one group get one file and one EEXIST, no conflict."""
    one, two = site.run([CreateFile(1, b"f", 0, 0, 0, 0)], [CreateFile(1, b"f", 0, 0, 0, 0)])
    assert one.error is None
    assert two.error.code == "EEXIST"


def test_every_entry_gets_the_next_seq_of_its_shard(site):
    """Blocks hold dense seqs for each shard, equal to the results' and to the applied cursors."""
    results = site.do(*[CreateFile(1, b"f%d" % number, 0, 0, 0, 0) for number in range(20)])
    for shard, blocks in site.blocks.items():
        seqs = [row.seq for block in blocks for row in block.rows()]
        assert seqs == [result.seq for result in results if result.shard == shard] == list(range(1, len(seqs) + 1))
        assert site.view.applied()[site.journal][shard] == len(seqs)


def test_many_bytes_are_cut_into_blocks(site):
    """A block's body stays near 1 MiB, however much a group writes."""
    site.do(CreateFile(1, b"f", 0, 0, 0, 0), *[WriteData(-1, at << 16, bytes(1 << 16)) for at in range(40)])
    blocks = [block for blocks in site.blocks.values() for block in blocks]
    assert sum(block.count for block in blocks) == 41
    assert all(len(block.body) <= 1 << 20 for block in blocks)


def test_making_a_directory_that_exists_may_be_no_error(site):
    """With exist_ok the directory that is there is the result and nothing is journaled; a file in its place is EEXIST."""
    (made,) = site.do(make_dir(1, b"d"))
    (again,) = site.do(make_dir(1, b"d", exist_ok=True))
    assert (again.inode, again.shard, again.seq) == (made.inode, made.shard, 0)
    assert refusal(site, make_dir(1, b"d")) == "EEXIST"
    site.do(CreateFile(1, b"f", 0, 0, 0, 0))
    assert refusal(site, make_dir(1, b"f", exist_ok=True)) == "EEXIST"


def test_links_are_names_of_one_object(site):
    """Hard links share content and attributes and are counted; the object stays until the last goes."""
    results = site.do(*make_file(1, b"a", b"data"), MakeLink(-1, 1, b"b"))
    assert site.view.resolve(b"/a").nlink == 2
    site.do(Remove(1, b"a"), WriteData(results[0].inode, 0, b"DATA"))
    found = site.view.resolve(b"/b")
    assert (found.nlink, site.view.read(found.inode, 0, 9)) == (1, b"DATA")
    site.do(make_dir(1, b"d"))
    assert refusal(site, MakeLink(site.view.resolve(b"/d").inode, 1, b"e")) == "EPERM"
    assert refusal(site, MakeLink(found.inode, 1, b"b")) == "EEXIST"


def test_symlinks_keep_any_target(site):
    """A target is bytes that nobody follows; its length is the size."""
    site.do(MakeSymlink(1, b"s", 1, 2, 3, b"../no/\xff where"))
    found = site.view.resolve(b"/s")
    assert (found.kind, found.target, found.size, found.mode) == ("symlink", b"../no/\xff where", 13, 0o777)
    with pytest.raises(OperationRefused, match=re.escape("/s/x")) as refused:
        site.view.resolve(b"/s/x")
    assert refused.value.errno == errno.ENOTDIR
    assert refusal(site, WriteData(found.inode, 0, b"x")) == "EINVAL"


def test_remove_takes_files_and_rmdir_empty_directories(site):
    """Each refuses what the other is for, and rmdir what is not empty."""
    made, _file = site.do(make_dir(1, b"d"), CreateFile(-1, b"f", 0, 0, 0, 0))
    assert refusal(site, Remove(1, b"d")) == "EISDIR"
    assert refusal(site, RemoveDir(made.inode, b"f")) == "ENOTDIR"
    assert refusal(site, RemoveDir(1, b"d")) == "ENOTEMPTY"
    assert refusal(site, Remove(1, b"none")) == "ENOENT"
    site.do(Remove(made.inode, b"f"), RemoveDir(1, b"d"))
    assert site.listing() == {}
    assert refusal(site, CreateFile(made.inode, b"f", 0, 0, 0, 0)) == "ENOENT"


def test_move_replaces_only_when_asked_and_only_its_like(site):
    """A file replaces a file, a directory an empty directory; everything else has its POSIX error."""
    site.do(*make_file(1, b"a", b"a"), make_dir(1, b"d"), make_dir(1, b"e"), CreateFile(-5, b"in", 0, 0, 0, 0))
    site.do(*make_file(1, b"b", b"b"))
    assert refusal(site, Move(1, b"a", 1, b"b")) == "EEXIST"
    assert refusal(site, Move(1, b"a", 1, b"d", replace=True)) == "EISDIR"
    assert refusal(site, Move(1, b"d", 1, b"a", replace=True)) == "ENOTDIR"
    assert refusal(site, Move(1, b"e", 1, b"d", replace=True)) == "ENOTEMPTY"
    site.do(Move(1, b"a", 1, b"b", replace=True), Move(1, b"d", 1, b"e", replace=True))
    assert list(site.listing()) == [b"b", b"e"]
    assert site.view.read(site.view.resolve(b"/b").inode, 0, 9) == b"a"
    assert site.view.resolve(b"/e/in").kind == "file"


def test_a_directory_is_not_moved_beneath_itself(site):
    """EINVAL, as rename(2) has it; onto its own name it is nothing to do."""
    made, below = site.do(make_dir(1, b"d"), make_dir(-1, b"e"))
    assert refusal(site, Move(1, b"d", below.inode, b"x")) == "EINVAL"
    assert refusal(site, Move(1, b"d", made.inode, b"x")) == "EINVAL"
    (nothing,) = site.do(Move(1, b"d", 1, b"d"))
    assert nothing.seq == 0


def test_moving_one_link_onto_another_of_the_same_file_does_nothing(site):
    """As rename(2) has it: both names stay."""
    site.do(CreateFile(1, b"a", 0, 0, 0, 0), MakeLink(-1, 1, b"b"))
    (nothing,) = site.do(Move(1, b"a", 1, b"b", replace=True))
    assert nothing.seq == 0
    assert list(site.listing()) == [b"a", b"b"]


def test_writes_and_truncates_show_in_size_content_and_time(site):
    """A write sets the time to its stamp; a truncate cuts and grows with zeros; offsets have a limit."""
    made, *_ = site.do(CreateFile(1, b"f", 0, 0, 0, 5), WriteData(-1, 4, b"data"))
    assert site.view.read(made.inode, 0, 99) == b"\0\0\0\0data"
    found = site.view.stat(made.inode)
    assert found.mtime_ns % 1000 == 0
    assert found.mtime_ns > 1_600_000_000_000_000_000
    site.do(TruncateFile(made.inode, 6))
    assert site.view.read(made.inode, 0, 99) == b"\0\0\0\0da"
    site.do(TruncateFile(made.inode, 10))
    assert site.view.read(made.inode, 5, 99) == b"a\0\0\0\0"
    assert refusal(site, WriteData(made.inode, FILE_BYTES_MAX, b"x")) == "EFBIG"
    assert refusal(site, TruncateFile(made.inode, FILE_BYTES_MAX + 1)) == "EFBIG"
    assert refusal(site, WriteData(made.inode, -1, b"x")) == "EINVAL"
    assert refusal(site, WriteData(made.inode, 0, bytes(65537))) == "EINVAL"
    assert refusal(site, WriteData(ROOT_INODE, 0, b"x")) == "EISDIR"
    site.do(WriteData(made.inode, FILE_BYTES_MAX - 1, b"x"))
    assert site.view.stat(made.inode).size == FILE_BYTES_MAX
    assert site.view.read(made.inode, FILE_BYTES_MAX - 2, 99) == b"\0x"


def test_attributes_change_one_by_one(site):
    """What is None stays; the root has attributes too; a value out of range is EINVAL."""
    made, *_ = site.do(CreateFile(1, b"f", 0o600, 1, 2, 3), SetAttributes(-1, mode=0o4755, mtime_ns=-1))
    found = site.view.stat(made.inode)
    assert (found.mode, found.uid, found.gid, found.mtime_ns) == (0o4755, 1, 2, -1)
    site.do(SetAttributes(ROOT_INODE, uid=9))
    assert site.view.resolve(b"/").uid == 9
    (nothing,) = site.do(SetAttributes(made.inode))
    assert nothing.seq == 0
    assert refusal(site, SetAttributes(made.inode, mode=0o10000)) == "EINVAL"
    assert refusal(site, SetAttributes(12345, mode=0)) == "ENOENT"


def test_xattrs_come_and_go(site):
    """A removed attribute is gone, removing it again is ENODATA, setting it again brings it back."""
    made, *_ = site.do(CreateFile(1, b"f", 0, 0, 0, 0), SetX(-1, b"user.a", b"1"), SetX(-1, b"user.b", b""))
    assert site.view.xattrs(made.inode) == {b"user.a": b"1", b"user.b": b""}
    site.do(RemoveX(made.inode, b"user.a"))
    assert refusal(site, RemoveX(made.inode, b"user.a")) == "ENODATA"
    site.do(SetX(made.inode, b"user.a", bytes(65536)))
    assert site.view.xattrs(made.inode)[b"user.a"] == bytes(65536)
    assert refusal(site, SetX(made.inode, b"user.a", bytes(65537))) == "E2BIG"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        (b"", "EINVAL"),
        (b"..", "EINVAL"),
        (b"a/b", "EINVAL"),
        (b"a\0b", "EINVAL"),
        (b"x" * 256, "ENAMETOOLONG"),
        (b"a.conflict-1-5", "EINVAL"),
    ],
)
def test_bad_names_are_refused_by_every_operation_that_gives_one(site, name, code):
    """No client brings in a name that cannot be, or one that would pass for a conflict name."""
    site.do(CreateFile(1, b"f", 0, 0, 0, 0), CreateFile(None, None, 0, 0, 0, 0))
    held, nameless = site.view.resolve(b"/f").inode, site.view.nameless(site.journal)[0]
    for op in (
        CreateFile(1, name, 0, 0, 0, 0),
        make_dir(1, name),
        MakeSymlink(1, name, 0, 0, 0, b"t"),
        MakeLink(held, 1, name),
        Move(1, b"f", 1, name, replace=True),
        NameFile(nameless, 1, name, replace=True),
    ):
        assert refusal(site, op) == code
    assert list(site.listing()) == [b"f"]


def test_names_are_bytes_of_any_kind(site):
    """What is neither NUL nor a slash goes, up to 255 bytes, and pages come in byte order."""
    names = [b"\xff\xfe", b"a", b"A", b" ", b"\n", b"x" * 255, b"...", "ä".encode()]
    site.do(*[CreateFile(1, name, 0, 0, 0, 0) for name in names])
    assert list(site.listing()) == sorted(names)
    after, paged = None, []
    while True:
        page, more = site.view.list_dir(1, after=after, limit=3)
        paged += [entry.name for entry in page]
        if not more:
            break
        after = page[-1].name
    assert paged == sorted(names)


def test_concurrent_files_of_one_name_both_show(pair):
    """The latest has the name, the other shows beside it and can be read, moved and removed by what it shows."""
    one, two = pair
    one.do(*make_file(1, b"f", b"one"))
    two.wall_us += 1000
    two.do(*make_file(1, b"f", b"two"))
    loser = one.view.resolve(b"/f").inode
    meet(one, two)
    shown = conflict_name(b"f", 1, loser)
    assert list(one.listing()) == [b"f", shown]
    assert one.view.read(one.view.resolve(b"/f").inode, 0, 9) == b"two"
    assert one.view.resolve(b"/" + shown).inode == loser
    one.do(Move(1, shown, 1, b"g"))
    meet(one, two)
    assert list(two.listing()) == [b"f", b"g"]
    assert two.view.read(two.view.resolve(b"/g").inode, 0, 9) == b"one"


def test_the_loser_gets_the_name_when_the_holder_goes(pair):
    """Removing the file that shows a name uncovers the one beneath; a conflict name that is gone is ENOENT."""
    one, two = pair
    for site in pair:
        site.do(CreateFile(1, b"f", 0, 0, 0, 0))
    meet(one, two)
    assert len(one.listing()) == 2
    shown = max(one.listing())
    one.do(Remove(1, b"f"))
    assert list(one.listing()) == [b"f"]
    with pytest.raises(OperationRefused) as refused:
        one.view.resolve(b"/" + shown)
    assert refused.value.errno == errno.ENOENT
    meet(one, two)


def test_long_conflict_names_are_cut_to_fit(pair):
    """A conflict name has at most 255 bytes and still finds its object."""
    one, two = pair
    for site in pair:
        site.do(CreateFile(1, b"n" * 255, 0, 0, 0, 0))
    meet(one, two)
    for name, inode in one.listing().items():
        assert len(name) == 255
        assert one.view.resolve(b"/" + name).inode == inode


def test_directories_of_one_name_are_not_merged(pair):
    """Two directories made under one name at two sites both show, each with what is in it."""
    one, two = pair
    for site in pair:
        site.do(make_dir(1, b"d"), CreateFile(-1, b"f%d" % site.journal.origin, 0, 0, 0, 0))
    meet(one, two)
    shown = [one.listing(inode) for inode in one.listing().values()]
    assert sorted(name for listing in shown for name in listing) == [b"f1", b"f2"]


def test_a_file_renamed_at_two_sites_keeps_both_names(pair):
    """Neither rename had seen the other: both names stay, of one file."""
    one, two = pair
    one.do(CreateFile(1, b"f", 0, 0, 0, 0))
    two.pull(one)
    one.do(Move(1, b"f", 1, b"a"))
    two.do(Move(1, b"f", 1, b"b"))
    meet(one, two)
    assert list(one.listing()) == [b"a", b"b"]
    assert one.view.resolve(b"/a").nlink == 2


def test_a_remove_takes_only_what_it_has_seen(pair):
    """A name given anew at one site survives the removal, at another, of what had it before."""
    one, two = pair
    one.do(*make_file(1, b"f", b"old"))
    two.pull(one)
    one.do(*make_file(1, b"f", b"new"))
    two.do(Remove(1, b"f"))
    meet(one, two)
    assert two.view.read(two.view.resolve(b"/f").inode, 0, 9) == b"new"


def test_moves_that_would_make_a_cycle_leave_one_undone(pair):
    """Two directories moved into each other at two sites: the later move is skipped, at both."""
    one, two = pair
    one.do(make_dir(1, b"a"), make_dir(1, b"b"))
    two.pull(one)
    a, b = one.listing()[b"a"], one.listing()[b"b"]
    one.do(Move(1, b"a", b, b"a"))
    two.wall_us += 1000
    two.do(Move(1, b"b", a, b"b"))
    meet(one, two)
    for site in pair:
        assert site.view.resolve(b"/b/a").inode == a
        assert list(site.listing()) == [b"b"]


def test_a_directory_moved_at_two_sites_is_where_the_later_put_it(pair):
    """A directory has one place."""
    one, two = pair
    one.do(make_dir(1, b"d"), CreateFile(-1, b"f", 0, 0, 0, 0))
    two.pull(one)
    one.do(Move(1, b"d", 1, b"x"))
    two.wall_us += 1000
    two.do(Move(1, b"d", 1, b"y"))
    meet(one, two)
    assert list(one.listing()) == [b"y"]
    assert one.view.resolve(b"/y/f").kind == "file"


def test_a_removed_directory_stays_while_it_holds_something(pair):
    """What a concurrent create put into it keeps it and the way to it visible, until that goes too."""
    one, two = pair
    one.do(make_dir(1, b"d"), make_dir(-1, b"e"))
    two.pull(one)
    inner = one.view.resolve(b"/d/e").inode
    one.do(RemoveDir(one.view.resolve(b"/d").inode, b"e"), RemoveDir(1, b"d"))
    two.do(*make_file(inner, b"f", b"kept"))
    meet(one, two)
    for site in pair:
        assert site.view.resolve(b"/d/e/f").kind == "file"
    one.do(Remove(inner, b"f"))
    assert one.listing() == {}
    meet(one, two)


def test_an_unlinked_file_that_another_site_writes_to_stays_unlinked(pair):
    """Unlink does not undo a concurrent write, and a write does not bring the name back."""
    one, two = pair
    one.do(*make_file(1, b"f", b"x"))
    two.pull(one)
    inode = one.listing()[b"f"]
    one.do(Remove(1, b"f"))
    two.do(WriteData(inode, 0, b"y"))
    meet(one, two)
    assert one.listing() == {}
    assert one.view.read(inode, 0, 9) == b"y"


def test_concurrent_attribute_changes_merge_by_field(pair):
    """Different fields both take; of the same field the later one."""
    one, two = pair
    one.do(CreateFile(1, b"f", 0o600, 0, 0, 0))
    two.pull(one)
    inode = one.listing()[b"f"]
    one.do(SetAttributes(inode, mode=0o640, uid=1), SetX(inode, b"user.a", b"1"))
    two.wall_us += 1000
    two.do(SetAttributes(inode, gid=2, uid=3), SetX(inode, b"user.b", b"2"))
    meet(one, two)
    found = one.view.stat(inode)
    assert (found.mode, found.uid, found.gid) == (0o640, 3, 2)
    assert set(one.view.xattrs(inode)) == {b"user.a", b"user.b"}


def test_each_id_is_told_with_the_site_that_wrote_it(pair):
    """An object may have its user from one site and its group from another; the root, at first, has them from none."""
    alpha, beta = pair
    (made,) = alpha.do(CreateFile(1, b"f", 0o644, 10, 20, 30))
    beta.pull(alpha)
    beta.do(SetAttributes(made.inode, uid=11))
    alpha.pull(beta)
    for site in pair:
        (found,), _ = site.view.list_dir(ROOT_INODE, after=None, limit=10)
        assert (found.uid, found.uid_origin, found.gid, found.gid_origin) == (11, SiteId(2), 20, SiteId(1))
        assert site.view.stat(ROOT_INODE).uid_origin is None
    assert alpha.view.tree_digest() == beta.view.tree_digest()


def test_paths_are_resolved_or_refused_by_name(site):
    """ENOENT, ENOTDIR and EINVAL name the path that was asked for."""
    site.do(make_dir(1, b"d"), CreateFile(-1, b"f", 0, 0, 0, 0))
    assert site.view.resolve(b"//d///f/").name == b"f"
    for path, number in ((b"/d/no", errno.ENOENT), (b"/d/f/x", errno.ENOTDIR), (b"d", errno.EINVAL)):
        with pytest.raises(OperationRefused, match=re.escape(path.decode())) as refused:
            site.view.resolve(path)
        assert refused.value.errno == number
    file = site.view.resolve(b"/d/f").inode
    for function in (
        lambda: site.view.list_dir(file, after=None, limit=1),
        lambda: site.view.read(1, 0, 1),
        lambda: site.view.read(file, 0, 5 << 20),
        lambda: site.view.stat(99),
    ):
        with pytest.raises(OperationRefused):
            function()
