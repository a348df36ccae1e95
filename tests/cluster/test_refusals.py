"""What is wrong is refused by name, and nothing is half-applied."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from nodes.client import ClientError, connect_site
from nodes.launcher import SiteFailed
from nodes.runtime import site_pid

pytestmark = pytest.mark.cluster


async def refused_start(lab: Any, name: str) -> str:
    """Start a site that must not come up; what it says."""
    with pytest.raises(SiteFailed) as failure:
        await lab.launcher.start(name)
    assert site_pid(lab.cluster.site(name)) is None
    assert "Traceback" not in str(failure.value)
    return str(failure.value)


def journal_dir(lab: Any, at: str, origin: str) -> Path:
    origin_id = lab.cluster.site(origin).site_id
    [directory] = (lab.data_dir(at) / "journals").glob(f"{origin_id}-*")
    return directory


def change_config(lab: Any, old: str, new: str, name: str = "other.toml") -> Path:
    """A second configuration of the same directory, with one thing changed."""
    text = lab.cluster.path.read_text()
    assert old in text
    path = lab.directory / name
    path.write_text(text.replace(old, new))
    return path


async def test_a_port_in_use_is_named(make_lab: Any) -> None:
    """A site whose port another program has does not start, and says which port."""
    lab = await make_lab(2, start=False)
    site = lab.cluster.site("alpha")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((site.address, site.port))
        other.listen()
        said = await refused_start(lab, "alpha")
        assert f"{site.address}:{site.port}" in said
        assert "in use" in said
        detached = await lab.cli("up", "--detach")
        assert detached.code in (1, 2)
        assert f"{site.address}:{site.port}" in detached.err
        assert site_pid(lab.cluster.site("beta")) is None
    await lab.start()


async def test_a_data_directory_of_something_else_is_refused(make_lab: Any) -> None:
    """A directory of another site, cluster, shard count or format version is left as it is, and the message says which."""
    lab = await make_lab(2)
    await lab.ok("write", "alpha:/file", stdin=b"content")
    await lab.converge()
    for name in lab.names:
        await lab.launcher.stop(name)
    identity = lab.data_dir("alpha") / "site.json"
    before = identity.read_bytes()
    for key, value, words in (
        ("site_id", 2, "another site"),
        ("cluster_id", "elsewhere", "another cluster"),
        ("format", 99, "another format version"),
        ("shards", 8, "another shard count"),
    ):
        identity.write_text(json.dumps(json.loads(before) | {key: value}))
        said = await refused_start(lab, "alpha")
        assert words in said
        assert str(lab.data_dir("alpha")) in said
    identity.write_bytes(before)
    await lab.start()
    assert (await lab.ok("cat", "alpha:/file")).out == b"content"


async def test_a_second_process_on_a_data_directory_is_refused(make_lab: Any) -> None:
    """The process that came first goes on; the second says who has the directory."""
    lab = await make_lab(1)
    second = await lab.cli("node", "alpha")
    assert second.code in (1, 2)
    assert f"pid {lab.launcher.pid('alpha')}" in second.err
    assert str(lab.data_dir("alpha")) in second.err
    rebuild = await lab.cli("rebuild", "alpha")
    assert rebuild.code == 2
    await lab.ok("mkdir", "alpha:/still-there")


async def test_a_key_file_that_others_can_read_or_nobody_can_is_refused(make_lab: Any) -> None:
    """A missing, too open or senseless key file is told with its path and the remedy, exit status 2; nothing starts."""
    lab = await make_lab(2, start=False)
    key_file = lab.cluster.key_file(lab.cluster.site("alpha"))
    good = key_file.read_bytes()
    key_file.chmod(0o644)
    for arguments in (("up", "--detach"), ("up",), ("node", "alpha")):
        done = await lab.cli(*arguments)
        assert done.code == 2, done.err
        assert f"chmod 600 {key_file}" in done.err
    key_file.chmod(0o600)
    key_file.write_bytes(b"{}")
    assert str(key_file) in (await lab.cli("node", "alpha")).err
    key_file.unlink()
    missing = await lab.cli("up", "--detach")
    assert missing.code == 2
    assert str(key_file) in missing.err
    assert all(site_pid(site) is None for site in lab.cluster.sites)
    key_file.write_bytes(good)
    key_file.chmod(0o600)


@pytest.mark.parametrize(
    ("old", "new", "codes"),
    [
        ('id = "test-', 'id = "other-', {"cluster_mismatch"}),
        ("shards = 4 ", "shards = 8 ", {"shard_count_mismatch"}),
    ],
    ids=["another cluster id", "another shard count"],
)
async def test_a_peer_of_another_cluster_or_shape_is_refused_on_both_sides(
    make_lab: Any, old: str, new: str, codes: set[str]
) -> None:
    """Both sides log once which it is, tell it in status, and nothing of the other is applied."""
    lab = await make_lab(2, start=False)
    other = change_config(lab, old, new)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lab.launcher.start, "alpha")
        beta, _ = await lab.start_cli(nursery, "-c", str(other), "node", "beta", "--quiet")
        await assert_refused_both_ways(lab, codes)
        beta.terminate()


async def test_a_peer_with_another_key_is_refused_on_both_sides(make_lab: Any) -> None:
    """A wrong secret behind the right key id, and a key id that the peer does not have: both are refused on both sides."""
    lab = await make_lab(2, start=False)
    key_file = lab.cluster.key_file(lab.cluster.site("beta"))
    keys = json.loads(key_file.read_text())
    for key in keys["keys"]:
        key["secret"] = os.urandom(32).hex()
    key_file.write_text(json.dumps(keys))
    await lab.launcher.start_all()
    for name, peer in (("alpha", "beta"), ("beta", "alpha")):
        await lab.until(lambda name=name: bool(lab.events(name, "connection_refused")), f"{name} refuses its peer")

        async def told(name: str = name, peer: str = peer) -> bool:
            link = (await lab.status(name))["peers"][peer]
            return link["conduit"] != "connected" and bool(link["reason"])

        await lab.until(told, f"{name} tells why its conduit is down")
    await assert_refused_both_ways(lab, {"bad_proof"})


async def assert_refused_both_ways(lab: Any, codes: set[str]) -> None:
    for name in lab.names:
        refused = await lab.until_event(name, "conduit_refused")
        assert refused["code"] in codes
        assert refused["detail"]
        declined = await lab.until_event(name, "connection_refused")
        assert declined["code"] in codes
    await assert_nothing_arrives(lab)
    for name in lab.names:
        assert len(lab.events(name, "conduit_refused")) == 1, "a refusal that goes on is told once"


async def assert_nothing_arrives(lab: Any) -> None:
    """What alpha writes does not come to beta, in whose log there is no journal but its own."""
    await lab.until(lambda: bool(lab.events("alpha", "caught_up")), "alpha goes on alone")

    async def taken() -> bool:
        return (await lab.cli("mkdir", "-p", "alpha:/written")).code == 0

    await lab.until(taken, "alpha takes writes")
    assert [path.name.partition("-")[0] for path in (lab.data_dir("beta") / "journals").iterdir()] == ["2"]
    assert not lab.events("beta", "batch_rejected")


async def test_commands_on_a_site_that_is_down_say_what_to_do(make_lab: Any, tmp_path: Path) -> None:
    """Exit status 3, the site's name and the command that starts it, for each file command; other sites still serve."""
    lab = await make_lab(2)
    await lab.kill("beta")
    local = tmp_path / "local"
    local.write_bytes(b"x")
    for arguments in (
        ("ls", "beta:/"),
        ("put", str(local), "beta:/x"),
        ("get", "beta:/", str(tmp_path / "copy")),
    ):
        done = await lab.cli(*arguments)
        assert done.code == 3, (arguments, done.err)
        assert "site beta is down" in done.err
        assert "fault restart beta" in done.err
    assert not (tmp_path / "copy").exists()
    assert (await lab.cli("verify")).code == 3
    status = await lab.cli("status", "--json")
    assert status.code == 3
    assert "unreachable" in status.json["sites"]["beta"]
    await lab.ok("mkdir", "alpha:/goes-on")


