"""What a site tells of the cluster: whatever its peers answer, it answers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from claudefs_repl.error import OperationRefused
from claudefs_repl.failover import SiteMode
from claudefs_repl.journal import Incarnation, JournalId, SiteId
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.accounts import Accounts
from nodes.peers import PeerRecord
from nodes.status import MANIFEST_BYTES_MAX, SiteStatus
from nodes.store.sqlite_store import SqliteStore
from nodes.trace import Tracer
from nodes.write_gate import WriteGate

ALPHA = SiteConfig("alpha", SiteId(1), "127.0.0.1", 1, Path("alpha"))
BETA = SiteConfig("beta", SiteId(2), "127.0.0.2", 2, Path("beta"))
DIGEST = {"digest": "00", "dead_letters": 0, "cursors": {}}


class Nothing:
    """A site without journals."""

    own = SimpleNamespace(journal=JournalId(ALPHA.site_id, Incarnation(1)))

    def all(self):
        return ()

    def received(self):
        return {}


class Peer:
    """Answers every question with the same thing."""

    def __init__(self, answers):
        self.answers = answers

    async def ask(self, peer, method, args, *, timeout_s):
        await trio.lowlevel.checkpoint()
        return self.answers.get(method, {})


def status_of(store, **answers):
    cluster = ClusterConfig(Path("cluster.toml"), "test", 2, Path("keys"), (ALPHA, BETA))
    nothing = SimpleNamespace()
    return SiteStatus(
        cluster=cluster,
        site=ALPHA,
        pid=1,
        journals=nothing,
        store=store,
        peers={BETA.site_id: PeerRecord(BETA)},
        peer_modes={BETA.site_id: SiteMode.ACTIVE_READ_WRITE},
        gate=WriteGate("alpha", SiteMode.ACTIVE_READ_WRITE),
        queries=Peer(answers),
        wall_clock=nothing,
        applier=nothing,
        receiver=nothing,
        housekeeper=nothing,
        accounts=Accounts(journals=Nothing(), store=store, peers={}),
        tracer=Tracer(
            cluster=cluster, site=ALPHA, journals=Nothing(), store=store, peers={}, queries=None, wall_clock=nothing
        ),
        keeper=nothing,
    )


@pytest.fixture
async def store(tmp_path):
    store = await SqliteStore.open(tmp_path / "view.sqlite", shard_count=2)
    yield store
    with trio.CancelScope(shield=True):
        await store.close()


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {**DIGEST, "cursors": 5},
        {**DIGEST, "cursors": {"x": [1, 2]}},
        {**DIGEST, "cursors": {"1:0000000000000001": [1]}},
        {**DIGEST, "cursors": {"1:0000000000000001": [1, "x"]}},
        {**DIGEST, "cursors": {7: 7}},
        {**DIGEST, "digest": None},
    ],
)
async def test_a_peer_whose_digest_is_none_is_not_converged(store, answer):
    """An answer of another shape counts as no answer, and the verdict says which site it was."""
    verdict = await status_of(store, digest=answer).client_handlers()["digest"]({})
    assert not verdict["converged"]
    assert verdict["reason"] == "not reachable: beta"


async def test_a_page_of_paths_fits_a_reply(store):
    """Paths have no limit but that of their names: a page is cut where a reply would be too long, and goes on."""
    paths = [(b"/%03d" % n + bytes(MANIFEST_BYTES_MAX // 3), bytes(32)) for n in range(5)]

    class View:
        def manifest(self, after, limit):
            rest = [entry for entry in paths if after is None or entry[0] > after]
            return rest[:limit], len(rest) > limit

    async def read(function):
        await trio.lowlevel.checkpoint()
        return function(View())

    manifest = status_of(SimpleNamespace(read=read)).peer_handlers()["manifest"]
    found, args = [], {}
    while True:
        page = await manifest(args)
        assert page["entries"]
        assert sum(len(path) for path, _ in page["entries"]) <= MANIFEST_BYTES_MAX
        found += [tuple(entry) for entry in page["entries"]]
        if not page["more"]:
            break
        args = {"after": page["entries"][-1][0], "limit": 4}
    assert found == paths


@pytest.mark.parametrize("args", [{"limit": "x"}, {"limit": -1}, {"after": 5}, {"limit": float("nan")}])
async def test_a_listing_with_wrong_arguments_is_refused(store, args):
    """A peer's question of a wrong type or range is an error of the question."""
    with pytest.raises(OperationRefused, match="is out of range"):
        await status_of(store).peer_handlers()["manifest"](args)
