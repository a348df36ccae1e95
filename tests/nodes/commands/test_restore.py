"""What lost in a conflict of each kind is brought back by ordinary operations, and every site sees it and the resolution."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claudefs_repl.error import OperationRefused
from nodes.client import ClientError
from nodes.commands.restore import accept, restore_loser
from nodes.store.conflict_view import page_conflicts
from nodes.store.local import (
    CreateFile,
    MakeDir,
    MakeLink,
    MakeSymlink,
    Move,
    Remove,
    RemoveDir,
    RemoveX,
    SetAttributes,
    SetX,
    TruncateFile,
    WriteData,
)
from tests.nodes.store.conftest import MemorySite
from tests.nodes.store.store_client import StoreClient

NOW_NS = 7


@pytest.fixture
def pair():
    pair = MemorySite(1), MemorySite(2)
    yield pair
    for site in pair:
        site.close()


def meet(*sites):
    for site in sites:
        for other in sites:
            if other is not site:
                site.pull(other)
    assert len({site.view.tree_digest() for site in sites}) == 1


def make_file(site, name, data=b"", parent=1):
    made, *_ = site.do(CreateFile(parent, name, 0o644, 10, 20, 0), WriteData(-1, 0, data))
    return made.inode


def make_dir(site, name, parent=1):
    return site.do(MakeDir(parent, name, 0o755, 0, 0, 0))[0].inode


def the_conflict(site, kind):
    (found,) = page_conflicts(site.connection, None, 10)
    assert (found.kind, found.resolution) == (kind, None)
    return found


async def details(site, kind):
    return await StoreClient(site).call("conflict", id=the_conflict(site, kind).id)


async def restore(pair, kind, to=None):
    """Restore at the second site, and let both meet."""
    one, two = pair
    meet(one, two)
    client = StoreClient(two)
    done = await restore_loser(client, await details(two, kind), to, now_ns=NOW_NS)
    meet(one, two)
    for site in pair:
        assert [found.resolution for found in page_conflicts(site.connection, None, 10)] in (["restored"], [])
    return done


def content(site, path):
    return site.view.read(site.view.resolve(path).inode, 0, 1 << 20)


def shown(site, inode=1):
    return {name.split(b".conflict-")[0] for name in site.listing(inode)}


@pytest.fixture
def known(pair):
    """A file of ten bytes that both sites know."""
    one, two = pair
    inode = make_file(one, b"f", b"0123456789")
    two.pull(one)
    return inode


async def test_bytes_that_lost_are_written_back(pair, known):
    """The overwritten bytes come back, and nothing else of the file changes."""
    one, two = pair
    one.do(WriteData(known, 2, b"AAAA"))
    two.do(WriteData(known, 4, b"BBBB"))
    assert "2 bytes" in await restore(pair, "content")
    assert content(one, b"/f") == b"01AAAABB89"


async def test_bytes_that_lost_make_a_file_beside(pair, known):
    """With another place, the file stays as it is and a new one has what was lost, with attributes and xattrs."""
    one, two = pair
    one.do(SetX(known, b"user.a", b"1"), SetAttributes(known, mode=0o640))
    two.pull(one)
    one.do(WriteData(known, 0, b"AAAA"))
    two.do(WriteData(known, 0, b"BBBB"))
    await restore(pair, "content", b"/beside")
    assert (content(one, b"/f"), content(one, b"/beside")) == (b"BBBB456789", b"AAAA456789")
    made = one.view.resolve(b"/beside")
    assert (made.mode, made.uid, made.gid) == (0o640, 10, 20)
    assert one.view.xattrs(made.inode) == {b"user.a": b"1"}


async def test_a_truncate_that_lost_cuts_again(pair, known):
    """The restored truncate cuts the file to its length, also where a concurrent write had made it longer."""
    one, two = pair
    one.do(TruncateFile(known, 3))
    two.do(WriteData(known, 5, b"BBBBBBBB"))
    assert "cut to 3 bytes" in await restore(pair, "content")
    assert content(one, b"/f") == b"012"


async def test_bytes_that_a_truncate_cut_off_come_back(pair, known):
    """A write that lost to a truncate is back, and the file is as long as the write needs."""
    one, two = pair
    one.do(WriteData(known, 6, b"AAAAAA"))
    two.do(TruncateFile(known, 3))
    await restore(pair, "content")
    assert content(one, b"/f") == b"012\0\0\0AAAAAA"


async def test_an_attribute_that_lost_is_set_again(pair, known):
    """The mode that lost is the file's mode everywhere."""
    one, two = pair
    one.do(SetAttributes(known, mode=0o600))
    two.do(SetAttributes(known, mode=0o640))
    assert "0600" in await restore(pair, "attribute")
    assert one.view.stat(known).mode == 0o600


