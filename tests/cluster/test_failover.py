"""Sites that die, pause, catch up, are overloaded or held by hand, as the others' logs and their own clients see them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from nodes.commands.operate import ask_sites

pytestmark = pytest.mark.cluster

N, M = 3, 2
INTERVAL_MS = 400
DETECT_S = (2 * N + 1 + 1) * INTERVAL_MS / 1000
"""2N + 1 check intervals, and the time that a probe has, which is one more."""
SLACK_S = 3.0
"""For a busy machine to run a process that is due. What is not noticed by probes takes the idle timeout, five times that."""
PROBED: dict[str, dict[str, object]] = {
    "failover": {"failure_threshold": N, "recovery_threshold": M, "check_interval_ms": INTERVAL_MS}
}
DOWN = [("SiteDemoted", "DegradedAcceptWrites"), ("SiteDemoted", "Offline")]
UP = [("SitePromoted", "StandbyReadOnly"), ("SiteRecovered", "ActiveReadWrite")]


def opinions(lab: Any, site: str, peer: str) -> list[tuple[str, str]]:
    """The changes of one site's opinion of another, as it logged them."""
    return [(one["kind"], one["mode"]) for one in lab.events(site, "peer_mode_changed") if one["peer"] == peer]


def own_changes(lab: Any, site: str) -> list[tuple[str, str]]:
    return [(one["kind"], one["mode"]) for one in lab.events(site, "mode_changed")]


async def until_opinion(lab: Any, site: str, peer: str, changes: list[tuple[str, str]]) -> None:
    await lab.until(lambda: len(opinions(lab, site, peer)) >= len(changes), f"{site} has changed its mind of {peer}")
    assert opinions(lab, site, peer) == changes


async def assert_detected(lab: Any, watching: list[str], gone: str, since_s: float) -> None:
    """Each of some sites says within the promised time, counted from a moment of Trio's clock, that a peer is offline."""
    for name in watching:
        await until_opinion(lab, name, gone, DOWN)
    assert trio.current_time() - since_s < DETECT_S + SLACK_S


