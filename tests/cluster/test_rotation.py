"""Keys are rotated and limits changed on a running cluster, while its sites write."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import trio

from nodes.commands.compare import compare_trees

pytestmark = pytest.mark.cluster

LOCK_S = 4
ONCE_A_MINUTE = {"max_auth_attempts_per_minute": 1, "lockout_duration_secs": LOCK_S}


def set_limits(lab: Any, **values: int) -> None:
    """Change values of `[rate_limit]` in cluster.toml."""
    text = lab.cluster.path.read_text()
    for key, value in values.items():
        text, count = re.subn(rf"^(# ?)?{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, f"{key} is {count} times in\n{text}"
    lab.cluster.path.write_text(text)


def retired_links(lab: Any, site: str) -> int:
    """The connections that a site closed at its last reload, because their key was retired."""
    [told] = [one for one in lab.events(site, "reloaded")[-1]["changed"] if one.startswith("keys")]
    return int(re.search(r"\d+", told)[0])


async def connected(lab: Any) -> bool:
    statuses = [await lab.status(name) for name in lab.names]
    return all(link["conduit"] == "connected" for status in statuses for link in status["peers"].values())


async def test_keys_are_rotated_while_every_site_writes(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """Add, use, retire: no batch is rejected, nothing acknowledged is lost, and what the old key made is closed."""
    lab = await make_lab()
    trees: list[Path] = []
    confirmed: dict[str, set[bytes]] = {name: set() for name in lab.names}
    rotated = trio.Event()

    async def write(name: str) -> None:
        number = 0
        while not rotated.is_set():
            number += 1
            tree = make_files(tmp_path / f"{name}-{number}", 40, large=1, large_size=1 << 20)
            trees.append(tree)
            named: set[bytes] = set()
            assert (await lab.put(name, tree, f"/{tree.name}", named=named)).complete
            confirmed[name] |= named

    async with trio.open_nursery() as writing:
        for name in lab.names:
            writing.start_soon(write, name)
        added = (await lab.ok("keys", "add", "--json")).json
        assert added["key_id"] == "k2"
        assert [retired_links(lab, name) for name in lab.names] == [0, 0, 0]
        await lab.ok("keys", "use", "k2")
        assert [retired_links(lab, name) for name in lab.names] == [0, 0, 0]
        before = {name: len(lab.events(name, "conduit_connected")) for name in lab.names}
        await lab.ok("keys", "retire", "k1")
        closed = {name: retired_links(lab, name) for name in lab.names}
        assert sum(closed.values()) >= 6, "three pairs of sites have a conduit each way, all made with the old key"
        await lab.until(lambda: connected(lab), "every conduit is up again")
        assert all(len(lab.events(name, "conduit_connected")) > before[name] for name in lab.names)
        rotated.set()
    assert all(len(names) >= 40 for names in confirmed.values())

    await lab.ok("verify", "--wait", "60")
    for name in lab.names:
        copy = tmp_path / "copies" / name
        assert (await lab.get(name, "/", copy)).complete
        for tree in trees:
            assert compare_trees(os.fsencode(tree), os.fsencode(copy / tree.name)).equal, (name, tree.name)
        assert lab.events(name, "batch_rejected") == []
        assert (await lab.status(name))["totals"]["batches_rejected"] == 0
    assert {key["key_id"] for key in (await lab.ok("keys", "list", "--json")).json["keys"]} == {"k2"}


async def test_a_reload_slows_a_running_drain_and_lets_it_go_on(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """A low limit of batches holds a backlog back, as status tells; the old one lets it go; nothing is dropped."""
    lab = await make_lab(2, settings={"replication": {"batch_bytes_max": 4096}})
    set_limits(lab, max_batches_per_second=1)
    assert "rate_limit" in (await lab.ok("reload")).out.decode()
    tree = make_files(tmp_path / "tree", 100)
    await lab.put("alpha", tree, "/tree")
    waited = []

    async def link() -> dict[str, Any]:
        found: dict[str, Any] = (await lab.status("alpha"))["peers"]["beta"]
        return found

    async def rises() -> bool:
        now = await link()
        if now["throttled_s"] > (waited[-1] if waited else 0.0):
            waited.append(now["throttled_s"])
        return len(waited) >= 3

    await lab.until(rises, "the time at the limiter rises")
    assert (await link())["lag_entries"] > 0
    set_limits(lab, max_batches_per_second=1000)
    await lab.ok("reload")
    await lab.converge(limit_s=20)
    assert (await link())["lag_entries"] == 0
    await lab.assert_same_at("beta", "/tree", tree)
    assert lab.events("beta", "batch_rejected") == lab.events("beta", "gap_refused") == []


async def test_a_reload_of_a_broken_configuration_changes_nothing(make_lab: Any) -> None:
    """The site names what is wrong and goes on as it was."""
    lab = await make_lab(2)
    good = lab.cluster.path.read_text()
    set_limits(lab, max_batches_per_second=0)
    with pytest.raises(AssertionError):
        await lab.ok("reload")
    lab.cluster.path.write_text(good)
    done = await lab.ok("reload", "alpha", "--json")
    assert done.json["sites"]["alpha"] == {"changed": [], "restart_needed": []}
    await lab.ok("write", "alpha:/file", stdin=b"x")
    await lab.converge()


async def test_a_site_that_connects_too_often_is_refused_waits_and_comes_back(make_lab: Any) -> None:
    """It is told rate_limited and its wait, does not try before, and is served afterwards."""
    lab = await make_lab(2, settings={"startup": {"startup_wait_s": 1.0}})
    await restart_into_a_lock(lab)
    refused = await lab.until_event("beta", "conduit_refused", peer="alpha")
    assert refused["code"] == "rate_limited"
    link = (await lab.status("beta"))["peers"]["alpha"]
    assert (link["conduit"], "next attempt in" in link["reason"]) == ("refused", True), link
    set_limits(lab, max_auth_attempts_per_minute=100_000)
    await lab.ok("reload", "alpha")

    again = await lab.until_event("alpha", "conduit_connected", 2, peer="beta", direction="in")
    assert again["time_us"] - refused["time_us"] >= (LOCK_S - 1) * 1_000_000
    await lab.until_writable("beta")
    await lab.ok("write", "beta:/file", stdin=b"x")
    await lab.converge()


async def test_unblock_lets_a_locked_site_in_at_once(make_lab: Any) -> None:
    """With a lock of an hour it comes back as soon as the operator forgives it."""
    lab = await make_lab(2, settings={"startup": {"startup_wait_s": 1.0}})
    await restart_into_a_lock(lab, lockout_duration_secs=3600)
    await lab.until_event("beta", "conduit_refused", peer="alpha", code="rate_limited")
    set_limits(lab, max_auth_attempts_per_minute=100_000)
    await lab.ok("reload", "alpha")
    assert (await lab.status("beta"))["peers"]["alpha"]["conduit"] == "refused"
    assert "unblocked beta" in (await lab.ok("unblock", "beta", "--at", "alpha")).out.decode()
    await lab.until_event("alpha", "conduit_connected", 2, peer="beta", direction="in")
    await lab.until_writable("beta")
    await lab.ok("write", "beta:/file", stdin=b"x")
    await lab.converge()


async def restart_into_a_lock(lab: Any, **limits: int) -> None:
    """Let alpha take one connection of a site in a minute, which beta does not know, and start beta again."""
    await lab.converge()
    set_limits(lab, **{**ONCE_A_MINUTE, **limits})
    await lab.ok("reload", "alpha")
    set_limits(lab, max_auth_attempts_per_minute=100_000)
    await lab.kill("beta")
    await lab.launcher.start("beta")
