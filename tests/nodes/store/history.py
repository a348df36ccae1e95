"""Histories for the tests of the folding rules: sites that write and exchange, forged journals, and the rules read aloud."""

from __future__ import annotations

import random
from typing import NamedTuple

from hypothesis import strategies as st

from claudefs_repl.block import Block, NewRow, join_blocks
from claudefs_repl.checkpoint import encode_cursors
from claudefs_repl.journal import ROOT_INODE, JournalId, Stamp, entry_crc32, make_inode, shard_of
from claudefs_repl.operations import (
    Create,
    Link,
    MkDir,
    RemoveXattr,
    Rename,
    Replaced,
    SetAttr,
    SetXattr,
    Symlink,
    Truncate,
    Unlink,
    Write,
)
from nodes.store import local
from nodes.store.soundness import check_entry
from nodes.store.view import conflict_name
from protocol.payload import OP_OF, PayloadInvalid, decode_payload, encode_payload

SHARDS = 2


class Fact(NamedTuple):
    """An entry with everything that its effect depends on."""

    stamp: Stamp
    seen: dict
    inode: int
    operation: object


class Model:
    """The tree by the rules as they are told, from all entries at once."""

    def __init__(self, facts: list[Fact]):
        self.facts = sorted(facts)
        self.kinds = {ROOT_INODE: "dir"}
        self.targets: dict[int, bytes] = {}
        self.fields: dict[tuple[int, str], object] = {}
        self.contents: dict[int, dict[int, int]] = {}
        self.lengths: dict[int, int] = {}
        self.xattrs: dict[int, dict[bytes, bytes]] = {}
        self.gone: set[int] = set()
        self.places: dict[int, tuple[int, bytes, Stamp]] = {}
        self.removed: set[int] = set()
        for name, value in (("mode", 0o755), ("uid", 0), ("gid", 0), ("mtime_ns", 0)):
            self.fields[ROOT_INODE, name] = value
        for fact in self.facts:
            self.play(fact)
        self.links = self.live_links()

    def play(self, fact: Fact) -> None:
        """In the order of the stamps the last writer wins by coming last."""
        inode, op = fact.inode, fact.operation
        if isinstance(op, Create | MkDir | Symlink):
            self.kinds[inode] = {Create: "file", MkDir: "dir", Symlink: "symlink"}[type(op)]
            self.fields[inode, "mode"] = getattr(op, "mode", 0o777)
            for name in ("uid", "gid", "mtime_ns"):
                self.fields[inode, name] = getattr(op, name)
            if isinstance(op, Symlink):
                self.targets[inode] = op.target
            if isinstance(op, MkDir):
                self.place(inode, op.parent, op.name, fact.stamp)
        elif isinstance(op, SetAttr):
            for name in ("mode", "uid", "gid", "mtime_ns"):
                if getattr(op, name) is not None:
                    self.fields[inode, name] = getattr(op, name)
        elif isinstance(op, Write):
            self.fields[inode, "mtime_ns"] = fact.stamp.timestamp_us * 1000
            self.contents.setdefault(inode, {}).update(enumerate(op.data, op.offset))
        elif isinstance(op, Truncate):
            kept = {at: byte for at, byte in self.contents.get(inode, {}).items() if at < op.length}
            self.contents[inode], self.lengths[inode] = kept, op.length
        elif isinstance(op, SetXattr):
            self.xattrs.setdefault(inode, {})[op.name] = op.value
        elif isinstance(op, RemoveXattr):
            self.xattrs.get(inode, {}).pop(op.name, None)
        elif isinstance(op, Unlink):
            if op.is_dir:
                self.removed.add(inode)
            elif op.parent is None:
                self.gone.add(inode)
        elif isinstance(op, Rename):
            if op.is_dir:
                self.place(inode, op.to_parent, op.to_name, fact.stamp)
            for replaced in op.replaced:
                if replaced.is_dir and replaced.inode != inode:
                    self.removed.add(replaced.inode)

    def place(self, child: int, parent: int, name: bytes, stamp: Stamp) -> None:
        above = parent
        while above in self.places or above == child:
            if above == child:
                return
            above = self.places[above][0]
        self.places[child] = parent, name, stamp
        self.removed.discard(child)

    def live_links(self) -> list[tuple[int, bytes, int, Stamp]]:
        adds, removals = [], []
        for stamp, seen, inode, op in self.facts:
            if isinstance(op, Create | Symlink | Link) and op.parent is not None:
                adds.append((op.parent, op.name, inode, stamp))
            elif isinstance(op, Unlink) and not op.is_dir and op.parent is not None:
                removals.append((op.parent, op.name, inode, stamp, seen))
            elif isinstance(op, Rename):
                if not op.is_dir:
                    adds.append((op.to_parent, op.to_name, inode, stamp))
                    if op.from_parent is not None:
                        removals.append((op.from_parent, op.from_name, inode, stamp, seen))
                for replaced in op.replaced:
                    if not replaced.is_dir and replaced.inode != inode:
                        removals.append((op.to_parent, op.to_name, replaced.inode, stamp, seen))
        return [add for add in adds if not any(self.removes(removal, add) for removal in removals)]

    @staticmethod
    def removes(removal, add) -> bool:
        *link, by, seen = removal
        *added, stamp = add
        if link != added:
            return False
        if by[1:3] == stamp[1:3]:
            return stamp.seq < by.seq if stamp.shard == by.shard else stamp < by
        return stamp.seq <= seen.get(JournalId(stamp.origin, stamp.incarnation), (0,) * SHARDS)[stamp.shard]

    def is_known(self, inode: int) -> bool:
        return inode in self.kinds and inode not in self.gone

    def claims(self, parent: int) -> dict[bytes, dict[int, Stamp]]:
        names: dict[bytes, dict[int, Stamp]] = {}
        for link_parent, name, inode, stamp in self.links:
            if link_parent == parent and self.is_known(inode) and self.kinds[inode] != "dir":
                holders = names.setdefault(name, {})
                holders[inode] = max(stamp, holders.get(inode, stamp))
        for inode, (place_parent, name, stamp) in self.places.items():
            if place_parent == parent and self.is_known(inode) and self.kinds[inode] == "dir" and self.shows(inode):
                names.setdefault(name, {})[inode] = stamp
        return names

    def shows(self, directory: int) -> bool:
        return directory not in self.removed or bool(self.claims(directory))

    def tree(self, directory: int = ROOT_INODE, path: bytes = b"") -> dict[bytes, tuple]:
        paths = {}
        for name, holders in self.claims(directory).items():
            latest = max(holders, key=lambda inode: holders[inode])
            for inode, stamp in holders.items():
                shown = name if inode == latest else conflict_name(name, stamp.origin, inode)
                paths[path + b"/" + shown] = self.describe(inode)
                if self.kinds[inode] == "dir":
                    paths |= self.tree(inode, path + b"/" + shown)
        return paths

    def describe(self, inode: int) -> tuple:
        content = self.contents.get(inode, {})
        size = max(self.lengths.get(inode, 0), max(content, default=-1) + 1)
        is_file = self.kinds[inode] == "file"
        return (
            inode,
            self.kinds[inode],
            tuple(self.fields[inode, name] for name in ("mode", "uid", "gid", "mtime_ns")),
            bytes(content.get(at, 0) for at in range(size)) if is_file else None,
            self.targets.get(inode),
            self.xattrs.get(inode, {}),
        )


