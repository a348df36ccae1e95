"""The administrator's requests: what holds now is what the next start reads."""

from __future__ import annotations

import os
import random
from types import SimpleNamespace

import pytest
import trio

from claudefs_repl.admission import Admission
from claudefs_repl.auth_ratelimit import AuthRateLimiter
from claudefs_repl.error import DiskFull
from claudefs_repl.failover import FailoverManager, SiteMode
from claudefs_repl.journal import Inode, SiteId
from nodes.admin import Admin, Limiters, read_pinned_mode
from nodes.config import load_cluster, write_cluster
from nodes.dialing import Dialing
from nodes.events import make_logger
from nodes.key_files import load_keys, make_keys, write_keys
from nodes.runtime import ShiftedClock, SystemClock
from nodes.shown_ids import ShownIds
from nodes.storage import DiskStorage
from nodes.store.view import Stat
from nodes.write_gate import WriteGate
from protocol.handshake import LocalIdentity

OFFLINE, ACTIVE, STANDBY = (
    SiteMode.OFFLINE.value,
    SiteMode.ACTIVE_READ_WRITE.value,
    SiteMode.STANDBY_READ_ONLY.value,
)


@pytest.fixture
async def alpha(tmp_path):
    """One site's administration, without the site."""
    path = write_cluster(tmp_path / "cluster", cluster_id="test")
    cluster = load_cluster(path)
    write_keys(cluster.keys_dir, make_keys(cluster.sites, os.urandom))
    site = cluster.sites[0]
    storage = DiskStorage(tmp_path)
    manager = FailoverManager(cluster.failover, site.site_id)
    await manager.register_site(site.site_id)
    gate = WriteGate(site.name, SiteMode.ACTIVE_READ_WRITE)
    wall_clock = ShiftedClock(SimpleNamespace(now_us=lambda: 10**9), offset_s=0.0)
    limiter = AuthRateLimiter(cluster.rate_limit)
    identity = LocalIdentity(cluster.cluster_id, cluster.shards, site.site_id, random.Random(0).getrandbits(64))
    keys = load_keys(cluster.key_file(site), site)
    shown_ids = ShownIds(cluster, site)
    followers = [SimpleNamespace(config=cluster.conflicts) for _ in range(2)]
    admin = Admin(
        cluster=cluster,
        site=site,
        storage=storage,
        dialing=Dialing(identity, site.address, keys, os.urandom, 5.0, limiter),
        limiters=Limiters(Admission(cluster.rate_limit, []), limiter, ()),
        shown_ids=shown_ids,
        conflicts=followers,
        manager=manager,
        gate=gate,
        wall_clock=wall_clock,
        logger=make_logger(tmp_path / "events.jsonl", site.name, SystemClock()),
    )
    handlers = admin.handlers()
    return SimpleNamespace(
        storage=storage,
        gate=gate,
        path=path,
        shown_ids=shown_ids,
        conflicts=followers,
        wall_clock=wall_clock,
        mode=handlers["mode"],
        reload=handlers["reload"],
    )


async def test_a_pinned_mode_that_is_changed_is_pinned_as_it_is_now(alpha):
    """After a change without a new pin the next start finds the mode that holds, not the one before."""
    await alpha.mode({"mode": OFFLINE, "pin": True})
    answer = await alpha.mode({"mode": ACTIVE})
    assert (answer["mode"], answer["pinned"]) == (ACTIVE, True)
    assert await read_pinned_mode(alpha.storage) is SiteMode.ACTIVE_READ_WRITE


async def test_a_mode_that_is_not_pinned_is_forgotten(alpha):
    """A plain change and a release leave nothing for the next start."""
    await alpha.mode({"mode": STANDBY})
    assert await read_pinned_mode(alpha.storage) is None
    await alpha.mode({"mode": OFFLINE, "pin": True})
    assert not (await alpha.mode({"release": True}))["pinned"]
    assert await read_pinned_mode(alpha.storage) is None


async def test_a_pin_that_cannot_be_kept_changes_nothing(alpha, monkeypatch):
    """When the pin finds no room on the disk, the caller learns it and the mode is as it was."""

    async def full(path, content):
        await trio.lowlevel.checkpoint()
        raise DiskFull(path)

    monkeypatch.setattr(alpha.storage, "replace_file", full)
    with pytest.raises(DiskFull):
        await alpha.mode({"mode": OFFLINE, "pin": True})
    answer = await alpha.mode({})
    assert (answer["mode"], answer["pinned"]) == (ACTIVE, False)
    assert alpha.gate.mode is SiteMode.ACTIVE_READ_WRITE