async def test_a_killed_site_goes_offline_and_comes_back_when_it_has_caught_up(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """Offline at the others in time; then read-only until it has what they have; then active; each step with its event."""
    slow: dict[str, dict[str, object]] = {
        "replication": {"batch_bytes_max": 4096},
        "rate_limit": {"max_batches_per_second": 4},
    }
    lab = await make_lab(settings={**PROBED, **slow})
    killed_s = trio.current_time()
    await lab.kill("beta")
    tree = make_files(tmp_path / "meanwhile", 60)
    await lab.put("alpha", tree, "/meanwhile")
    await assert_detected(lab, ["alpha", "gamma"], "beta", killed_s)
    assert (await lab.status("alpha"))["peers"]["beta"]["mode"] == "Offline"

    await lab.launcher.start("beta")
    refused = await lab.cli("write", "beta:/too soon", stdin=b"x")
    assert (refused.code, "StandbyReadOnly" in refused.err) == (3, True), refused.err
    assert (await lab.status("beta"))["mode"] == "StandbyReadOnly"
    await lab.ok("ls", "beta:/")
    lab.cluster.path.write_text(lab.cluster.path.read_text().replace("_per_second = 4\n", "_per_second = 4000\n"))
    await lab.ok("reload")
    await lab.until_event("beta", "mode_changed", 2, mode="ActiveReadWrite", kind="SiteRecovered")
    await lab.assert_same_at("beta", "/meanwhile", tree)
    await lab.ok("write", "beta:/in time", stdin=b"x")
    for name in ("alpha", "gamma"):
        await until_opinion(lab, name, "beta", DOWN + UP)

    names = [event["event"] for event in lab.events("beta")]
    second_life = names[len(names) - names[::-1].index("site_started") :]
    steps = ("site_ready", "caught_up", "mode_changed")
    assert [name for name in second_life if name in steps] == list(steps)
    assert lab.events("beta", "site_ready")[-1]["mode"] == "StandbyReadOnly"
    await lab.converge()


async def test_a_paused_site_is_noticed_like_a_dead_one_and_comes_back(make_lab: Any) -> None:
    """SIGSTOP leads to Offline as fast as a death; after SIGCONT the same process goes through Standby to Active."""
    lab = await make_lab(settings=PROBED)
    before = len(own_changes(lab, "beta"))
    paused_s = trio.current_time()
    lab.launcher.pause("beta")
    await lab.ok("write", "alpha:/meanwhile", stdin=b"x")
    await assert_detected(lab, ["alpha", "gamma"], "beta", paused_s)
    lab.launcher.resume("beta")
    for name in ("alpha", "gamma"):
        await until_opinion(lab, name, "beta", DOWN + UP)
    await lab.ok("write", "beta:/afterwards", stdin=b"x")
    await lab.converge()
    assert len(own_changes(lab, "beta")) == before, "it never changed its own mode"


async def test_a_site_whose_batches_queue_is_never_called_anything_but_active(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """Heavy writes at one site, far more than its conduits drain: its peers' opinion of it does not change."""
    queueing: dict[str, dict[str, object]] = {
        "replication": {"batch_bytes_max": 16384, "window_batches": 4},
        "rate_limit": {"max_batches_per_second": 10},
        # A probe has an interval to come back: long enough that a busy machine alone does not fail three in a row.
        "failover": {**PROBED["failover"], "check_interval_ms": 1000},
    }
    lab = await make_lab(settings={**PROBED, **queueing})
    trees = [make_files(tmp_path / f"tree-{i}", 200, large=1) for i in range(3)]
    most = {"beta": 0, "gamma": 0}
    async with trio.open_nursery() as watching:

        async def watch() -> None:
            while True:
                for peer, link in (await lab.status("alpha"))["peers"].items():
                    most[peer] = max(most[peer], link["lag_entries"])
                await trio.sleep(0.2)

        watching.start_soon(watch)
        async with trio.open_nursery() as writing:
            for tree in trees:
                writing.start_soon(lab.put, "alpha", tree, f"/{tree.name}")
        await trio.sleep(DETECT_S)
        watching.cancel_scope.cancel()
    assert min(most.values()) > 100, f"the batches did not queue: {most}"
    for name in ("beta", "gamma"):
        assert opinions(lab, name, "alpha") == []
        assert (await lab.status(name))["peers"]["alpha"]["mode"] == "ActiveReadWrite"


async def test_a_pinned_mode_holds_over_a_restart_until_it_is_released(make_lab: Any) -> None:
    """Health changes a pinned mode neither before nor after a restart; what to do is told; a release gives it back."""
    lab = await make_lab(2, settings=PROBED)
    pinned = (await lab.ok("mode", "alpha", "standby", "--pin", "--json")).json
    assert (pinned["mode"], pinned["pinned"]) == ("StandbyReadOnly", True)

    async def assert_held() -> None:
        refused = await lab.cli("write", "alpha:/file", stdin=b"x")
        assert refused.code == 3, refused.err
        assert "claudefs-repl mode alpha --release" in refused.err
        assert (await lab.ok("mode", "alpha", "--json")).json["mode"] == "StandbyReadOnly"

    await assert_held()
    await lab.kill("alpha")
    await lab.launcher.start("alpha")
    await lab.until_event("alpha", "caught_up", 2)
    await trio.sleep((M + 2) * INTERVAL_MS / 1000)
    await assert_held()

    async def told() -> bool:
        return bool((await lab.status("beta"))["peers"]["alpha"]["mode"] == "StandbyReadOnly")

    await lab.until(told, "beta shows what alpha says of itself")
    assert (await lab.ok("mode", "alpha", "--release", "--json")).json["pinned"] is False
    await lab.until_event("alpha", "mode_changed", 2, kind="SiteRecovered", mode="ActiveReadWrite")
    await lab.ok("write", "alpha:/file", stdin=b"x")
    await lab.kill("alpha")
    await lab.start("alpha")


async def test_a_forced_mode_is_an_event_and_a_pin_follows_it(make_lab: Any) -> None:
    """`mode` is told as forced; without a pin health takes it back; a pinned site that is forced on keeps its new mode."""
    lab = await make_lab(1, settings=PROBED)
    await lab.ok("mode", "alpha", "degraded")
    forced = await lab.until_event("alpha", "mode_changed", kind="SiteDemoted")
    assert (forced["mode"], forced["reason"]) == ("DegradedAcceptWrites", "forced")
    await lab.until_event("alpha", "mode_changed", 2, kind="SiteRecovered")
    shown = (await lab.ok("events", "--json", "--site", "alpha")).json_lines
    assert ("mode_changed", "forced") in [(event["event"], event.get("reason")) for event in shown]

    await lab.ok("mode", "alpha", "standby", "--pin")
    await lab.ok("mode", "alpha", "degraded")
    await lab.kill("alpha")
    await lab.start("alpha")
    [answer] = (await ask_sites(lab.cluster, ["alpha"], "mode")).values()
    assert (answer["mode"], answer["pinned"]) == ("DegradedAcceptWrites", True)


async def test_without_active_active_only_the_initial_site_takes_writes_by_itself(make_lab: Any) -> None:
    """The configuration names who begins; another site is made writable by hand, and says how."""
    failover = {**PROBED["failover"], "active_active": False, "initial_active": "beta"}
    lab = await make_lab(2, settings={**PROBED, "failover": failover}, start=False)
    await lab.launcher.start_all()
    await lab.until_event("beta", "mode_changed", mode="ActiveReadWrite")
    await lab.ok("write", "beta:/file", stdin=b"x")
    refused = await lab.cli("write", "alpha:/other", stdin=b"x")
    assert refused.code == 3
    assert "claudefs-repl mode alpha active --pin" in refused.err
    await lab.ok("mode", "alpha", "active", "--pin")
    await lab.ok("write", "alpha:/other", stdin=b"x")
    await lab.converge()
    await lab.kill("beta")
    await lab.launcher.start("beta")
    await lab.until_event("beta", "mode_changed", 2, mode="ActiveReadWrite")
    await lab.ok("write", "beta:/again", stdin=b"x")