def tree_of(view, directory: int = ROOT_INODE, path: bytes = b"") -> dict[bytes, tuple]:
    paths = {}
    for entry in view.list_dir(directory, after=None, limit=1000)[0]:
        entry_path = path + b"/" + entry.name
        paths[entry_path] = (
            entry.inode,
            entry.kind,
            (entry.mode, entry.uid, entry.gid, entry.mtime_ns),
            view.read(entry.inode, 0, entry.size) if entry.kind == "file" else None,
            entry.target,
            view.xattrs(entry.inode),
        )
        assert view.resolve(entry_path) == entry
        if entry.kind == "dir":
            paths |= tree_of(view, entry.inode, entry_path)
    return paths


def facts_of(journal: JournalId, blocks: list[Block]) -> list[Fact]:
    from claudefs_repl.checkpoint import decode_cursors

    facts = []
    for block in blocks:
        for row in block.rows():
            stamp = Stamp(row.timestamp_us, *journal, block.shard, row.seq)
            operation = decode_payload(row.op, row.payload)
            try:
                check_entry(stamp, row.inode, operation, SHARDS)
            except PayloadInvalid:
                continue
            facts.append(Fact(stamp, decode_cursors(block.seen_table[row.seen]), row.inode, operation))
    return facts


def cut_at_random(blocks: list[Block], chance: random.Random) -> list[Block]:
    """The entries of a shard in blocks of any size, however they were written."""
    pieces = []
    for block in [join_blocks(blocks)] if blocks else []:
        at = block.first_seq
        while at <= block.last_seq:
            end = chance.randint(at, block.last_seq)
            pieces.append(block.cut(first_seq=at, last_seq=end))
            at = end + 1
    return pieces