@pytest.mark.parametrize(("lost", "left"), [(SetX, {b"user.a": b"A"}), (RemoveX, {})])
async def test_an_extended_attribute_that_lost_is_set_or_removed_again(pair, known, lost, left):
    """A value that lost to a removal is back; a removal that lost to a value is done."""
    one, two = pair
    one.do(SetX(known, b"user.a", b"before"))
    two.pull(one)
    mine = SetX(known, b"user.a", b"A") if lost is SetX else RemoveX(known, b"user.a")
    one.do(mine)
    two.do(RemoveX(known, b"user.a") if lost is SetX else SetX(known, b"user.a", b"B"))
    await restore(pair, "xattr")
    assert one.view.xattrs(known) == left


async def test_what_lost_a_name_takes_it_and_what_had_it_is_kept_beside(pair):
    """Nothing is lost by restoring: what showed the name shows under a name that clients may give."""
    one, two = pair
    make_file(one, b"n", b"one")
    make_file(two, b"n", b"two")
    done = await restore(pair, "name")
    names = sorted(one.listing())
    assert content(one, b"/n") == b"one"
    assert names[0] == b"n"
    assert names[1].startswith(b"n.replaced-")
    assert names[1].decode() in done
    assert content(one, b"/" + names[1]) == b"two"


async def test_what_lost_a_name_gets_another(pair):
    """With another place the winner keeps the name, and the loser has the one that was asked for."""
    one, two = pair
    make_file(one, b"n", b"one")
    make_dir(two, b"n")
    await restore(pair, "name", b"/of one")
    assert (content(two, b"/of one"), two.view.resolve(b"/n").kind) == (b"one", "dir")
    assert shown(two) == {b"n", b"of one"}


async def test_of_two_claims_that_lost_each_can_be_restored():
    """Where three sites claimed a name, the first takes it past both of the others, and both are kept."""
    sites = [MemorySite(number) for number in (1, 2, 3)]
    for number, site in enumerate(sites):
        make_file(site, b"n", b"%d" % number)
    meet(*sites)
    first = min(page_conflicts(sites[0].connection, None, 10), key=lambda conflict: conflict.loser)
    client = StoreClient(sites[2])
    await restore_loser(client, await client.call("conflict", id=first.id), None, now_ns=NOW_NS)
    meet(*sites)
    assert content(sites[1], b"/n") == b"0"
    others = {content(sites[1], b"/" + name) for name in sites[1].listing() if name != b"n"}
    assert others == {b"1", b"2"}
    assert not any(b".conflict-" in name for name in sites[1].listing())
    for site in sites:
        site.close()


async def test_a_file_moved_to_two_names_keeps_the_losers(pair, known):
    """The winner's name goes, the loser's stays."""
    one, two = pair
    one.do(Move(1, b"f", 1, b"a"))
    two.do(Move(1, b"f", 1, b"b"))
    await restore(pair, "move")
    assert set(one.listing()) == {b"a"}


async def test_a_directory_moved_to_two_places_moves_back(pair):
    """The directory is where the loser put it."""
    one, two = pair
    inode = make_dir(one, b"d")
    two.pull(one)
    one.do(Move(1, b"d", 1, b"a"))
    two.do(Move(1, b"d", 1, b"b"))
    await restore(pair, "move")
    assert one.listing() == {b"a": inode}


async def test_a_directory_does_not_move_to_a_place_that_is_taken(pair):
    """The refusal names the path and the remedy, and nothing is settled."""
    one, two = pair
    make_dir(one, b"d")
    two.pull(one)
    one.do(Move(1, b"d", 1, b"a"))
    two.do(Move(1, b"d", 1, b"b"))
    meet(one, two)
    make_file(two, b"a")
    with pytest.raises(OperationRefused, match="/a is taken: move away") as refused:
        await restore_loser(StoreClient(two), await details(two, "move"), None, now_ns=NOW_NS)
    assert refused.value.errno == errno.EEXIST
    assert the_conflict(two, "move").resolution is None


async def test_a_removal_that_lost_to_a_rename_is_done(pair, known):
    """The name that the rename gave goes."""
    one, two = pair
    one.do(Remove(1, b"f"))
    two.do(Move(1, b"f", 1, b"b"))
    await restore(pair, "move_delete")
    assert one.listing() == {}


