"""The commands that make, start, break and stop a cluster, on real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from claudefs_repl.topology import ClusterConfig
from nodes.__main__ import cli
from nodes.commands.lab import fresh_cluster
from nodes.config import load_cluster, write_cluster
from nodes.runtime import process_lives, site_pid

QUICK: dict[str, dict[str, object]] = {
    "failover": {"check_interval_ms": 100, "recovery_threshold": 1},
    "startup": {"startup_wait_s": 0.5},
    "replication": {"reconnect_max_s": 0.2, "drain_deadline_s": 1.0},
}


def run(path: Path, *arguments: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(cli, ["-c", str(path), *arguments])


def program(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a process of its own, as those must be that start sites which outlive them."""
    return subprocess.run(
        [sys.executable, "-m", "nodes", "-c", str(path), *arguments], capture_output=True, text=True, timeout=120
    )


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or waits only for init, which may take its time, to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return not process_lives(pid)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterConfig]:
    with fresh_cluster(tmp_path_factory.mktemp("shared"), sites=2, settings=QUICK) as cluster:
        yield cluster
        run(cluster.path, "down")


@pytest.fixture
def running(shared: ClusterConfig) -> ClusterConfig:
    """Both sites run, whatever an earlier test did to them."""
    if not all(map(site_pid, shared.sites)):
        assert program(shared.path, "up", "--detach").returncode == 0
    return shared


@pytest.fixture
def stopped(running: ClusterConfig) -> ClusterConfig:
    """Both sites have run and have data, whichever test comes first, and are down."""
    run(running.path, "down")
    return running


def test_init_makes_a_cluster_that_is_ready(tmp_path: Path) -> None:
    """A new directory gets a configuration that loads and a key file for each site, readable by its owner alone."""
    result = run(tmp_path / "unused", "init", str(tmp_path / "new"), "--sites", "4", "--base-port", "9100", "--json")
    shown = json.loads(result.stdout)
    assert shown["sites"] == ["alpha", "beta", "gamma", "delta"]
    cluster = load_cluster(Path(shown["config"]))
    assert [site.port for site in cluster.sites] == [9100, 9101, 9102, 9103]
    assert [stat.S_IMODE(cluster.key_file(site).stat().st_mode) for site in cluster.sites] == [0o600] * 4


def test_init_makes_only_keys_where_a_configuration_is(tmp_path: Path) -> None:
    """A cluster.toml from a repository gets its keys and stays as it is; a second time nothing is touched."""
    assert run(tmp_path, "init", str(tmp_path)).exit_code == 0
    before = (tmp_path / "cluster.toml").read_bytes()
    for key in (tmp_path / "keys").iterdir():
        key.unlink()
    assert run(tmp_path, "init", str(tmp_path), "--sites", "7").exit_code == 0
    assert (tmp_path / "cluster.toml").read_bytes() == before
    again = run(tmp_path, "init", str(tmp_path))
    assert again.exit_code == 2
    assert "alpha.json: is there already" in again.stderr


def test_two_new_clusters_are_strangers(tmp_path: Path) -> None:
    """Each cluster has an id of its own."""
    for name in ("a", "b"):
        assert run(tmp_path, "init", str(tmp_path / name)).exit_code == 0
    ids = {load_cluster(tmp_path / name / "cluster.toml").cluster_id for name in ("a", "b")}
    assert len(ids) == 2


def test_keys_that_are_missing_stop_up_before_anything_starts(tmp_path: Path) -> None:
    """All missing key files are told at once, with the remedy: exit status 2."""
    run(tmp_path, "init", str(tmp_path))
    for key in (tmp_path / "keys").iterdir():
        key.unlink()
    result = run(tmp_path / "cluster.toml", "up")
    assert result.exit_code == 2
    assert result.stderr.count("claudefs-repl init") == 3
    assert not list((tmp_path / "data").glob("*/lock"))


