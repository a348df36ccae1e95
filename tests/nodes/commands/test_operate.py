"""The operators' commands, against stand-ins of sites' client services."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from claudefs_repl.topology import ClusterConfig
from nodes.__main__ import cli
from nodes.commands.operate import TRANSITIONS
from nodes.config import load_cluster, write_cluster
from nodes.key_files import load_keys, make_keys, write_keys
from nodes.runtime import events_path, socket_path
from protocol.client import ClientFrames, encode_error, encode_response, parse_request

Answer = Callable[[str, dict[str, Any]], Any]
"""From a method and its arguments to the result, or an exception's three arguments as a tuple."""


class Service:
    """A site that runs: it holds the lock with this process's pid, and answers clients until it is closed."""

    def __init__(self, cluster: ClusterConfig, name: str, answer: Answer) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._answer = answer
        self._hello = {"site": name, "cluster_id": cluster.cluster_id}
        site = cluster.site(name)
        site.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (site.data_dir / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self._path = socket_path(site, cluster)
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                frames = ClientFrames()
                while data := client.recv(65536):
                    frames.feed(data)
                    while (message := frames.next()) is not None:
                        client.sendall(self._respond(parse_request(message)))

    def _respond(self, request: Any) -> bytes:
        if request.method == "hello":
            return encode_response(request.request_id, self._hello)
        self.calls.append((request.method, request.args))
        result = self._answer(request.method, request.args)
        if isinstance(result, tuple):
            code, message, status = result
            return encode_error(request.request_id, code=code, message=message, exit=status)
        return encode_response(request.request_id, result)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        self._path.unlink(missing_ok=True)
        self._lock.close()


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterConfig:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    made = load_cluster(write_cluster(tmp_path, cluster_id="test"))
    write_keys(made.keys_dir, make_keys(made.sites, random.Random(7).randbytes))
    return made


@pytest.fixture
def start(cluster: ClusterConfig) -> Iterator[Callable[..., dict[str, Service]]]:
    with ExitStack() as stack:

        def make(**answers: Answer) -> dict[str, Service]:
            services = {}
            for name, answer in answers.items():
                services[name] = Service(cluster, name, answer)
                stack.callback(services[name].close)
            return services

        yield make


def run(cluster: ClusterConfig, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["-c", str(cluster.path), *arguments], catch_exceptions=False)


def shown(result: Result) -> Any:
    return json.loads(result.stdout)


def reloads(method: str, _: dict[str, Any]) -> Any:
    assert method == "reload"
    return {"changed": ["keys", "rate_limit.max_batches_per_second: 1000 to 500"], "restart_needed": ["shards"]}


def no_change(_: str, __: dict[str, Any]) -> Any:
    return {"changed": [], "restart_needed": []}


def refuses(_: str, __: dict[str, Any]) -> Any:
    return ("bad_request", "cluster.toml: sites.beta.port: expected a whole number", 2)


def unblocks(method: str, args: dict[str, Any]) -> Any:
    assert method == "unblock"
    return {"unblocked": args.get("site") or args.get("address")}


# reload


def test_a_reload_asks_all_that_run_and_tells_what_each_changed(cluster: ClusterConfig, start: Any) -> None:
    """Each running site is asked once, and what changed and what waits for a restart is told of each."""
    services = start(alpha=reloads, gamma=no_change)
    result = run(cluster, "reload")
    assert result.exit_code == 0
    alpha, gamma = result.stdout.splitlines()
    assert alpha.startswith(
        "site alpha reloaded: keys; rate_limit.max_batches_per_second: 1000 to 500; after a restart"
    )
    assert alpha.endswith("shards")
    assert gamma == "site gamma reloaded: nothing changed"
    assert [service.calls for service in services.values()] == [[("reload", {})]] * 2


def test_a_reload_as_json(cluster: ClusterConfig, start: Any) -> None:
    """JSON has for each site the answer as it came, or an error."""
    start(alpha=no_change, beta=refuses)
    result = run(cluster, "reload", "--json")
    assert result.exit_code == 2
    assert shown(result) == {
        "sites": {
            "alpha": {"changed": [], "restart_needed": []},
            "beta": {"error": "cluster.toml: sites.beta.port: expected a whole number"},
        }
    }


def test_a_reload_of_chosen_sites_asks_only_those(cluster: ClusterConfig, start: Any) -> None:
    """Named sites alone are asked, each once; one that does not run makes the exit status 3, the others reload."""
    services = start(alpha=no_change, beta=no_change)
    result = run(cluster, "reload", "alpha", "alpha", "gamma")
    assert result.exit_code == 3
    assert "site alpha reloaded" in result.stdout
    assert "site gamma is down" in result.stderr
    assert (len(services["alpha"].calls), len(services["beta"].calls)) == (1, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["reload"],
        ["reload", "alpha"],
        ["unblock", "beta"],
        ["unblock", "192.0.2.7"],
        ["unblock", "beta", "--at", "alpha"],
        ["mode", "alpha"],
        ["mode", "alpha", "standby", "--json"],
    ],
)
def test_when_no_site_runs_the_status_is_3(cluster: ClusterConfig, arguments: list[str]) -> None:
    """Nobody could be asked; the message says how to start one."""
    result = run(cluster, *arguments)
    assert result.exit_code == 3
    assert "claudefs-repl up" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["reload", "zeta"],
        ["unblock", "zeta"],
        ["unblock", "192.0.2.256"],
        ["unblock", "beta", "--at", "zeta"],
        ["unblock", "beta", "--at", "beta"],
        ["mode", "zeta"],
        ["mode", "alpha", "ready"],
        ["mode", "alpha", "--pin"],
        ["mode", "alpha", "--pin", "--release"],
        ["mode", "alpha", "standby", "--release"],
        ["keys", "use"],
        ["keys", "use", "k9"],
        ["keys", "add", "k1"],
        ["keys", "add", "a/b"],
        ["keys", "retire", "k1"],
        ["keys", "add", "--from", "nowhere.json"],
        ["events", "--site", "zeta"],
    ],
)
def test_a_wrong_command_line_asks_nobody(cluster: ClusterConfig, start: Any, arguments: list[str]) -> None:
    """What is misspelt or does not go together ends with status 2 and a message, before any site is asked."""
    services = start(alpha=no_change, beta=no_change)
    result = run(cluster, *arguments)
    assert result.exit_code == 2
    assert result.stderr
    assert not any(service.calls for service in services.values())


