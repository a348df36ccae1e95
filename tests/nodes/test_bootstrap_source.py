"""What peers ask for a bootstrap: any arguments are answered or refused in words, and end nothing."""

from __future__ import annotations

from types import SimpleNamespace

import msgpack
import pytest
import trio

from claudefs_repl.error import CallerError
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from nodes.bootstrap_source import BootstrapSource
from nodes.link import LinkClosed
from nodes.queries import serve_queries
from nodes.runtime import SystemClock
from nodes.snapshots import SNAPSHOTS_DIR, STORE_NAME
from nodes.storage import DiskStorage
from protocol.messages import Query

JOURNAL = JournalId(SiteId(1), Incarnation(9))
NAME = "000000000007"


class Housekeeper:
    """Has one snapshot, and is asked with whatever the peer says of another."""

    def hold(self, name):
        assert name == NAME

    async def snapshot_covering(self, needs, *, begun=None):
        await trio.lowlevel.checkpoint()
        raise CallerError("this site has not applied yet what is needed")


@pytest.fixture
async def ask(tmp_path):
    storage = DiskStorage(tmp_path)
    await storage.make_dir(f"{SNAPSHOTS_DIR}/{NAME}")
    await storage.replace_file(f"{SNAPSHOTS_DIR}/{NAME}/{STORE_NAME}", b"the store")
    source = BootstrapSource(
        storage=storage,
        shard_count=2,
        journals=SimpleNamespace(replicas={}),
        store=None,
        housekeeper=Housekeeper(),
        wall_clock=SystemClock(),
    )

    class Wire:
        def __init__(self, query):
            self.incoming, self.sent = [query], []

        async def receive(self):
            await trio.lowlevel.checkpoint()
            if not self.incoming:
                raise LinkClosed
            return self.incoming.pop()

        async def send(self, message):
            await trio.lowlevel.checkpoint()
            self.sent.append(message)

    async def ask(method, args):
        wire = Wire(Query(1, method, msgpack.packb(args)))
        await serve_queries(wire, source.peer_handlers(None), 5.0)
        (reply,) = wire.sent
        return reply.ok, msgpack.unpackb(reply.result)

    return ask


async def test_a_part_of_a_snapshot_is_given_by_name_and_offset(ask):
    """The bytes from there on; none of a snapshot that is gone."""
    assert await ask("snapshot_part", {"name": NAME, "offset": 4}) == (True, {"gone": False, "data": b"store"})
    assert await ask("snapshot_part", {"name": NAME, "offset": 1 << 61}) == (True, {"gone": False, "data": b""})
    assert await ask("snapshot_part", {"name": "000000000008", "offset": 0}) == (True, {"gone": True, "data": b""})


@pytest.mark.parametrize(
    ("method", "args"),
    [
        *[
            ("snapshot_part", {"name": name, "offset": 0})
            for name in (
                "7",
                "\u0667" * 12,
                "\u00b2" * 12,
                "1" * 300,
                "1" * 60_000,
                "../journals",
                b"000000000007",
                None,
            )
        ],
        *[
            ("snapshot_part", {"name": NAME, "offset": offset})
            for offset in (-1, 1 << 62, (1 << 63) - 1, (1 << 64) - 1, 0.5, True, None, [])
        ],
        ("snapshot_part", {}),
        *[
            ("entry_crc", {"journal": journal, "shard": 0, "seq": 1})
            for journal in (b"1:0000000000000009", 5, None, [], {}, "1:9", "9" * 5000 + ":0000000000000009")
        ],
        ("entry_crc", {"journal": str(JOURNAL), "shard": 2, "seq": 1}),
        ("entry_crc", {"journal": str(JOURNAL), "shard": 0, "seq": float("inf")}),
        ("entry_crc", {"journal": str(JOURNAL)}),
        *[
            ("snapshot_offer", {"needs": needs, "begun": None})
            for needs in (None, [], 5, {b"x": [1, 2]}, {str(JOURNAL): 5}, {str(JOURNAL): [1]}, {str(JOURNAL): [1, -1]})
        ],
        ("snapshot_offer", {"needs": {}, "begun": [1]}),
        ("snapshot_offer", {"needs": {}, "begun": "1" * 60_000}),
        ("snapshot_offer", {}),
    ],
)
async def test_a_question_with_wrong_arguments_is_refused_in_words(ask, method, args):
    """A peer that sends what no peer would send gets a reason; the site that it asks lives on."""
    ok, reason = await ask(method, args)
    assert not ok
    assert reason