async def test_a_rename_that_lost_to_a_removal_stays(pair, known):
    """A file keeps the name that the rename gave it, and the conflict is settled."""
    one, two = pair
    one.do(Move(1, b"f", 1, b"a"))
    two.do(Remove(1, b"f"))
    await restore(pair, "move_delete")
    assert set(one.listing()) == {b"a"}


async def test_a_directory_that_was_removed_while_it_moved_is_made_again(pair):
    """The rename lost to the removal: a directory like it is where the rename had put it."""
    one, two = pair
    inode = make_dir(one, b"d")
    one.do(SetX(inode, b"user.a", b"1"), SetAttributes(inode, mode=0o711))
    two.pull(one)
    one.do(Move(1, b"d", 1, b"a"))
    two.do(RemoveDir(1, b"d"))
    await restore(pair, "move_delete")
    made = one.view.resolve(b"/a")
    assert (made.kind, made.mode, one.view.xattrs(made.inode)) == ("dir", 0o711, {b"user.a": b"1"})


async def test_a_directory_that_moved_while_it_was_removed_is_removed(pair):
    """The removal lost to the rename: it is done where the directory is now."""
    one, two = pair
    make_dir(one, b"d")
    two.pull(one)
    one.do(RemoveDir(1, b"d"))
    two.do(Move(1, b"d", 1, b"b"))
    await restore(pair, "move_delete")
    assert one.listing() == {}


@pytest.mark.parametrize("to", [None, b"/elsewhere"])
async def test_a_removed_file_that_was_changed_gets_a_name_again(pair, known, to):
    """The file is back with the change, at its last name or the one that was asked for."""
    one, two = pair
    one.do(Remove(1, b"f"))
    two.do(WriteData(known, 0, b"BB"))
    await restore(pair, "delete_modify", to)
    assert content(one, to or b"/f") == b"BB23456789"
    assert one.view.resolve(to or b"/f").mode == 0o644


async def test_a_removed_file_comes_back_also_where_its_content_was_given_up(pair, known):
    """What a site restores reaches those that kept nothing of it: the trees are equal, and have all of it."""
    one, two = pair
    one.do(SetX(known, b"user.a", b"1"))
    two.pull(one)
    one.do(Remove(1, b"f"))
    two.do(WriteData(known, 0, b"BB"), TruncateFile(known, 200_000))
    meet(one, two)
    one.connection.execute("UPDATE conflict SET is_kept = 0")
    for _ in range(3):
        for site, other in ((one, two), (two, one)):
            site.hear_and_forget([other], heard=[True])
    with pytest.raises(OperationRefused):
        one.view.stat(known)
    with pytest.raises(OperationRefused, match="another site may have it still"):
        await restore_loser(StoreClient(one), await details(one, "delete_modify"), None, now_ns=NOW_NS)
    await restore(pair, "delete_modify")
    assert content(one, b"/f") == b"BB23456789" + bytes(199_990)
    assert one.view.xattrs(one.view.resolve(b"/f").inode) == {b"user.a": b"1"}


async def test_what_lost_a_name_and_was_removed_since_comes_back_under_it(pair):
    """A copy of it has the name; what showed it is kept beside."""
    one, two = pair
    make_file(one, b"n", b"one")
    make_file(two, b"n", b"two")
    meet(one, two)
    (loser,) = [name for name in two.listing() if name != b"n"]
    two.do(Remove(1, loser))
    await restore(pair, "name")
    assert content(one, b"/n") == b"one"
    assert {content(one, b"/" + name) for name in one.listing()} == {b"one", b"two"}


async def test_an_attribute_of_what_has_no_name_any_more_is_not_restored(pair, known):
    """The refusal says so and what is left to do."""
    one, two = pair
    one.do(SetAttributes(known, mode=0o600))
    two.do(SetAttributes(known, mode=0o640))
    meet(one, two)
    two.do(Remove(1, b"f"))
    with pytest.raises(OperationRefused, match="no name any more; or accept"):
        await restore_loser(StoreClient(two), await details(two, "attribute"), None, now_ns=NOW_NS)


