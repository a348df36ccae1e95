"""The store over real files: transactions, restarts, durability, snapshots."""

from __future__ import annotations

import shutil
import sqlite3

import pytest
import trio

from claudefs_repl.checkpoint import equal
from claudefs_repl.clock import HybridClock
from claudefs_repl.error import CallerError, DiskFull, OperationRefused, WorldError
from claudefs_repl.journal import JournalId
from nodes.store import sqlite_store
from nodes.store.dead_letters import DeadLetter, EntryKey, put_aside
from nodes.store.local import CreateFile, LocalRequest, MakeDir, Remove, StampSource, WriteData
from nodes.store.sqlite_store import READERS_MAX, SqliteStore

SHARDS = 3
JOURNAL = JournalId(1, 0xFFFF_FFFF_FFFF_FFFE)


@pytest.fixture
async def store(tmp_path):
    store = await SqliteStore.open(tmp_path / "store.db", shard_count=SHARDS)
    yield store
    await store.close()


def source(store):
    applied = store.applied.get(JOURNAL, (0,) * SHARDS)
    clock = HybridClock(floor_us=store.applied_timestamp_us)
    return StampSource(JOURNAL, SHARDS, tuple(seq + 1 for seq in applied), clock, 1_700_000_000_000_000)


async def write(store, *ops):
    async with store.transaction() as transaction:
        result = await transaction.fold_local([LocalRequest(ops)], source(store))
        assert result.outcomes[0].error is None
        await transaction.commit()
    return result


def names(view):
    return [entry.name for entry in view.list_dir(1, after=None, limit=10_000)[0]]


async def test_a_commit_shows_state_and_cursors_together(store):
    """Before the commit readers see neither, after it both; the next seqs follow the cursors."""
    async with store.transaction() as transaction:
        result = await transaction.fold_local([LocalRequest([CreateFile(1, b"f", 0, 0, 0, 0)])], source(store))
        assert await store.read(names) == []
        assert store.applied == {}
        await transaction.commit()
    assert await store.read(names) == [b"f"]
    assert store.applied[JOURNAL] == tuple(seq - 1 for seq in result.next_seqs)
    assert await store.read(lambda view: view.applied()) == store.applied
    assert store.applied_timestamp_us == max(result.blocks[0].timestamps)


async def test_a_transaction_without_commit_leaves_nothing(store):
    """A failed journal append, an exception or a cancellation rolls all of it back."""
    await write(store, CreateFile(1, b"kept", 0, 0, 0, 0))
    before = store.applied, await store.read(lambda view: view.tree_digest())
    async with store.transaction() as transaction:
        await transaction.fold_local([LocalRequest([CreateFile(1, b"gone", 0, 0, 0, 0)])], source(store))

    async def fail():
        async with store.transaction() as transaction:
            await transaction.fold_local([LocalRequest([CreateFile(1, b"gone", 0, 0, 0, 0)])], source(store))
            raise ValueError

    with pytest.raises(ValueError):
        await fail()
    with trio.CancelScope() as scope:
        async with store.transaction() as transaction:
            await transaction.fold_local([LocalRequest([CreateFile(1, b"gone", 0, 0, 0, 0)])], source(store))
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert (store.applied, await store.read(lambda view: view.tree_digest())) == before
    await write(store, CreateFile(1, b"gone", 0, 0, 0, 0))


async def test_transactions_have_one_owner_at_a_time(store):
    """A second one waits until the first is over, and builds on it."""
    order = []

    async def second():
        async with store.transaction() as transaction:
            order.append("second")
            await transaction.fold_local([LocalRequest([CreateFile(1, b"b", 0, 0, 0, 0)])], source(store))
            await transaction.commit()

    async with trio.open_nursery() as nursery, store.transaction() as transaction:
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        await transaction.fold_local([LocalRequest([CreateFile(1, b"a", 0, 0, 0, 0)])], source(store))
        order.append("first")
        await transaction.commit()
    assert order == ["first", "second"]
    assert await store.read(names) == [b"a", b"b"]


async def test_a_transaction_is_over_after_its_commit_or_a_failure(store):
    """What is half folded can only be rolled back."""
    async with store.transaction() as transaction:
        result = await transaction.fold_local([LocalRequest([CreateFile(1, b"a", 0, 0, 0, 0)])], source(store))
        await transaction.commit()
        with pytest.raises(AssertionError):
            await transaction.fold_blocks(JOURNAL, result.blocks)
    async with store.transaction() as transaction:
        gap = JournalId(2, 2)
        inner = [CreateFile(1, b"%d" % number, 0, 0, 0, 0) for number in range(20)]
        folded = await transaction.fold_local([LocalRequest(inner)], source(store))
        with pytest.raises(AssertionError):
            await transaction.fold_blocks(gap, [folded.blocks[0].after(folded.blocks[0].first_seq)])
        with pytest.raises(AssertionError):
            await transaction.commit()
    assert await store.read(names) == [b"a"]


