"""Trees that go in at one site come out at the others, whatever is killed meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from nodes.client import WINDOW, SiteUnreachable, connect_site
from nodes.commands.transfer_report import TransferReport

pytestmark = pytest.mark.cluster


async def test_a_tree_comes_out_at_every_site_as_it_went_in(make_lab: Any, make_tree: Any, tmp_path: Path) -> None:
    """Links, modes, times, attributes, holes, empty things and names that are not UTF-8 arrive bit for bit."""
    lab = await make_lab()
    tree = make_tree(tmp_path / "tree")
    report = await lab.put("alpha", tree, "/deep/in/tree")
    assert report.complete
    await lab.converge()
    await lab.assert_same_everywhere("/deep/in/tree", tree)


async def test_a_second_put_skips_what_is_equal_and_carries_what_changed(
    make_lab: Any, make_tree: Any, tmp_path: Path
) -> None:
    """What is there and equal is not written again; a changed content, mode or link is, and arrives everywhere."""
    lab = await make_lab(2)
    tree = make_tree(tmp_path / "tree")
    first = await lab.put("alpha", tree, "/tree")
    before = (await lab.status("alpha"))["journal"]["entries"]
    second = await lab.put("alpha", tree, "/tree")
    assert (second.files, second.dirs, second.symlinks, second.links) == (0, 0, 0, 0)
    assert second.skipped == first.objects
    assert (await lab.status("alpha"))["journal"]["entries"] == before

    (tree / "dir" / "text").write_text("another content")
    (tree / "empty file").chmod(0o640)
    (tree / "dangling").unlink()
    (tree / "dangling").symlink_to("somewhere else")
    (tree / "dir" / "new").write_bytes(b"new")
    third = await lab.put("alpha", tree, "/tree")
    assert third.complete
    assert third.files == 3
    assert third.symlinks == 1
    await lab.converge()
    await lab.assert_same_everywhere("/tree", tree)


async def test_writes_at_all_sites_at_once_converge(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """Every site takes writes at the same time, and all end with all trees."""
    lab = await make_lab()
    trees = {name: make_files(tmp_path / f"from-{name}", 60, large=1) for name in lab.names}
    async with trio.open_nursery() as nursery:
        for name, tree in trees.items():
            nursery.start_soon(lab.put, name, tree, f"/{tree.name}")
            nursery.start_soon(lab.put, name, tree, "/shared")
    await lab.converge()
    for tree in trees.values():
        await lab.assert_same_everywhere(f"/{tree.name}", tree)


async def test_sites_that_write_the_same_name_agree_on_it(make_lab: Any, tmp_path: Path) -> None:
    """Several writers of one name lose no content: the same file shows it everywhere, the others stand beside it."""
    lab = await make_lab()
    async with trio.open_nursery() as nursery:
        for name in lab.names:
            source = tmp_path / f"by-{name}"
            source.write_text(f"written at {name}")
            nursery.start_soon(lab.put, name, source, "/same")
    await lab.converge()
    copies = [tmp_path / f"copy-of-{name}" for name in lab.names]
    for name, copy in zip(lab.names, copies, strict=True):
        await lab.get(name, "/", copy)
    first = {path.name: path.read_bytes() for path in copies[0].iterdir()}
    assert first["same"] in {f"written at {name}".encode() for name in lab.names}
    assert set(first) - {"same"} == {name for name in first if name.startswith("same.conflict-")}
    for copy in copies:
        assert {path.name: path.read_bytes() for path in copy.iterdir()} == first


async def test_a_put_that_was_interrupted_is_finished_by_running_it_again(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """SIGINT ends a put at once with exit status 130; what it left unfinished goes, and a second run completes it."""
    lab = await make_lab(2)
    tree = make_files(tmp_path / "tree", 300, large=3, large_size=6 << 20)
    long = tree / "long"  # so that the put does not come to its end before a slow machine interrupts it
    long.write_bytes(b"all of it is data" * (20 << 20))
    async with trio.open_nursery() as nursery:
        put, output = await lab.start_cli(nursery, "put", str(tree), "alpha:/tree")

        def begun() -> bool:
            # Not asked of the site, whose answer may take as long as a put that keeps it busy.
            read = Path(f"/proc/{put.pid}/io").read_text().split()[1]
            return int(read) > 64 << 20

        await lab.until(begun, "the put has begun")
        put.send_signal(signal.SIGINT)
    assert put.returncode == 130, output.read_text()
    assert "Traceback" not in output.read_text()
    await lab.until(lambda: lab.nameless("alpha") == 0, "the site has reclaimed what got no name")
    long.unlink()
    again = await lab.ok("put", "--json", str(tree), "alpha:/tree")
    assert again.json["complete"]
    await lab.converge()
    await lab.assert_same_at("beta", "/tree", tree)


async def test_nameless_files_of_a_killed_client_and_site_are_reclaimed_after_the_restart(
    make_lab: Any, tmp_path: Path
) -> None:
    """A put that was cut off together with its site leaves a file without a name; the next start gives it up."""
    lab = await make_lab(2)
    large = tmp_path / "large"
    large.write_bytes(b"0123456789abcdef" * (16 << 16))
    async with trio.open_nursery() as nursery:
        put, _ = await lab.start_cli(nursery, "put", str(large), "alpha:/large")
        await lab.until(lambda: lab.nameless("alpha") > 0, "the put has begun a file")
        put.send_signal(signal.SIGSTOP)
        await lab.kill("alpha")
        put.kill()
    assert lab.nameless("alpha") > 0
    await lab.start("alpha")
    await lab.until(lambda: lab.nameless("alpha") == 0, "the site has reclaimed it")
    await lab.until_event("alpha", "reclaimed")
    await lab.converge()
    assert (await lab.ok("ls", "beta:/")).out == b""


async def test_nameless_files_of_a_client_that_hung_up_are_reclaimed(make_lab: Any) -> None:
    """Also those whose making was under way, with an answer that nobody took, when the client went."""
    lab = await make_lab(1)
    create = {"op": "create", "parent": None, "name": None, "mode": 0o644, "uid": 0, "gid": 0, "mtime_ns": 0}
    for _ in range(5):
        async with connect_site(lab.cluster, "alpha") as client:
            for _ in range(WINDOW):
                await client.send("submit", ops=[create] * 20)

    async def all_made_and_given_up() -> bool:
        status = await lab.status("alpha")
        only_we_ask = status["clients"] == 1
        return only_we_ask and status["journal"]["entries"] > 0 and lab.nameless("alpha") == 0

    await lab.until(all_made_and_given_up, "all that was made is given up", limit_s=20)


async def test_a_site_killed_during_a_put_elsewhere_catches_up(make_lab: Any, make_files: Any, tmp_path: Path) -> None:
    """A put does not mind that another site is killed; that site gets all of it after its restart."""
    lab = await make_lab()
    tree = make_files(tmp_path / "tree", 300, large=1)
    report = TransferReport()

    async def put() -> None:
        await lab.put("alpha", tree, "/tree", report=report)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        await lab.until(lambda: report.objects > 60, "the put is under way")
        await lab.kill("beta")
    assert report.complete
    await lab.start("beta")
    await lab.converge()
    await lab.assert_same_at("beta", "/tree", tree)


async def test_what_a_killed_site_confirmed_is_there_after_its_restart(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """The very site that a put goes to is killed: every file it confirmed is there, and a second put completes."""
    lab = await make_lab(2)
    tree = make_files(tmp_path / "tree", 400, large=1)
    named: set[bytes] = set()
    refused: list[str] = []

    async def put() -> None:
        try:
            await lab.put("alpha", tree, "/tree", named=named)
        except SiteUnreachable as error:
            refused.append(str(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        await lab.until(lambda: len(named) > 60, "the put is under way")
        await lab.kill("alpha")
    assert refused, "the site was killed too late"
    confirmed = set(named)
    await lab.start("alpha")
    copy = tmp_path / "copy"
    assert (await lab.get("alpha", "/tree", copy)).complete
    there = {path.name.encode(): path for path in copy.rglob("*") if path.is_file()}
    for path in tree.rglob("*"):
        if path.name.encode() in confirmed:
            assert there[path.name.encode()].read_bytes() == path.read_bytes()
    assert (await lab.put("alpha", tree, "/tree")).complete
    await lab.converge()
    await lab.assert_same_at("beta", "/tree", tree)


async def test_sites_that_are_all_killed_at_once_converge_after_their_restart(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """All sites die in the middle of writes at all of them; restarted, they agree and have what was confirmed."""
    lab = await make_lab()
    trees = {name: make_files(tmp_path / f"from-{name}", 120) for name in lab.names}
    named: dict[str, set[bytes]] = {name: set() for name in lab.names}

    async def put(name: str) -> None:
        try:
            await lab.put(name, trees[name], f"/{trees[name].name}", named=named[name])
        except SiteUnreachable:
            return

    async with trio.open_nursery() as nursery:
        for name in lab.names:
            nursery.start_soon(put, name)
        await lab.until(lambda: sum(map(len, named.values())) > 60, "the puts are under way")
        await lab.kill(*lab.names)
    confirmed = set().union(*named.values())
    await lab.start()
    await lab.converge()
    copy = tmp_path / "copy"
    await lab.get("gamma", "/", copy)
    there = {path.name.encode(): path for path in copy.rglob("*") if path.is_file()}
    assert confirmed <= there.keys()
    originals = {path.name.encode(): path for tree in trees.values() for path in tree.rglob("*") if path.is_file()}
    for name, path in there.items():
        assert path.read_bytes() == originals[name].read_bytes()
    for name, tree in trees.items():
        assert (await lab.put(name, tree, f"/{tree.name}")).complete
    await lab.converge()


async def test_a_clean_stop_and_start_keeps_every_tree_as_it_is(make_lab: Any, make_tree: Any, tmp_path: Path) -> None:
    """Stopped in order, with exit status 0, and started again, each site has the digest that it had."""
    lab = await make_lab(2)
    await lab.put("beta", make_tree(tmp_path / "tree"), "/tree")
    before = await lab.converge()
    for name in lab.names:
        assert await lab.launcher.stop(name) == 0
        assert lab.events(name)[-1]["event"] == "site_stopped"
    await lab.start()
    assert await lab.converge() == before


async def test_a_paused_site_holds_up_nobody_and_catches_up_when_it_goes_on(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """Two sites take writes and converge while the third stands still; resumed, it gets all of it."""
    lab = await make_lab()
    tree = make_files(tmp_path / "tree", 150)
    lab.launcher.pause("gamma")
    assert (await lab.put("alpha", tree, "/tree")).complete
    await lab.converge("alpha", "beta")
    lab.launcher.resume("gamma")
    await lab.converge()
    await lab.assert_same_at("gamma", "/tree", tree)


async def test_a_peer_that_was_paused_is_healthy_and_asked_again_soon(make_lab: Any) -> None:
    """With few connection attempts allowed: probing a peer that stands still does not use up what comes after it."""
    lab = await make_lab(2, settings={"rate_limit": {"max_auth_attempts_per_minute": 40}})
    await lab.converge()
    lab.launcher.pause("beta")

    async def seen_as(mode: str) -> bool:
        return bool((await lab.status("alpha"))["peers"]["beta"]["mode"] == mode)

    await lab.until(lambda: seen_as("Offline"), "alpha sees that beta is gone")
    await trio.sleep(4)  # the load: twenty probes that nobody answers, more than a dialler has in a minute
    lab.launcher.resume("beta")
    await lab.until(lambda: seen_as("ActiveReadWrite"), "alpha sees that beta is back", limit_s=15)
    await lab.ok("verify", "--wait", "10")