async def test_a_removed_file_whose_directory_went_too_needs_another_place(pair):
    """The refusal names the directory and the remedy, which works."""
    one, two = pair
    directory = make_dir(one, b"d")
    inode = make_file(one, b"f", b"x", directory)
    two.pull(one)
    one.do(Remove(directory, b"f"))
    one.do(RemoveDir(1, b"d"))
    two.do(WriteData(inode, 0, b"B"))
    meet(one, two)
    with pytest.raises(OperationRefused, match=r"the directory /d is gone; give it another place with --as PATH"):
        await restore_loser(StoreClient(two), await details(two, "delete_modify"), None, now_ns=NOW_NS)
    await restore(pair, "delete_modify", b"/f")
    assert content(one, b"/f") == b"B"


async def test_a_removal_that_lost_is_done_when_the_directory_is_empty(pair):
    """While something is in it the refusal says so; afterwards the directory goes."""
    one, two = pair
    directory = make_dir(one, b"d")
    two.pull(one)
    one.do(RemoveDir(1, b"d"))
    make_file(two, b"x", b"", directory)
    meet(one, two)
    found = await details(two, "rmdir_create")
    assert found["holds"] == [b"x"]
    with pytest.raises(OperationRefused, match="/d holds something"):
        await restore_loser(StoreClient(two), found, None, now_ns=NOW_NS)
    two.do(Remove(directory, b"x"))
    await restore(pair, "rmdir_create")
    assert one.listing() == {}


async def test_a_move_that_closed_a_cycle_is_tried_again(pair):
    """While it would still close one the refusal says what is in the way; then it is done."""
    one, two = pair
    first, second = make_dir(one, b"a"), make_dir(one, b"b")
    two.pull(one)
    one.do(Move(1, b"a", second, b"a"))
    two.do(Move(1, b"b", first, b"b"))
    meet(one, two)
    with pytest.raises(OperationRefused, match="is still beneath /b") as refused:
        await restore_loser(StoreClient(two), await details(two, "cycle"), None, now_ns=NOW_NS)
    assert refused.value.errno == errno.EINVAL
    two.do(Move(second, b"a", 1, b"a"))
    await restore(pair, "cycle")
    assert one.view.resolve(b"/a/b").inode == second


async def test_symbolic_links_that_lost_a_name_are_restored_as_files_are(pair):
    """A symbolic link takes its name back from a directory."""
    one, two = pair
    one.do(MakeSymlink(1, b"n", 0, 0, 0, b"target"))
    make_dir(two, b"n")
    await restore(pair, "name")
    assert one.view.resolve(b"/n").target == b"target"
    assert shown(one) == set(one.listing())


async def test_what_is_settled_is_not_settled_again(pair, known):
    """A second restore or accept is refused with what was decided, also when both sites decide at once."""
    one, two = pair
    one.do(WriteData(known, 0, b"A"))
    two.do(WriteData(known, 0, b"B"))
    meet(one, two)
    client = StoreClient(two)
    found = await details(two, "content")
    assert await accept(client, [found]) == [None]
    (refused,) = await accept(client, [found])
    assert refused.errno == errno.EALREADY
    assert "settled already: accepted" in str(refused)
    found = await client.call("conflict", id=found["id"])
    with pytest.raises(OperationRefused, match="settled already: accepted"):
        await restore_loser(client, found, None, now_ns=NOW_NS)
    meet(one, two)
    assert [found.resolution for found in page_conflicts(one.connection, None, 10)] == ["accepted"]
    assert page_conflicts(one.connection, None, 10, is_open=True) == []


async def test_many_are_accepted_with_few_requests_and_those_that_cannot_be_are_told(pair):
    """One that is settled already, in the middle of many, keeps no other from being settled."""
    one, two = pair
    inodes = [make_file(one, b"%d" % number) for number in range(7)]
    two.pull(one)
    for site, mode in ((one, 0o600), (two, 0o640)):
        site.do(*(SetAttributes(inode, mode=mode) for inode in inodes))
    meet(one, two)
    client = StoreClient(two)
    found = [await client.call("conflict", id=each.id) for each in page_conflicts(two.connection, None, 10)]
    await accept(client, found[3:4])
    outcomes = await accept(client, found)
    assert [outcome is None for outcome in outcomes] == [True] * 3 + [False] + [True] * 3
    assert page_conflicts(two.connection, None, 10, is_open=True) == []
    assert client.submits == 3


