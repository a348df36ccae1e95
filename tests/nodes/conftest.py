"""Stand-ins for site processes: a lock, a socket that answers hello, signals; none of the actors."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from claudefs_repl.topology import ClusterConfig
from nodes.config import load_cluster, write_cluster
from nodes.runtime import site_pid, socket_path

STAND_IN = """
import fcntl, os, signal, socket, struct, sys, threading
data_dir, socket_path, name, cluster_id, *behaviour = sys.argv[1:]
tied = "--tied" in behaviour
if "fail" in behaviour:
    sys.exit(print("the port is in use", file=sys.stderr) or 2)
lock = open(data_dir + "/lock", "a+")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
lock.truncate(0)
lock.write(f"{os.getpid()}\\n")
lock.flush()
if "stubborn" in behaviour:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "silent" not in behaviour:
    with open(data_dir + "/events.jsonl", "a") as events:
        events.write('{"time_us": 1, "site": "%s", "event": "site_ready"}\\n' % name)
    listener = socket.socket(socket.AF_UNIX)
    if os.path.exists(socket_path):
        os.unlink(socket_path)
    listener.bind(socket_path)
    listener.listen()
    def text(value):
        return bytes([0xd9, len(value)]) + value.encode()
    body = b"\\x93\\x00\\xc3\\x82" + text("site") + text(name) + text("cluster_id") + text(cluster_id)
    def serve():
        while True:
            client, _ = listener.accept()
            client.recv(4096)
            client.sendall(struct.pack(">I", len(body)) + body)
            client.close()
    threading.Thread(target=serve, daemon=True).start()
if tied:
    sys.stdin.read()
else:
    while True:
        signal.pause()
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterConfig]:
    """A cluster of three stand-in sites; none of them is left behind."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    settings = {"replication": {"drain_deadline_s": 0}}
    made = load_cluster(write_cluster(tmp_path / "cluster", cluster_id="test", settings=settings))
    yield made
    for site in made.sites:
        pid = site_pid(site)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        socket_path(site, made).unlink(missing_ok=True)


@pytest.fixture
def stand_in(tmp_path: Path) -> Callable[..., Callable[[ClusterConfig, str], list[str]]]:
    """A maker of commands that start stand-ins, with a behaviour for each site by name."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)

    def make(**behaviours: str) -> Callable[[ClusterConfig, str], list[str]]:
        def command(cluster: ClusterConfig, name: str) -> list[str]:
            site = cluster.site(name)
            place = [str(site.data_dir), str(socket_path(site, cluster)), name, cluster.cluster_id]
            return [sys.executable, "-S", "-E", str(script), *place, behaviours.get(name, "")]

        return command

    return make