def test_restart_cannot_go_with_detach(tmp_path: Path) -> None:
    """Nobody would be there to start a site again."""
    run(tmp_path, "init", str(tmp_path))
    assert run(tmp_path / "cluster.toml", "up", "--detach", "--restart").exit_code == 2


def test_up_prints_json_only_when_it_returns(tmp_path: Path) -> None:
    """Events in the foreground are no JSON document; the command for them is named."""
    run(tmp_path, "init", str(tmp_path))
    result = run(tmp_path / "cluster.toml", "up", "--json")
    assert result.exit_code == 2
    assert "claudefs-repl logs --json -f" in result.stderr


@pytest.mark.cluster
def test_starting_and_breaking_as_json(stopped: ClusterConfig) -> None:
    """Each command that starts or breaks a site prints one document with its name, process and state."""
    alpha, beta = stopped.sites
    rebuilt = json.loads(program(stopped.path, "rebuild", "alpha", "--json").stdout)
    assert (rebuilt["site"], type(rebuilt["entries"])) == ("alpha", int)

    up = json.loads(program(stopped.path, "up", "--detach", "--json").stdout)
    told = {"state": "ready", "mode": "ActiveReadWrite"}  # so a command that writes can follow at once
    ready = {site.name: told | {"pid": site_pid(site)} for site in (alpha, beta)}
    assert up == {"sites": ready, "elsewhere": {}}
    again = json.loads(program(stopped.path, "up", "--detach", "--json").stdout)
    assert [site["state"] for site in again["sites"].values()] == ["ran already", "ran already"]

    pid = site_pid(beta)
    for verb, state in (("pause", "paused"), ("resume", "resumed"), ("kill", "killed")):
        shown = json.loads(run(stopped.path, "fault", verb, "beta", "--json").stdout)
        assert shown == {"site": "beta", "pid": pid, "state": state}
    shown = json.loads(program(stopped.path, "fault", "restart", "beta", "--json").stdout)
    assert shown == {"site": "beta", "pid": site_pid(beta), "state": "ready"}


@pytest.mark.cluster
def test_up_detached_leaves_running_sites_alone(running: ClusterConfig) -> None:
    """A second `up --detach` starts nobody twice."""
    before = [site_pid(site) for site in running.sites]
    result = program(running.path, "up", "--detach")
    assert (result.returncode, result.stdout.count("runs already")) == (0, 2)
    assert [site_pid(site) for site in running.sites] == before


@pytest.mark.cluster
def test_status_tells_of_every_site_and_link(running: ClusterConfig) -> None:
    """JSON has name, id, process and mode of each site, and conduit, lag and reason of each link."""
    result = run(running.path, "status", "--json")
    assert result.exit_code == 0
    sites = json.loads(result.stdout)["sites"]
    for site in running.sites:
        shown = sites[site.name]
        assert (shown["name"], shown["site_id"], shown["pid"]) == (site.name, site.site_id, site_pid(site))
        assert "mode" in shown
        for peer in shown["peers"].values():
            assert {"conduit", "lag_entries", "lag_bytes", "lag_s", "reason"} <= set(peer)
    assert "alpha -> beta" in run(running.path, "status").stdout


@pytest.mark.cluster
def test_verify_waits_until_the_trees_are_equal(running: ClusterConfig) -> None:
    """After a write at one site `verify --wait` ends with equal digests at equal cursors: exit status 0."""
    written = subprocess.run(
        [sys.executable, "-m", "nodes", "-c", str(running.path), "put", __file__, "alpha:/copied"], timeout=60
    )
    assert written.returncode == 0
    result = run(running.path, "verify", "--wait", "60", "--json", "--site", "beta")
    assert result.exit_code == 0
    verdict = json.loads(result.stdout)
    alpha, beta = verdict["sites"]["alpha"], verdict["sites"]["beta"]
    assert verdict["converged"]
    assert (alpha["digest"], alpha["cursors"]) == (beta["digest"], beta["cursors"])
    assert any(sum(seqs) for seqs in alpha["cursors"].values())