async def test_a_place_that_is_taken_or_makes_no_sense_is_refused_before_anything_is_done(pair, known):
    """--as with a path that is there, with the root, beneath nothing, or for a kind that has one place only."""
    one, two = pair
    one.do(WriteData(known, 0, b"A"), SetAttributes(known, mode=0o600))
    two.do(WriteData(known, 0, b"B"), SetAttributes(known, mode=0o640))
    meet(one, two)
    client = StoreClient(two)
    kinds = {found.kind: found.id for found in page_conflicts(two.connection, None, 10)}
    of_content, of_mode = [await client.call("conflict", id=kinds[kind]) for kind in ("content", "attribute")]
    for found, to, words in (
        (of_content, b"/f", "/f is taken"),
        (of_content, b"/", "not the root itself"),
        (of_content, b"/no/such", "/no"),
        (of_mode, b"/x", "--as goes with"),
    ):
        with pytest.raises(OperationRefused, match=words):
            await restore_loser(client, found, to, now_ns=NOW_NS)
    assert client.submits == 0


async def test_a_site_that_takes_no_writes_restores_nothing(pair, known):
    """The site's own refusal comes out, with its exit status."""
    one, two = pair
    one.do(WriteData(known, 0, b"A"))
    two.do(WriteData(known, 0, b"B"))
    meet(one, two)
    client = StoreClient(two)
    client.is_writable = False
    with pytest.raises(ClientError) as refused:
        await restore_loser(client, await details(two, "content"), None, now_ns=NOW_NS)
    assert refused.value.exit_code == 3
    assert content(two, b"/f") == b"B123456789"


async def test_a_restore_that_was_interrupted_is_finished_by_running_it_again(pair, known):
    """A client that goes after the bytes were written leaves the conflict open; the next one settles it."""
    one, two = pair
    one.do(WriteData(known, 0, b"AAAA"))
    two.do(WriteData(known, 0, b"BBBB"))
    meet(one, two)

    class Gone(StoreClient):
        async def call(self, method, /, **args):
            if method == "submit" and self.submits:
                raise ClientError("gone", "the connection broke")
            return await super().call(method, **args)

    with pytest.raises(ClientError):
        await restore_loser(Gone(two), await details(two, "content"), None, now_ns=NOW_NS)
    assert content(two, b"/f") == b"AAAA456789"
    await restore(pair, "content")
    assert content(one, b"/f") == b"AAAA456789"


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    writes=st.lists(
        st.tuples(st.booleans(), st.integers(0, 30), st.integers(1, 12), st.booleans()), min_size=2, max_size=6
    ),
    seed=st.integers(0, 1 << 16),
)
async def test_put_back_bytes_are_those_of_the_loser(writes, seed):
    """Whatever two sites wrote and cut, a lost write put back has every byte that it had lost, and no other byte changes."""
    chance = random.Random(seed)
    one, two = MemorySite(1), MemorySite(2)
    inode = make_file(one, b"f", bytes(chance.randrange(1, 256) for _ in range(20)))
    two.pull(one)
    written = {}
    for is_first, low, length, is_cut in writes:
        site = one if is_first else two
        if is_cut:
            site.do(TruncateFile(inode, low))
            continue
        data = bytes(chance.randrange(1, 256) for _ in range(length))
        (result,) = site.do(WriteData(inode, low, data))
        written[site.journal, result.shard, result.seq] = low, data
    meet(one, two)
    client = StoreClient(one)
    for conflict in page_conflicts(one.connection, None, 100, kind="content"):
        key = (conflict.loser.origin, conflict.loser.incarnation), conflict.loser.shard, conflict.loser.seq
        lost = written.get((type(one.journal)(*key[0]), *key[1:]))
        found = await client.call("conflict", id=conflict.id)
        before = content(one, b"/f")
        await restore_loser(client, found, None, now_ns=NOW_NS)
        after = content(one, b"/f")
        if lost is not None:
            low, data = lost
            ranges = found["lost"]["ranges"]
            for at in range(max(len(before), len(after))):
                is_lost = any(start <= at < end for start, end in ranges)
                expected = data[at - low] if is_lost else (before + bytes(100))[at]
                assert after[at] == expected
    one.close()
    two.close()


async def test_a_hard_link_does_not_keep_what_made_way_from_its_own_name(pair, known):
    """What makes way moves, also when it has other names: none of those is touched."""
    one, two = pair
    one.do(MakeLink(known, 1, b"other"))
    two.pull(one)
    make_file(one, b"n", b"one")
    two.do(MakeLink(known, 1, b"n"))
    await restore(pair, "name")
    assert content(one, b"/n") == b"one"
    assert one.view.resolve(b"/other").inode == one.view.resolve(b"/f").inode == known
    assert one.view.stat(known).nlink == 3