async def test_a_restart_finds_what_was_committed(store, tmp_path):
    """Tree, cursors and clock are those of the last commit."""
    await write(store, MakeDir(1, b"d", 0, 0, 0, 0), CreateFile(-1, b"f", 0, 0, 0, 0), WriteData(-2, 0, b"x"))
    digest = await store.read(lambda view: view.tree_digest())
    again = await SqliteStore.open(tmp_path / "store.db", shard_count=SHARDS)
    assert await again.read(lambda view: view.tree_digest()) == digest
    assert equal(again.applied, store.applied)
    assert again.applied_timestamp_us == store.applied_timestamp_us
    await again.close()


async def test_what_is_durable_is_in_the_database_file_alone(store, tmp_path):
    """After make_durable, with no reader in the way, a loss of the whole WAL loses nothing that it told."""
    await write(store, CreateFile(1, b"f", 0, 0, 0, 0))
    durable = await store.make_durable()
    assert equal(durable, store.applied)
    shutil.copy(tmp_path / "store.db", tmp_path / "copy.db")
    await write(store, CreateFile(1, b"g", 0, 0, 0, 0))
    copy = await SqliteStore.open(tmp_path / "copy.db", shard_count=SHARDS)
    assert equal(copy.applied, durable)
    assert await copy.read(names) == [b"f"]
    await copy.close()


async def test_what_is_durable_is_in_the_files_even_beside_a_long_reader(store, tmp_path):
    """A reader may keep the database file behind; then the WAL holds what make_durable told."""
    await write(store, CreateFile(1, b"f", 0, 0, 0, 0))
    reader = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM inode").fetchone()
    await write(store, CreateFile(1, b"g", 0, 0, 0, 0))
    durable = await store.make_durable()
    assert equal(durable, store.applied)
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"store.db{suffix}", tmp_path / f"copy.db{suffix}")
    reader.close()
    copy = await SqliteStore.open(tmp_path / "copy.db", shard_count=SHARDS)
    assert await copy.read(names) == [b"f", b"g"]
    await copy.close()


async def test_an_idle_store_is_durable_as_it_is(store, tmp_path):
    """Nothing committed since the start is nothing to lose."""
    await write(store, CreateFile(1, b"f", 0, 0, 0, 0))
    await store.make_durable()
    again = await SqliteStore.open(tmp_path / "store.db", shard_count=SHARDS)
    assert equal(await again.make_durable(), store.applied)
    await again.close()


async def test_the_clock_passes_what_is_applied(store):
    """A site whose clock was not told of what it applied still stamps later than that."""
    await write(store, CreateFile(1, b"f", 0, 0, 0, 0))
    async with store.transaction() as transaction:
        behind = StampSource(JOURNAL, SHARDS, source(store).next_seqs, HybridClock(), 5)
        folded = await transaction.fold_local([LocalRequest([CreateFile(1, b"g", 0, 0, 0, 0)])], behind)
        assert folded.blocks[0].timestamps[0] > store.applied_timestamp_us


async def test_the_wal_starts_again_after_make_durable(store, tmp_path):
    """Its size is bounded by what is written between two of them."""
    sizes = []
    for number in range(6):
        await write(store, *[CreateFile(1, b"%d-%d" % (number, at), 0, 0, 0, 0) for at in range(100)])
        await store.make_durable()
        sizes.append((tmp_path / "store.db-wal").stat().st_size)
    assert sizes[-1] <= 2 * sizes[1]


async def test_a_snapshot_is_the_store_at_its_cursors(store, tmp_path):
    """A snapshot opens as a store of its own with the tree and the cursors of one commit."""
    await write(store, *[CreateFile(1, b"f%d" % number, 0, 0, 0, 0) for number in range(50)])
    digest = await store.read(lambda view: view.tree_digest())
    cursors = await store.snapshot_to(tmp_path / "snapshot.db")
    assert equal(cursors, store.applied)
    await write(store, CreateFile(1, b"later", 0, 0, 0, 0))
    copy = await SqliteStore.open(tmp_path / "snapshot.db", shard_count=SHARDS)
    assert equal(copy.applied, cursors)
    assert await copy.read(lambda view: view.tree_digest()) == digest
    await copy.close()
    await store.snapshot_to(tmp_path / "snapshot.db")
    assert sorted(path.name for path in tmp_path.iterdir() if "half" in path.name) == []