def deliver_at_random(site, journals: dict[JournalId, dict[int, list[Block]]], chance: random.Random) -> None:
    queues = [
        (journal, cut_at_random(blocks, chance)) for journal, shards in journals.items() for blocks in shards.values()
    ]
    while queues:
        journal, pieces = queues[chance.randrange(len(queues))]
        if not pieces:
            queues.remove((journal, pieces))
            continue
        count = chance.randint(1, 3)
        site.take(journal, pieces[:count])
        # The last of them may come once more.
        del pieces[: count - chance.randint(0, 1) or 1]


def check_all(sites, chance: random.Random, memory_site) -> None:
    """Every site, and a fresh one, is given everything in an order of its own; all agree with the model."""
    journals = {site.journal: site.blocks for site in sites}
    facts = [fact for site in sites for blocks in site.blocks.values() for fact in facts_of(site.journal, blocks)]
    expected = Model(facts).tree()
    fresh = memory_site(99)
    first = None
    for site in (*sites, fresh):
        deliver_at_random(site, journals, chance)
        assert tree_of(site.view) == expected
        if first is None:
            first = site.view.tree_digest(), site.dump()
        assert site.view.tree_digest() == first[0]
        assert site.dump() == first[1]
    fresh.close()


NAMES = (b"a", b"b", b"c")
numbers = st.integers(0, 1 << 16)
local_actions = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 17), numbers, numbers, numbers), min_size=20, max_size=60
)


