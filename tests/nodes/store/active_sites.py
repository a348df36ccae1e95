"""Sites whose stores are in memory and that write, hear of each other, forget and restart, and the check that they agree.

Who lets them act chooses the order: a seed (`test_converge`) or hypothesis (`test_active_sites`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from claudefs_repl.block import Block
from claudefs_repl.checkpoint import join
from claudefs_repl.journal import JournalId
from nodes.store import local
from tests.nodes.store.conflict_model import ConflictModel
from tests.nodes.store.history import NAMES, deliver_at_random, facts_of, tree_of
from tests.nodes.store.test_conflicts import check_all_forgotten, found_by

ACTIONS = ("mkdir", "create", "put", "put", "symlink", "link", "remove", "rmdir") + ("move",) * 4 + ("write",) * 4 + (
    "truncate", "setattr", "setattr", "setxattr", "removexattr", "name", "name", "give_up",
)  # fmt: skip
_DIRS = "SELECT inode FROM inode WHERE kind = 2 ORDER BY inode"
_OTHERS = "SELECT inode FROM inode WHERE kind IN (1, 3) AND gone = 0 ORDER BY inode"
_NAMES = "SELECT name FROM link WHERE parent = ? ORDER BY name"


class ActiveSites:
    """Sites that write, hear of each other in any order, forget, restart, are made anew, and begin other journals.

    Attributes:
        chance: decides all that a caller leaves open.
        operations: how many have taken effect at their own site.
    """

    def __init__(self, memory_site, chance: random.Random, count: int) -> None:
        self.chance = chance
        self.memory_site = memory_site
        self.sites = [memory_site(number) for number in range(1, count + 1)]
        self.operations = 0

    def write(self, site) -> None:
        """One request of one to three operations, on whatever the site has."""
        site.wall_us += self.chance.randrange(4)
        ops = [self.operation(site) for _ in range(self.chance.randint(1, 3))]
        (outcome,) = site.run(ops)
        self.operations += sum(result.seq > 0 for result in outcome.results)

    def operation(self, site) -> local.LocalOp:
        pick, number = self.chance.choice, self.chance.randrange
        dirs = [inode for (inode,) in site.connection.execute(_DIRS)]
        inode = pick([inode for (inode,) in site.connection.execute(_OTHERS)] or [1])
        parent, to_parent, name = pick(dirs), pick(dirs), pick(NAMES)
        held = pick([held for (held,) in site.connection.execute(_NAMES, (parent,))] or [b"a"])
        match pick(ACTIONS):
            case "mkdir":
                return local.MakeDir(parent, name, 0o700, 0, 0, number(99))
            case "create":
                return local.CreateFile(parent, name, 0o600, number(9), number(9), number(99))
            case "put":
                return local.CreateFile(None, None, 0o600, 0, 0, 0)
            case "symlink":
                return local.MakeSymlink(parent, name, 0, 0, 0, b"t%d" % number(9))
            case "link":
                return local.MakeLink(inode, parent, name)
            case "remove":
                return local.Remove(parent, held)
            case "rmdir":
                return local.RemoveDir(parent, held)
            case "move":
                return local.Move(parent, held, to_parent, name, replace=number(2) == 1)
            case "write":
                return local.WriteData(inode, number(16), bytes([65 + number(26)]) * number(16))
            case "truncate":
                return local.TruncateFile(inode, number(20))
            case "setattr":
                return local.SetAttributes(pick([inode, parent]), mode=number(0o777), mtime_ns=pick([None, number(99)]))
            case "setxattr":
                return local.SetX(inode, name, b"v%d" % number(9))
            case "removexattr":
                return local.RemoveX(inode, name)
            case "name":
                return local.NameFile(inode, parent, name, replace=True)
        return local.GiveUp(inode)

    def hear(self, site) -> None:
        """A site is given a piece of some journal's shard, and perhaps a part of it twice."""
        journal, shards = self.chance.choice(list(self.journals().items()))
        shard = self.chance.randrange(site.shard_count)
        done = site.view.applied().get(journal, (0,) * site.shard_count)[shard]
        pieces = [block.after(done) for block in shards[shard] if block.last_seq > done]
        pieces = pieces[: self.chance.randint(1, 12)]
        site.take(journal, pieces)
        if self.chance.randrange(4) == 0:
            site.take(journal, pieces[-1:])

    def hear_again(self, site) -> None:
        """A site is given what it has, once more."""
        journal, shards = self.chance.choice(list(self.journals().items()))
        shard = self.chance.randrange(site.shard_count)
        done = site.view.applied().get(journal, (0,) * site.shard_count)[shard]
        site.take(journal, [block for block in shards[shard] if block.last_seq <= done][-3:])

    def forget(self, site) -> None:
        """A site hears from some others where they are, and forgets what is stable."""
        others = [other for other in self.sites if other is not site]
        site.hear_and_forget(others, heard=[self.chance.random() < 0.7 for _ in others])

    def rebuild(self, site) -> None:
        """A site's store is lost, and folded again from what its journals have, in another order."""
        self._fold_anew(site, site.view.applied())

    def begin_journal(self, site, *, is_lost: bool) -> None:
        """A site goes on in another journal, with all that it has; or its disk is lost, and it has what others had of it.

        As a site does, it takes no writes before it has what each of the others has.
        """
        if is_lost:
            held: dict[JournalId, tuple[int, ...]] = {}
            for other in self.sites:
                for journal, seqs in other.view.applied().items() if other is not site else ():
                    held[journal] = join(held.get(journal, seqs), seqs)
            for journal in site.journals:
                seqs = held.get(journal, (0,) * site.shard_count)
                for shard, blocks in site.journals[journal].items():
                    blocks[:] = _upto(blocks, seqs[shard])
            site = self._fold_anew(site, held)
        site.begin_journal()

    def journals(self) -> dict[JournalId, dict[int, list[Block]]]:
        """All journals of all sites."""
        return {journal: shards for site in self.sites for journal, shards in site.journals.items()}

    def _fold_anew(self, site, applied: Mapping[JournalId, tuple[int, ...]]):
        journals = {
            journal: {shard: _upto(blocks, applied[journal][shard]) for shard, blocks in shards.items()}
            for journal, shards in self.journals().items()
            if journal in applied
        }
        fresh = self.memory_site(site.journal.origin)
        if journals:
            deliver_at_random(fresh, journals, self.chance)
        fresh.journal, fresh.blocks, fresh.former, fresh.wall_us = site.journal, site.blocks, site.former, site.wall_us
        self.sites[self.sites.index(site)] = fresh
        site.close()
        return fresh

    def check(self) -> None:
        """With all entries everywhere, trees, conflicts and digests are those of the model, and all that is stable goes."""
        facts = [
            fact
            for journal, shards in self.journals().items()
            for blocks in shards.values()
            for fact in facts_of(journal, blocks)
        ]
        model = ConflictModel(facts)
        tree, conflicts = model.tree.tree(), sorted(model.found)
        for site in self.sites:
            deliver_at_random(site, self.journals(), self.chance)
        for _ in range(2):
            for site in self.sites:
                assert tree_of(site.view) == tree
                assert found_by(site) == conflicts
                others = [other for other in self.sites if other is not site]
                site.hear_and_forget(others, heard=[True] * len(others))
        assert len({site.view.tree_digest() for site in self.sites}) == 1
        for site in self.sites:
            check_all_forgotten(site)
            site.close()


def _upto(blocks: list[Block], seq: int) -> list[Block]:
    return [
        block if block.last_seq <= seq else block.cut(first_seq=block.first_seq, last_seq=seq)
        for block in blocks
        if block.first_seq <= seq
    ]