@pytest.mark.cluster
def test_a_killed_site_is_told_and_starts_again(running: ClusterConfig) -> None:
    """After `fault kill` status and verify end with 3 and name the site; `fault restart` brings it back."""
    beta = running.site("beta")
    pid = site_pid(beta)
    killed = run(running.path, "fault", "kill", "beta")
    assert (killed.exit_code, f"pid {pid}" in killed.stdout) == (0, True)
    assert site_pid(beta) is None
    shown = run(running.path, "status", "--json")
    assert (shown.exit_code, "unreachable" in json.loads(shown.stdout)["sites"]["beta"]) == (3, True)
    assert run(running.path, "verify").exit_code == 3
    assert run(running.path, "fault", "kill", "beta").exit_code == 3
    restarted = program(running.path, "fault", "restart", "beta")
    assert restarted.returncode == 0, restarted.stderr
    assert f"pid {site_pid(beta)}" in restarted.stdout


@pytest.mark.cluster
def test_restart_of_a_running_site_is_a_new_process(running: ClusterConfig) -> None:
    """`fault restart` stops a site in order before it starts it."""
    before = site_pid(running.site("beta"))
    assert program(running.path, "fault", "restart", "beta").returncode == 0
    after = site_pid(running.site("beta"))
    assert after not in (None, before)
    assert before is not None
    assert has_ended(before)
    events = run(running.path, "logs", "--site", "beta", "--event", "site_stopped", "--json").stdout.splitlines()
    assert events


@pytest.mark.cluster
def test_a_paused_site_does_not_answer_until_it_is_resumed(running: ClusterConfig) -> None:
    """A file command says that a paused site may be paused, and how to go on; then it works again."""
    assert run(running.path, "fault", "pause", "beta").exit_code == 0
    result = run(running.path, "ls", "beta:/")
    assert result.exit_code == 3
    assert "fault resume beta" in result.stderr
    assert run(running.path, "fault", "resume", "beta").exit_code == 0
    assert run(running.path, "ls", "beta:/").exit_code == 0


@pytest.mark.cluster
def test_rebuild_needs_a_site_that_is_down(running: ClusterConfig) -> None:
    """A running site is not rebuilt; a stopped one is, and has the same tree afterwards."""
    assert run(running.path, "rebuild", "alpha").exit_code == 2
    assert run(running.path, "verify", "--wait", "60").exit_code == 0
    before = json.loads(run(running.path, "verify", "--json").stdout)["sites"]["alpha"]["digest"]
    assert run(running.path, "down").exit_code == 0
    rebuilt = program(running.path, "rebuild", "alpha")
    assert rebuilt.returncode == 0, rebuilt.stderr
    assert program(running.path, "up", "--detach").returncode == 0
    verdict = json.loads(run(running.path, "verify", "--wait", "60", "--json").stdout)
    assert (verdict["converged"], verdict["sites"]["alpha"]["digest"]) == (True, before)


@pytest.mark.cluster
def test_down_stops_all_in_order(running: ClusterConfig) -> None:
    """`down` tells what became of each site and leaves none; a second time there is nothing to stop."""
    assert json.loads(run(running.path, "down", "--json").stdout) == {"sites": {"alpha": "stopped", "beta": "stopped"}}
    assert [site_pid(site) for site in running.sites] == [None, None]
    again = run(running.path, "down", "--json")
    assert json.loads(again.stdout) == {"sites": {"alpha": "not running", "beta": "not running"}}
    assert again.exit_code == 0


@pytest.mark.cluster
def test_a_port_in_use_is_told_by_name(stopped: ClusterConfig) -> None:
    """`up --detach` says which site could not listen where, and stops the others that it started."""
    alpha, beta = stopped.sites
    with socket.create_server((beta.address, beta.port)):
        result = program(stopped.path, "up", "--detach")
    assert result.returncode not in (0, 3)
    assert f"{beta.address}:{beta.port}" in result.stderr
    assert [site_pid(alpha), site_pid(beta)] == [None, None]


