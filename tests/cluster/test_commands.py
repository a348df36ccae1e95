"""Every command as a user runs it: a process of its own, its output, its exit status, and what other sites see of it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import trio

from nodes.runtime import site_pid

pytestmark = pytest.mark.cluster


@pytest.fixture
def how_processes_start() -> None:
    """As a user starts them."""


def runs(pid: int | None) -> bool:
    """Whether a process runs. One that nobody has waited for is a zombie, and at its end."""
    try:
        return pid is not None and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids(lab: Any) -> dict[str, int | None]:
    return {site.name: site_pid(site) for site in lab.cluster.sites}


async def test_files_are_made_changed_and_removed_at_one_site_and_seen_at_the_other(make_lab: Any) -> None:
    """mkdir, write, cat, ln, chmod, mv, rm at one site; ls, stat and cat at the other show it."""
    lab = await make_lab(2)
    await lab.ok("mkdir", "-p", "alpha:/a/b/c")
    await lab.ok("mkdir", "-p", "alpha:/a/b")
    await lab.ok("write", "alpha:/a/file", stdin=b"first\x00\xff")
    written = (await lab.ok("write", "--json", "alpha:/a/file", stdin=b"content\x00\xff")).json
    assert written["size"] == 9
    await lab.ok("ln", "alpha:/a/file", "alpha:/a/hard")
    await lab.ok("ln", "-s", "../nowhere", "alpha:/a/b/symbolic")
    await lab.ok("chmod", "0640", "alpha:/a/file")
    await lab.ok("mv", "alpha:/a/b/c", "alpha:/moved")
    await lab.ok("write", os.fsencode("alpha:/") + b"not UTF-8 \xff", stdin=b"x")
    await lab.ok("verify", "--wait", "60")

    assert (await lab.ok("cat", "beta:/a/hard")).out == b"content\x00\xff"
    listed = {line["path"]: line for line in (await lab.ok("ls", "-R", "--json", "beta:/")).json_lines}
    assert listed.keys() == {"a", "a/b", "a/b/symbolic", "a/file", "a/hard", "moved", "not UTF-8 \ufffd"}
    assert listed["a/file"]["mode"] == "0640"
    assert listed["a/file"]["inode"] == listed["a/hard"]["inode"]
    assert listed["a/file"]["nlink"] == 2
    assert listed["a/b/symbolic"]["target"] == "../nowhere"
    assert listed["not UTF-8 \ufffd"]["path_b64"]
    assert "path_b64" not in listed["a"]
    lines = (await lab.ok("ls", "-l", "beta:/a")).out.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["drwxr-xr-x", "-rw-r-----", "-rw-r-----"]
    shown = (await lab.ok("stat", "--json", "beta:/a/file")).json
    assert (shown["site"], shown["path"], shown["size"]) == ("beta", "/a/file", 9)

    await lab.ok("rm", "beta:/a/file")
    removed = (await lab.ok("rm", "-r", "--json", "beta:/a/b")).json
    assert removed["removed"] == 2
    await lab.ok("verify", "--wait", "60")
    left = (await lab.ok("ls", "-R", "alpha:/")).out.decode(errors="replace").splitlines()
    assert left == ["a", "a/hard", "moved", "not UTF-8 \\xff"]
    assert (await lab.ok("stat", "--json", "alpha:/a/hard")).json["nlink"] == 1


async def test_what_cannot_be_done_is_named_with_exit_status_1_or_2(make_lab: Any, tmp_path: Path) -> None:
    """No such path, something in the way, a wrong address, site or option: the message names the thing."""
    lab = await make_lab(1)
    await lab.ok("mkdir", "alpha:/dir")
    for arguments, code, words in (
        (("cat", "alpha:/missing"), 1, "/missing"),
        (("cat", "alpha:/dir"), 1, "alpha:/dir is a dir"),
        (("rm", "alpha:/dir"), 1, "rm -r"),
        (("mkdir", "alpha:/dir"), 1, "EEXIST"),
        (("put", str(tmp_path / "missing"), "alpha:/x"), 1, "missing"),
        (("ls", "delta:/"), 2, "delta"),
        (("ls", "alpha"), 2, "SITE:/PATH"),
        (("chmod", "rw", "alpha:/dir"), 2, "octal"),
        (("fault", "kill", "delta"), 2, "delta"),
    ):
        done = await lab.cli(*arguments)
        assert done.code == code, (arguments, done.err)
        assert words in done.err
        assert "Traceback" not in done.err


async def test_put_and_get_tell_what_they_did_and_what_not(make_lab: Any, make_tree: Any, tmp_path: Path) -> None:
    """--json counts; a special file is named, the rest goes on, exit status 1; get gives back what was put."""
    lab = await make_lab(2)
    tree = make_tree(tmp_path / "tree")
    whole = (await lab.ok("put", "--json", str(tree), "alpha:/some/where")).json
    assert whole["complete"]
    os.mkfifo(tree / "pipe")
    partial = await lab.cli("put", "--json", str(tree), "alpha:/some/where")
    assert partial.code == 1
    assert partial.json["special"][0]["path"].endswith("/pipe")
    # The pipe made the root's mtime another one: that is all that there was to carry.
    assert partial.json["files"] == 0
    await lab.ok("verify", "--wait", "60")
    copy = tmp_path / "copy"
    got = (await lab.ok("get", "--json", "beta:/some/where", str(copy))).json
    assert got["complete"]
    assert (await lab.ok("get", "--json", "beta:/some/where", str(copy))).json["files"] == 0
    (tree / "pipe").unlink()
    os.utime(tree, ns=(0, copy.stat().st_mtime_ns))
    await lab.assert_same_at("beta", "/some/where", copy)


async def test_status_verify_and_logs_tell_of_the_whole_cluster(make_lab: Any) -> None:
    """One local site is asked; the JSON has what the reference lists, whether all is well or a site is down."""
    lab = await make_lab(2)
    await lab.ok("write", "alpha:/file", stdin=b"content")
    verdict = (await lab.ok("verify", "--json", "--wait", "60")).json
    assert verdict["converged"] is True
    assert verdict["sites"]["alpha"]["digest"] == verdict["sites"]["beta"]["digest"]
    for cursors in (verdict["sites"][name]["cursors"] for name in lab.names):
        for journal, seqs in cursors.items():
            site_id, _, incarnation = journal.partition(":")
            assert (int(site_id) in (1, 2), len(incarnation), len(seqs)) == (True, 16, 4)
    status = (await lab.ok("status", "--json")).json["sites"]
    for name, site in status.items():
        assert (site["name"], site["pid"], site["mode"]) == (name, lab.launcher.pid(name), "ActiveReadWrite")
        [link] = site["peers"].values()
        assert (link["conduit"], link["lag_entries"], link["lag_bytes"], link["lag_s"]) == ("connected", 0, 0, 0.0)
        assert link["reason"] is None
    assert "connected" in (await lab.ok("status")).out.decode()

    lab.launcher.pause("beta")
    await lab.ok("write", "alpha:/behind", stdin=b"x" * 100)
    behind = await lab.cli("status", "--json", "--site", "alpha")
    assert behind.code == 3
    assert "unreachable" in behind.json["sites"]["beta"]
    assert behind.json["sites"]["alpha"]["peers"]["beta"]["lag_entries"] > 0

    async def told() -> bool:
        # That a lag does not fall shows in two samples of it.
        return bool((await lab.status("alpha"))["peers"]["beta"]["reason"])

    await lab.until(told, "alpha tells why beta lags")
    assert (await lab.cli("verify", "--json", "--site", "alpha")).code == 3
    lab.launcher.resume("beta")
    await lab.ok("verify", "--wait", "60")

    events = (
        await lab.ok("logs", "--json", "--site", "beta", "--event", "site_ready", "--event", "caught_up")
    ).json_lines
    assert {event["site"] for event in events} == {"beta"}
    assert {event["event"] for event in events} == {"site_ready", "caught_up"}
    merged = [event["time_us"] for event in (await lab.ok("logs", "--json", "-n", "0")).json_lines]
    assert merged == sorted(merged)
    assert "site_started" in (await lab.ok("logs")).out.decode()


async def test_verify_does_not_wait_for_a_site_that_stands_still(make_lab: Any) -> None:
    """Also when it was asked before, on a connection that is still there: exit status 3, and it is named."""
    lab = await make_lab(2)
    await lab.ok("verify", "--wait", "60", "--site", "alpha")
    lab.launcher.pause("beta")
    done = await lab.cli("verify", "--site", "alpha", limit_s=40)
    assert done.code == 3
    assert "site beta" in done.out.decode()


async def test_a_site_is_broken_and_mended_by_commands(make_lab: Any) -> None:
    """fault kill, restart, pause and resume, rebuild of a site that is down, and down, on sites that run by themselves."""
    lab = await make_lab(2, start=False)
    await lab.ok("up", "--detach")
    first = pids(lab)
    assert all(first.values())
    await lab.until(lambda: bool(lab.events("alpha", "mode_changed")), "alpha is writable")
    await lab.ok("write", "alpha:/file", stdin=b"content")
    await lab.ok("fault", "kill", "beta")
    assert pids(lab)["beta"] is None
    killed = await lab.cli("fault", "kill", "beta")
    assert killed.code == 3
    assert "beta" in killed.err
    await lab.ok("rebuild", "beta")
    assert (await lab.cli("rebuild", "alpha")).code == 2
    await lab.ok("fault", "restart", "beta")
    assert pids(lab)["beta"] not in (None, first["beta"])
    await lab.ok("verify", "--wait", "60")
    assert (await lab.ok("cat", "beta:/file")).out == b"content"
    await lab.ok("fault", "pause", "beta")
    assert (await lab.cli("ls", "beta:/")).code == 3
    await lab.ok("fault", "resume", "beta")
    assert (await lab.ok("ls", "beta:/")).out == b"file\n"
    running = pids(lab)
    stopped = (await lab.ok("down", "--json")).json
    assert stopped == {"sites": {"alpha": "stopped", "beta": "stopped"}}
    await lab.until(lambda: not any(map(runs, running.values())), "their processes are gone")
    assert (await lab.ok("down", "--json")).json["sites"]["alpha"] == "not running"
    assert (await lab.cli("status")).code == 3


async def test_up_shows_the_logs_restarts_who_was_killed_and_leaves_no_process(make_lab: Any) -> None:
    """In the foreground: a killed site comes back with --restart, and SIGINT stops all of them, exit status 0."""
    lab = await make_lab(2, start=False)
    async with trio.open_nursery() as nursery:
        up, output = await lab.start_cli(nursery, "up", "--restart")
        await lab.until(lambda: "2 sites are ready" in output.read_text(), "both sites are ready")
        first = pids(lab)
        os.kill(first["beta"], signal.SIGKILL)
        await lab.until(lambda: pids(lab)["beta"] not in (None, first["beta"]), "beta was started again")
        await lab.until(lambda: "beta was started again" in output.read_text(), "up tells it")
        last = pids(lab)
        up.send_signal(signal.SIGINT)
    assert up.returncode == 0, output.read_text()
    shown = output.read_text()
    for words in ("site_started", "conduit_connected", "SIGKILL", "site_stopped"):
        assert words in shown
    assert "Traceback" not in shown
    assert not any(map(runs, (*first.values(), *last.values())))
    assert [lab.events(name)[-1]["event"] for name in lab.names] == ["site_stopped"] * 2


async def test_sites_end_with_the_up_that_started_them_even_if_it_is_killed(make_lab: Any) -> None:
    """SIGKILL of `up` leaves no site behind: each stops in order by itself."""
    lab = await make_lab(2, start=False)
    async with trio.open_nursery() as nursery:
        up, output = await lab.start_cli(nursery, "up")
        await lab.until(lambda: "2 sites are ready" in output.read_text(), "both sites are ready")
        up.kill()
    await lab.until(lambda: not any(pids(lab).values()), "no site runs")
    assert [lab.events(name)[-1]["event"] for name in lab.names] == ["site_stopped"] * 2


async def test_a_wrong_configuration_is_told_whole_with_exit_status_2(make_lab: Any) -> None:
    """All errors at once, each with file and key; a new cluster is made by init and is ready."""
    lab = await make_lab(1, start=False)
    wrong = lab.directory / "wrong.toml"
    wrong.write_text(lab.cluster.path.read_text().replace("shards = 4 ", "shards = 4000 ") + "\n[nonsense]\nx = 1\n")
    done = await lab.cli("status", config=wrong)
    assert done.code == 2
    assert f"{wrong}: cluster.shards" in done.err
    assert "nonsense" in done.err
    made = (await lab.ok("init", str(lab.directory / "new"), "--sites", "2", "--json")).json
    assert made["sites"] == ["alpha", "beta"]
    assert json.loads((lab.directory / "new" / "keys" / "alpha.json").read_text())["site_id"] == 1
    assert (lab.directory / "new" / "keys" / "alpha.json").stat().st_mode & 0o777 == 0o600
    down = await lab.cli("status", config=Path(made["config"]))
    assert down.code == 3
    assert "claudefs-repl up" in down.err