async def test_every_reload_tells_what_still_needs_a_restart(alpha):
    """What was changed since the start needs a restart, however often it was reloaded since."""
    text = alpha.path.read_text()
    assert (await alpha.reload({}))["restart_needed"] == []
    write_cluster(alpha.path.parent / "other", cluster_id="test", settings={"journal": {"reserve_bytes": 1 << 20}})
    changed = (alpha.path.parent / "other" / "cluster.toml").read_text()
    assert changed != text
    alpha.path.write_text(changed)
    for _ in range(2):
        assert "journal" in (await alpha.reload({}))["restart_needed"]


async def test_identity_tables_are_taken_at_once(alpha):
    """A reload shows ids by the new tables without a restart, and says so; another site's tables are not ours."""
    written = Stat(Inode(5), "file", 0o644, 1000, 100, 0, 0, 1, None, Inode(1), b"f", SiteId(2), SiteId(2))
    assert alpha.shown_ids.shown(written, "/f").uid == 1000
    text = alpha.path.read_text()
    alpha.path.write_text(f"{text}[sites.alpha.identity.beta]\nuids = [{{ from = 1000, to = 2000 }}]\n")
    answer = await alpha.reload({})
    assert answer == {"changed": ["identity"], "restart_needed": []}
    shown = alpha.shown_ids.shown(written, "/f")
    assert (shown.uid, shown.gid) == (2000, 100)
    assert (await alpha.reload({}))["changed"] == []
    alpha.path.write_text(f'{text}[sites.beta.identity.alpha]\nunmapped = "refuse"\n')
    assert (await alpha.reload({}))["changed"] == ["identity"]
    assert alpha.shown_ids.shown(written, "/f").uid == 1000


async def test_what_a_site_does_with_conflicts_is_taken_at_once(alpha):
    """A reload gives the new limit and command to whoever follows them, and needs no restart for it."""
    text = alpha.path.read_text()
    alpha.path.write_text(
        text.replace("# keep_bytes_max", "keep_bytes_max").replace("# command = []", 'command = ["x"]')
    )
    assert await alpha.reload({}) == {"changed": ["conflicts"], "restart_needed": []}
    assert {follower.config.command for follower in alpha.conflicts} == {("x",)}
    assert (await alpha.reload({}))["changed"] == []
    alpha.path.write_text(text)
    assert (await alpha.reload({}))["changed"] == ["conflicts"]


async def test_a_reload_sets_this_sites_disk_quota(alpha):
    """There is no room for new files from then on, and there is again without it; no restart is needed."""
    text = alpha.path.read_text()
    alpha.path.write_text(text.replace("[sites.alpha]\n", "[sites.alpha]\ndisk_quota_bytes = 1\n"))
    answer = await alpha.reload({})
    assert (answer["changed"], answer["restart_needed"]) == (["disk_quota_bytes (1 bytes)"], [])
    with pytest.raises(DiskFull):
        await alpha.storage.replace_file("new", b"two bytes and more")
    alpha.path.write_text(text)
    assert (await alpha.reload({}))["changed"] == ["disk_quota_bytes (0 bytes)"]
    await alpha.storage.replace_file("new", b"two bytes and more")


async def test_a_reload_sets_this_sites_clock_and_no_other(alpha):
    """A clock offset holds at once, is told once, and needs no restart, whosever it is."""
    text = alpha.path.read_text()
    alpha.path.write_text(text.replace("[sites.alpha]\n", "[sites.alpha]\nclock_offset_s = -1.5\n"))
    answer = await alpha.reload({})
    assert (answer["changed"], answer["restart_needed"]) == (["clock_offset_s (-1.5 s)"], [])
    assert alpha.wall_clock.now_us() == 10**9 - 1_500_000
    assert (await alpha.reload({}))["changed"] == []
    alpha.path.write_text(text.replace("[sites.beta]\n", "[sites.beta]\nclock_offset_s = 7\n"))
    answer = await alpha.reload({})
    assert (answer["changed"], answer["restart_needed"]) == (["clock_offset_s (0 s)"], [])
    assert alpha.wall_clock.now_us() == 10**9