async def test_a_snapshot_is_consistent_while_the_writer_goes_on(store, tmp_path):
    """Commits during the copy are not in it, in whole or in part."""
    await write(store, *[CreateFile(1, b"f%d" % number, 0, 0, 0, 0) for number in range(300)])

    async def keep_writing():
        for number in range(20):
            await write(store, CreateFile(1, b"later-%d" % number, 0, 0, 0, 0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_writing)
        cursors = await store.snapshot_to(tmp_path / "snapshot.db")
    copy = await SqliteStore.open(tmp_path / "snapshot.db", shard_count=SHARDS)
    assert equal(copy.applied, cursors)
    assert len(await copy.read(names)) == sum(cursors.get(JOURNAL, ()))
    await copy.close()


async def test_more_reads_than_connections_wait_their_turn(store):
    """Reads beyond the pool wait; a read that is refused gives its connection back, at the newest snapshot."""
    await write(store, CreateFile(1, b"f", 0, 0, 0, 0))
    results = []

    async def one(number):
        with pytest.raises(OperationRefused):
            await store.read(lambda view: view.resolve(b"/none"))
        results.append(await store.read(names))

    async with trio.open_nursery() as nursery:
        for number in range(3 * READERS_MAX):
            nursery.start_soon(one, number)
    assert results == [[b"f"]] * 3 * READERS_MAX
    await write(store, CreateFile(1, b"g", 0, 0, 0, 0))
    for _ in range(READERS_MAX):
        assert await store.read(names) == [b"f", b"g"]


async def test_a_read_cannot_write(store):
    """Only transactions change the store."""
    with pytest.raises(WorldError, match="readonly"):
        await store.read(lambda view: view.connection.execute("DELETE FROM inode"))


async def test_a_store_of_other_shards_is_refused(store, tmp_path):
    """The shard count is fixed for the life of the cluster."""
    with pytest.raises(CallerError, match="3 shards"):
        await SqliteStore.open(tmp_path / "store.db", shard_count=4)


async def test_another_programs_file_is_refused(tmp_path):
    """A SQLite file of something else is not touched."""
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE theirs(x)")
    other.close()
    with pytest.raises(CallerError, match="not a namespace store"):
        await SqliteStore.open(tmp_path / "other.db", shard_count=SHARDS)


async def test_a_damaged_file_tells_what_to_do(tmp_path):
    """What is not a database at all is the world's fault, and the remedy is named."""
    (tmp_path / "store.db").write_bytes(b"no database" * 1000)
    with pytest.raises(WorldError, match="rebuild"):
        await SqliteStore.open(tmp_path / "store.db", shard_count=SHARDS)


async def test_a_full_disk_leaves_the_last_commit(store):
    """DiskFull is raised, the transaction is gone, and when there is room the store goes on."""
    await write(store, CreateFile(1, b"f", 0, 0, 0, 0))
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull):
        await write(
            store, CreateFile(1, b"g", 0, 0, 0, 0), *[WriteData(-1, at << 16, bytes(1 << 16)) for at in range(9)]
        )
    assert await store.read(names) == [b"f"]
    store._writer.execute("PRAGMA max_page_count = 1000000")
    await write(store, CreateFile(1, b"g", 0, 0, 0, 0))
    assert await store.read(names) == [b"f", b"g"]


async def counted(store, table: str) -> int:
    (count,) = await store.read(lambda view: view.connection.execute(f"SELECT count(*) FROM {table}").fetchone())
    return count


async def test_what_is_stable_is_forgotten_in_steps(store, monkeypatch):
    """A sweep goes on where it ended; then the content of removed files is gone, and nothing that shows has changed."""
    monkeypatch.setattr(sqlite_store, "FORGET_ROWS", 3)
    await write(store, *[CreateFile(1, b"f%d" % number, 0o600, 0, 0, 0) for number in range(10)])
    await write(store, *[Remove(1, b"f%d" % number) for number in range(1, 10)])
    before = await store.read(names)
    while not await store.forget({}):
        pass
    assert await counted(store, "inode") == 11
    steps = 1
    while not await store.forget(store.applied):
        steps += 1
    assert steps > 3
    assert (await counted(store, "recent"), await counted(store, "inode")) == (0, 2)
    assert store.forgotten.objects == 9
    assert await store.read(names) == before == [b"f0"]


@pytest.mark.parametrize("is_unsound", [False, True])
async def test_a_dead_letter_that_waits_holds_forgetting_up(store, is_unsound):
    """It is not applied, whatever the cursors tell; one that never will be holds up nothing."""
    await write(store, CreateFile(1, b"f", 0o600, 0, 0, 0))
    await write(store, Remove(1, b"f"))
    remembered = await counted(store, "recent")
    letter = DeadLetter(EntryKey(2, 2, 0, 1), 3, 9, 9, b"", b"", "not known", is_unsound)
    with sqlite3.connect(store.path) as connection:
        put_aside(connection, letter)
    assert await store.forget(store.applied)
    assert await counted(store, "recent") == (0 if is_unsound else remembered)