async def test_a_site_that_is_paused_is_told_from_one_that_is_down(make_lab: Any) -> None:
    """A command on a paused site ends with exit status 3 and names the way to resume it."""
    lab = await make_lab(1)
    lab.launcher.pause("alpha")
    done = await lab.cli("ls", "alpha:/")
    assert done.code == 3
    assert "fault resume alpha" in done.err


async def test_a_site_that_waits_for_its_peers_takes_no_writes_but_serves_reads(make_lab: Any) -> None:
    """A standby refuses writes with exit status 3 and says what to watch."""
    lab = await make_lab(2, settings={"startup": {"startup_wait_s": 3600.0}})
    await lab.ok("write", "alpha:/file", stdin=b"content")
    await lab.converge()
    for name in lab.names:
        await lab.launcher.stop(name)
    await lab.launcher.start("alpha")
    done = await lab.cli("write", "alpha:/other", stdin=b"x")
    assert done.code == 3
    assert "StandbyReadOnly" in done.err
    assert "status --watch" in done.err
    assert (await lab.ok("cat", "alpha:/file")).out == b"content"
    assert (await lab.cli("stat", "alpha:/other")).code == 1


async def test_a_log_damaged_below_what_was_synced_keeps_the_site_down(
    make_lab: Any, make_files: Any, tmp_path: Path
) -> None:
    """The message names the file, the offset and the remedy; nothing on the disk is changed."""
    lab = await make_lab(2)
    await lab.put("alpha", make_files(tmp_path / "tree", 60), "/tree")
    await lab.converge()
    for name in lab.names:
        await lab.launcher.stop(name)
    for origin in ("alpha", "beta"):
        [segment] = journal_dir(lab, "alpha" if origin == "alpha" else "beta", "alpha").glob("*.seg")
        before = segment.read_bytes()
        offset = 2000
        segment.write_bytes(before[:offset] + bytes([before[offset] ^ 0xFF]) + before[offset + 1 :])
        damaged = segment.read_bytes()
        said = await refused_start(lab, origin)
        assert segment.name in said
        assert re.search(r"damaged at byte \d+", said)
        assert "Restore the file from a copy" in said
        assert segment.read_bytes() == damaged
        assert lab.events(origin)[-1]["event"] == "site_failed"
        segment.write_bytes(before)
    await lab.start()
    await lab.converge()