def act(sites, action) -> None:
    """One action at one site: an operation on what the site shows, or a delivery of part of another's journal."""
    who, what, one, two, three = action
    site = sites[who % len(sites)]
    shown = tree_of(site.view)
    dirs = [ROOT_INODE, *[entry[0] for entry in shown.values() if entry[1] == "dir"]]
    others = [entry[0] for entry in shown.values() if entry[1] != "dir"] or [ROOT_INODE]
    parent, to_parent = dirs[one % len(dirs)], dirs[two % len(dirs)]
    held = sorted(site.listing(parent)) or [b"a"]
    name, old_name, inode = NAMES[three % 3], held[three % len(held)], others[two % len(others)]
    site.wall_us += three % 5
    match what:
        case 0 | 1:
            ops = [local.MakeDir(parent, name, 0o700 + one % 8, 0, 0, two)]
        case 2:
            ops = [local.CreateFile(parent, name, 0o600, one, two, three)]
        case 3:
            ops = [
                local.CreateFile(None, None, 0o600, 0, 0, 0),
                local.WriteData(-1, one % 8, b"n" * (two % 8)),
                local.NameFile(-1, parent, name, replace=True),
            ]
        case 4:
            ops = [local.MakeSymlink(parent, name, 0, 0, 0, b"t")]
        case 5:
            ops = [local.MakeLink(inode, parent, name)]
        case 6:
            ops = [local.Remove(parent, old_name)]
        case 7:
            ops = [local.RemoveDir(parent, old_name)]
        case 8 | 9 | 10:
            ops = [local.Move(parent, old_name, to_parent, name, replace=bool(three % 2))]
        case 11:
            ops = [local.WriteData(inode, one % 16, bytes([65 + three % 26]) * (two % 16))]
        case 12:
            ops = [local.TruncateFile(inode, one % 20)]
        case 13:
            ops = [
                local.SetAttributes(inode, mode=three % 0o777 if one % 2 else None, mtime_ns=two if two % 2 else None)
            ]
        case 14:
            ops = [local.SetX(inode, name, b"v%d" % three)] if one % 3 else [local.RemoveX(inode, name)]
        case 15:
            ops = [local.CreateFile(None, None, 0, 0, 0, 0), local.WriteData(-1, 0, b"x"), local.GiveUp(-1)]
        case _:
            other = sites[one % len(sites)]
            shard = two % SHARDS
            done = site.view.applied().get(other.journal, (0,) * SHARDS)[shard]
            pieces = [block.after(done) for block in other.blocks[shard] if block.last_seq > done]
            site.take(other.journal, pieces[: 1 + three % 4])
            return
    site.run(ops)


class Forger:
    """A journal of entries that no site would write, but that pass the checks on single entries."""

    def __init__(self, site_id: int):
        self.journal = JournalId(site_id, site_id)
        self.blocks: dict[int, list[Block]] = {shard: [] for shard in range(SHARDS)}

    def write(self, timestamp_us: int, inode: int, operation: object, seen: dict) -> None:
        shard = shard_of(inode, SHARDS)
        seq = len(self.blocks[shard]) + 1
        op, payload = OP_OF[type(operation)], encode_payload(operation)
        crc32 = entry_crc32(seq, shard, self.journal.origin, timestamp_us, inode, op, payload)
        row = NewRow(timestamp_us, op, inode, payload, crc32)
        seen_bytes = encode_cursors(seen, SHARDS)
        self.blocks[shard].append(Block.build(shard=shard, first_seq=seq, rows=[row], seen=seen_bytes))


forgeries = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.integers(1, 40),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 9),
        st.tuples(*[st.integers(0, 6)] * 4),
    ),
    min_size=15,
    max_size=40,
)


def forge(forgers, action) -> None:
    who, ticks, what, one, two, three, seqs = action
    forger = forgers[who]
    # Few objects, half of them directories, so that entries meet; the even ones are made by the one, the odd by the other.
    objects = [make_inode(forgers[number % 2].journal.origin, 1 + 3 * number) for number in range(10)]
    inode, parent, other = objects[one], objects[two] if two else ROOT_INODE, objects[three] if three else ROOT_INODE
    name = NAMES[(one + three) % 2]
    seen = {forgers[0].journal: seqs[:2], forgers[1].journal: seqs[2:]}
    match what:
        case 0 | 1:
            if one % 2 != who:
                return
            ticks = 1 + 3 * one
            operation = MkDir(0o700, 0, 0, 0, parent, name) if one < 7 else Create(0o600, 0, 0, 0, parent, name)
        case 2 | 3 | 4:
            operation = Rename(other, name, parent, name, True, ())
        case 5:
            operation = Unlink(parent, name, is_dir=True)
        case 6:
            operation = Link(parent, name)
        case 7:
            operation = Unlink(parent, name, is_dir=False)
        case 8:
            replaced = (
                Replaced(objects[(one + 1) % 10], bool(ticks % 2)),
                Replaced(objects[(one + 3) % 10], is_dir=False),
            )
            operation = Rename(other, name, parent, name, bool(ticks % 3), replaced)
        case _:
            operation = Truncate(three) if two % 2 else Write(two, bytes([48 + one]) * three)
    forger.write(ticks, inode, operation, seen)