# unblock


def test_a_site_is_unblocked_at_all_others_that_run(cluster: ClusterConfig, start: Any) -> None:
    """The site itself is not asked: it never locks out itself."""
    services = start(alpha=unblocks, beta=unblocks, gamma=unblocks)
    result = run(cluster, "unblock", "beta")
    assert (result.exit_code, result.stdout) == (0, "site alpha: unblocked beta\nsite gamma: unblocked beta\n")
    assert services["alpha"].calls == [("unblock", {"site": "beta"})]
    assert services["beta"].calls == []


@pytest.mark.parametrize(("text", "asked"), [("192.0.2.7", "192.0.2.7"), ("2001:DB8::0:1", "2001:db8::1")])
def test_an_address_is_unblocked_in_its_usual_form(cluster: ClusterConfig, start: Any, text: str, asked: str) -> None:
    """Whatever way an IP address is written, the site is asked for the one that sockets show; --at asks one site."""
    services = start(alpha=unblocks, beta=unblocks)
    result = run(cluster, "unblock", text, "--at", "beta", "--json")
    assert shown(result) == {"address": asked, "sites": {"beta": {"unblocked": asked}}}
    assert services["beta"].calls == [("unblock", {"address": asked})]
    assert services["alpha"].calls == []


def test_a_lone_site_cannot_be_unblocked(cluster: ClusterConfig, start: Any) -> None:
    """Where only the site itself runs nobody can be asked: exit status 3."""
    start(beta=unblocks)
    assert run(cluster, "unblock", "beta").exit_code == 3


# mode


def modes(method: str, args: dict[str, Any]) -> Any:
    assert method == "mode"
    assert not args or set(args) in ({"mode", "pin"}, {"release"})
    return {"mode": args.get("mode", "ActiveReadWrite"), "pinned": args.get("pin", False), "failover_count": 1}


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        ([], {}),
        (["active"], {"mode": "ActiveReadWrite", "pin": False}),
        (["standby", "--pin"], {"mode": "StandbyReadOnly", "pin": True}),
        (["degraded"], {"mode": "DegradedAcceptWrites", "pin": False}),
        (["OFFLINE", "--pin"], {"mode": "Offline", "pin": True}),
        (["StandbyReadOnly"], {"mode": "StandbyReadOnly", "pin": False}),
        (["activereadwrite"], {"mode": "ActiveReadWrite", "pin": False}),
        (["--release"], {"release": True}),
    ],
)
def test_a_mode_is_shown_set_pinned_and_released(
    cluster: ClusterConfig, start: Any, arguments: list[str], asked: dict[str, Any]
) -> None:
    """Short and full names mean the same; the site's answer is what is shown."""
    services = start(alpha=modes)
    result = run(cluster, "mode", "alpha", *arguments, "--json")
    assert services["alpha"].calls == [("mode", asked)]
    mode, pinned = asked.get("mode", "ActiveReadWrite"), asked.get("pin", False)
    assert shown(result) == {"site": "alpha", "mode": mode, "pinned": pinned, "failover_count": 1}
    text = run(cluster, "mode", "alpha", *arguments).stdout
    assert text.startswith(f"site alpha: {mode} ({'pinned' if pinned else 'not pinned'}")
    assert ("--release" in text) == pinned