async def test_a_torn_tail_is_cut_and_told(make_lab: Any) -> None:
    """Bytes behind the last record, as a cut append leaves them, are removed at the next start, with an event."""
    lab = await make_lab(1)
    await lab.ok("write", "alpha:/file", stdin=b"content")
    end = (await lab.status("alpha"))["journal"]["bytes"]
    await lab.kill("alpha")
    [segment] = journal_dir(lab, "alpha", "alpha").glob("*.seg")
    used = len(segment.read_bytes().rstrip(b"\0"))
    assert used >= end
    with segment.open("r+b") as file:
        file.seek(used + 8)
        file.write(b"half a record")
    await lab.start()
    assert (await lab.until_event("alpha", "torn_tail_cut"))["torn_bytes"] > 0
    assert (await lab.ok("cat", "alpha:/file")).out == b"content"
    await lab.ok("write", "alpha:/next", stdin=b"more")


@pytest.mark.parametrize("origin", ["alpha", "beta"])
async def test_a_site_whose_journal_directory_was_removed_does_not_start(make_lab: Any, origin: str) -> None:
    """Its own journal or its copy of a peer's: the view is ahead of the log, which is told with the remedy."""
    lab = await make_lab(2)
    for name in lab.names:
        await lab.ok("write", f"{name}:/by-{name}", stdin=b"content")
    await lab.converge()
    await lab.kill("alpha")
    shutil.rmtree(journal_dir(lab, "alpha", origin))
    said = await refused_start(lab, "alpha")
    assert f"journals/{lab.cluster.site(origin).site_id}-" in said
    assert "restore" in said.lower()


async def test_a_site_restored_from_an_older_copy_takes_no_writes(make_lab: Any) -> None:
    """Its peers hold more of its journal than it does: not one write is taken from the first moment on, and all is told.

    Nor after a restart that meets nobody who could tell it again.
    """
    lab = await make_lab(settings={"startup": {"startup_wait_s": 0.5}})
    await lab.ok("write", "alpha:/old", stdin=b"in the copy")
    await lab.converge()
    await lab.launcher.stop("alpha")
    copy = lab.directory / "older"
    shutil.copytree(lab.data_dir("alpha"), copy)
    await lab.start("alpha")
    await lab.ok("write", "alpha:/new", stdin=b"not in the copy")
    await lab.converge()
    await lab.launcher.stop("alpha")
    shutil.rmtree(lab.data_dir("alpha"))
    shutil.copytree(copy, lab.data_dir("alpha"))

    await lab.launcher.start("alpha")
    refusals = set()
    with trio.move_on_after(4.0):
        while True:
            refusals.add(await try_write(lab, "alpha"))
    await lab.until_event("alpha", "peer_ahead_of_origin")
    assert refusals == {"not_writable"}, "a write was taken although a peer is ahead"
    done = await lab.cli("write", "alpha:/x", stdin=b"x")
    assert done.code == 3
    assert "holds this site's journal up to" in done.err
    assert (await lab.status("alpha"))["refusing_writes"]
    # The others are not touched by it.
    await lab.ok("write", "beta:/goes-on", stdin=b"x")
    await lab.converge("beta", "gamma")
    assert (await lab.ok("cat", "gamma:/new")).out == b"not in the copy"

    evidence = lab.data_dir("alpha") / "cursors.json"
    await lab.until(lambda: "peer_ahead" in evidence.read_text(), "alpha has noted that it must be made anew")
    for name in lab.names:
        await lab.launcher.stop(name)
    await lab.launcher.start("alpha")

    async def goes_on_alone() -> bool:
        return (await lab.status("alpha"))["mode"] == "ActiveReadWrite"

    await lab.until(goes_on_alone, "alpha goes on without its peers")
    assert await try_write(lab, "alpha") == "not_writable"


async def try_write(lab: Any, name: str) -> str | None:
    """Make a directory at once if the site lets us: what it answers, None if it takes it."""
    async with connect_site(lab.cluster, name) as client:
        op = {"op": "mkdir", "parent": 1, "name": b"taken", "mode": 0o755, "uid": 0, "gid": 0, "mtime_ns": 0}
        try:
            await client.call("submit", ops=[op | {"exist_ok": True}])
        except ClientError as error:
            return error.code
    return None


async def test_a_client_that_speaks_nonsense_is_closed_and_the_site_goes_on(make_lab: Any) -> None:
    """Bytes that are no request close that client's connection; bytes that are no handshake that of a stranger."""
    lab = await make_lab(1)
    site = lab.cluster.site("alpha")
    stream = await trio.open_tcp_stream(site.address, site.port)
    async with stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: alpha\r\n\r\n")
        with trio.fail_after(30):
            while await stream.receive_some(4096):
                pass
    assert (await lab.until_event("alpha", "connection_refused"))["source"]
    await lab.ok("mkdir", "alpha:/goes-on")