@pytest.mark.cluster
def test_a_node_runs_in_the_foreground_until_a_signal(stopped: ClusterConfig) -> None:
    """`node` shows its events on stdout and ends with 0 after SIGTERM; a second one on its data is refused."""
    node = subprocess.Popen(
        [sys.executable, "-m", "nodes", "-c", str(stopped.path), "node", "alpha"], stdout=subprocess.PIPE, text=True
    )
    assert node.stdout is not None
    with node, node.stdout:
        assert any("site_ready" in line for line in node.stdout)
        assert site_pid(stopped.site("alpha")) == node.pid
        second = program(stopped.path, "node", "alpha")
        assert second.returncode != 0
        assert f"pid {node.pid}" in second.stderr
        os.kill(node.pid, signal.SIGTERM)
        assert any("site_stopped" in line for line in node.stdout)
        assert node.wait() == 0


@pytest.mark.cluster
def test_up_in_the_foreground_shows_the_logs_and_stops_all(stopped: ClusterConfig) -> None:
    """One merged log; SIGINT ends all sites and `up` with 0."""
    up = subprocess.Popen(
        [sys.executable, "-m", "nodes", "-c", str(stopped.path), "up"], stdout=subprocess.PIPE, text=True
    )
    assert up.stdout is not None
    with up, up.stdout:
        assert any("2 sites are ready" in line for line in up.stdout)
        pids = [site_pid(site) for site in stopped.sites]
        os.kill(up.pid, signal.SIGINT)
        shown = up.stdout.read()
        assert up.wait() == 0
    assert all(pid is not None and not process_lives(pid) for pid in pids)
    for name in ("alpha", "beta"):
        assert any(name in line and "site_stopped" in line for line in shown.splitlines())


@pytest.mark.parametrize("command", [["node"], ["rebuild"], ["fault", "restart"]])
def test_a_site_of_another_machine_is_neither_run_nor_rebuilt_here(tmp_path: Path, command: list[str]) -> None:
    """A directory and a journal of it are not made where it does not belong: exit status 3, with the place to go to."""
    path = write_cluster(tmp_path)
    path.write_text(path.read_text().replace("127.0.0.2", "192.0.2.77"))
    run(tmp_path, "init", str(tmp_path))
    result = run(path, *command, "beta")
    assert (result.exit_code, "ssh 192.0.2.77" in result.stderr) == (3, True)
    assert sorted(place.name for place in (tmp_path / "data").iterdir()) == ["alpha", "gamma"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(tmp_path: Path, shell: str) -> None:
    """The script names the program; it needs no configuration."""
    result = run(tmp_path / "none.toml", "completion", shell)
    assert (result.exit_code, "claudefs-repl" in result.stdout) == (0, True)


@pytest.mark.parametrize(
    "arguments", [["fault", "kill", "zeta"], ["node", "zeta"], ["rebuild", "zeta"], ["ls", "zeta:/"]]
)
def test_an_unknown_site_is_a_usage_error(tmp_path: Path, arguments: list[str]) -> None:
    """A name that the configuration lacks ends with 2 and with the names there are."""
    run(tmp_path, "init", str(tmp_path))
    result = run(tmp_path / "cluster.toml", *arguments)
    assert result.exit_code == 2
    assert "alpha, beta, gamma" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["status"], ["up"], ["down"], ["ls", "alpha:/"], ["logs"], ["fault", "kill", "a"]]
)
def test_a_wrong_configuration_is_told_by_every_command(tmp_path: Path, arguments: list[str]) -> None:
    """All errors, each with file, key and what is expected: exit status 2."""
    path = tmp_path / "cluster.toml"
    path.write_text("[cluster]\nid = 5\n[sites.alpha]\nid = 0\naddress = '127.0.0.1'\nport = 1\n")
    result = run(path, *arguments)
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        f"claudefs-repl: {path}: cluster.id: expected 1 to 64 letters, digits and . _ -, got 5",
        f"claudefs-repl: {path}: sites.alpha.id: expected a whole number from 1 to 2047, got 0",
    ]