def test_a_refused_mode_ends_with_the_sites_message(cluster: ClusterConfig, start: Any) -> None:
    """What the site says is shown, and its exit status is the command's."""
    start(alpha=lambda *_: ("not_allowed", "the disk is full", 1))
    result = run(cluster, "mode", "alpha", "active")
    assert (result.exit_code, result.stderr) == (1, "claudefs-repl: the disk is full\n")


# events


def test_events_are_transitions_and_refusals_only(cluster: ClusterConfig) -> None:
    """Of all that sites logged, changes of modes and refusals are shown, in the order of time."""
    names = ["site_ready", "mode_changed", "batch_rejected", "peer_mode_changed", "log_trimmed", "connection_refused"]
    for number, site in enumerate(cluster.sites):
        site.data_dir.mkdir(parents=True)
        lines = [
            json.dumps({"time_us": 10 * step + number, "site": site.name, "event": name, "level": "info"})
            for step, name in enumerate(names)
        ]
        events_path(site).write_text("\n".join(lines) + "\n")
    lines = run(cluster, "events", "--json").stdout.splitlines()
    assert [json.loads(line)["time_us"] for line in lines] == [10, 11, 12, 20, 21, 22, 30, 31, 32, 50, 51, 52]
    of_beta = run(cluster, "events", "--site", "beta", "-n", "2").stdout.splitlines()
    assert ["peer_mode_changed" in of_beta[0], "connection_refused" in of_beta[1], len(of_beta)] == [True, True, 2]


def test_events_know_every_kind_of_refusal() -> None:
    """Both kinds of transitions and each way to be turned away are among those shown; what is not one is not."""
    wanted = {"mode_changed", "peer_mode_changed", "conduit_refused", "connection_refused", "batch_rejected"}
    assert wanted | {"client_refused", "gap_refused", "clock_drift_refused"} <= TRANSITIONS
    assert not TRANSITIONS & {"site_ready", "disk_full", "conduit_closed", "log_trimmed"}


# keys


def test_a_rotation_from_the_command_line(cluster: ClusterConfig, start: Any) -> None:
    """Each step changes the files, lets the running sites reload, and names the next one; no secret is ever shown."""
    services = start(alpha=reloads, beta=no_change)
    texts = []
    for arguments, then in (
        (["add"], "claudefs-repl keys use k2"),
        (["use", "k2"], "claudefs-repl keys retire k1"),
        (["retire", "k1"], ""),
        (["list"], ""),
    ):
        secrets = {key["secret"] for path in cluster.keys_dir.iterdir() for key in json.loads(path.read_text())["keys"]}
        result = run(cluster, "keys", *arguments)
        assert result.exit_code == 0
        assert then in result.stdout
        secrets |= {
            key["secret"] for path in cluster.keys_dir.iterdir() for key in json.loads(path.read_text())["keys"]
        }
        assert not any(secret in result.output for secret in secrets)
        texts.append(result.stdout)
    assert all("site alpha reloaded: keys" in text and "site beta reloaded" in text for text in texts[:3])
    assert [len(service.calls) for service in services.values()] == [3, 3]
    assert texts[3].splitlines()[0] == "k2  alpha -> beta  used"
    assert len(texts[3].splitlines()) == 6
    for site in cluster.sites:
        load_keys(cluster.key_file(site), site)


def test_keys_as_json(cluster: ClusterConfig, start: Any) -> None:
    """JSON tells of each change the files, the sites that reloaded, and the next command; and of each key its state."""
    start(alpha=no_change)
    added = shown(run(cluster, "keys", "add", "spring", "--json"))
    paths = [str(cluster.key_file(site)) for site in cluster.sites]
    assert (added["key_id"], added["changed"], added["elsewhere"]) == ("spring", paths, [])
    assert added["reloaded"] == {"alpha": {"changed": [], "restart_needed": []}}
    assert added["next"].endswith("claudefs-repl keys use spring")
    listed = shown(run(cluster, "keys", "list", "--json"))
    assert (len(listed["keys"]), listed["absent"], listed["problems"]) == (12, [], [])
    assert {key["key_id"]: key["used"] for key in listed["keys"]} == {"k1": True, "spring": False}
    assert listed["keys"][0] == {
        "key_id": "k1",
        "dialer": "alpha",
        "listener": "beta",
        "used": True,
        "held_by": ["alpha", "beta"],
    }


def test_files_alone_change_with_no_reload(cluster: ClusterConfig, start: Any) -> None:
    """With --no-reload no site is asked, and it is told that they are still to be."""
    services = start(alpha=reloads)
    result = run(cluster, "keys", "add", "--no-reload")
    assert result.exit_code == 0
    assert "not reloaded yet: alpha; do it with: claudefs-repl reload" in result.stdout
    assert services["alpha"].calls == []


def test_keys_change_while_no_site_runs(cluster: ClusterConfig) -> None:
    """Without any running site the files change all the same: exit status 0."""
    result = run(cluster, "keys", "add")
    assert result.exit_code == 0
    assert "no site runs on this machine" in result.stdout


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_site_that_does_not_reload_is_told(cluster: ClusterConfig, start: Any, flags: list[str]) -> None:
    """The files have changed, one site goes on with the old ones: exit status 1, and the site's reason."""
    start(alpha=no_change, beta=refuses)
    result = run(cluster, "keys", "add", *flags)
    assert result.exit_code == 1
    assert "sites.beta.port" in result.output
    assert '"k2"' in cluster.key_file(cluster.site("beta")).read_text()


def test_a_used_id_again_changes_nothing(cluster: ClusterConfig) -> None:
    """To use what is used is no error; no file is touched."""
    assert "used already; changed in" in run(cluster, "keys", "use", "k1").stdout


def test_what_is_to_be_done_elsewhere_is_told(cluster: ClusterConfig, tmp_path: Path) -> None:
    """For a site whose file is on another machine each step names the site, its file, and the command to run there."""
    gamma = cluster.site("gamma")
    (tmp_path / "there" / "keys").mkdir(parents=True)
    shutil.copy(cluster.path, tmp_path / "there")
    there = load_cluster(tmp_path / "there" / "cluster.toml")
    shutil.move(cluster.key_file(gamma), there.key_file(gamma))
    delivery = cluster.keys_dir / "gamma.k2.json"

    added = run(cluster, "keys", "add").stdout
    assert f"site gamma ({gamma.address}): its file gamma.json is not on this machine; carry {delivery}" in added
    assert "run there: claudefs-repl keys add --from gamma.k2.json" in added
    taken = run(there, "keys", "add", "--from", str(delivery))
    assert (taken.exit_code, f"now remove {delivery}" in taken.stdout) == (0, True)
    assert run(there, "keys", "add", "k3", "--from", str(delivery)).exit_code == 2

    used = shown(run(cluster, "keys", "use", "k2", "--json"))
    assert used["elsewhere"] == [{"site": "gamma", "command": "claudefs-repl keys use k2", "file": "gamma.json"}]
    assert run(there, "keys", "use", "k2").exit_code == 0
    retired = run(cluster, "keys", "retire", "k1").stdout
    assert "gamma.json is not on this machine; run there: claudefs-repl keys retire k1" in retired
    listed = run(cluster, "keys", "list")
    assert listed.exit_code == 0
    assert "k2  gamma -> alpha  the file of gamma is not here" in listed.stdout
    assert f"the file of site gamma ({gamma.address}) is not on this machine" in listed.stdout


def test_a_list_with_a_problem_is_no(cluster: ClusterConfig) -> None:
    """Files that do not fit together make `keys list` end with 1, and say which."""
    path = cluster.key_file(cluster.site("beta"))
    before = path.read_bytes()
    run(cluster, "keys", "add")
    path.write_bytes(before)
    result = run(cluster, "keys", "list")
    assert result.exit_code == 1
    assert "beta.json: has no key k2 for connections from site alpha to site beta" in result.stderr
    assert run(cluster, "keys", "list", "--json").exit_code == 1


@pytest.mark.parametrize(
    "command",
    [["keys"], ["keys", "list"], ["keys", "add"], ["keys", "use"], ["keys", "retire"]]
    + [[name] for name in ("reload", "unblock", "mode", "events")],
)
def test_help_has_examples(cluster: ClusterConfig, command: list[str]) -> None:
    """Each command's help shows lines to copy."""
    result = run(cluster, *command, "--help")
    assert (result.exit_code, "Examples:\n    claudefs-repl " in result.stdout) == (0, True)
