from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.runtime import (
    SOCKET_PATH_BYTES_MAX,
    ShiftedClock,
    SystemClock,
    is_local_address,
    process_lives,
    site_pid,
    socket_candidates,
    socket_path,
)


def a_site(data_dir: Path, name: str = "alpha") -> SiteConfig:
    return SiteConfig(name, SiteId(1), "127.0.0.1", 1, data_dir)


def of(site: SiteConfig, cluster_id: str = "c") -> ClusterConfig:
    return ClusterConfig(Path("cluster.toml"), cluster_id, 4, Path("keys"), (site,))


def test_a_socket_s_path_is_short_however_deep_the_data_is(tmp_path: Path) -> None:
    """Socket paths have a limit that data directories do not have."""
    site = a_site(tmp_path / ("d" * 200) / ("e" * 200))
    assert len(os.fsencode(socket_path(site, of(site)))) <= SOCKET_PATH_BYTES_MAX


def test_a_long_runtime_directory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where XDG_RUNTIME_DIR leaves no room for a name, the other place is taken."""
    long = tmp_path / ("r" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    site = a_site(tmp_path)
    assert long not in socket_path(site, of(site)).parents
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    assert (tmp_path / "missing") not in socket_path(site, of(site)).parents


def test_only_the_user_enters_the_socket_s_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The directory is made with mode 0700, and one that lets others in is refused."""
    short = Path(os.path.relpath(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short if len(str(short)) < len(str(tmp_path)) else tmp_path))
    site = a_site(tmp_path)
    directory = socket_path(site, of(site)).parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    if tmp_path in directory.absolute().parents:
        directory.chmod(0o755)
        with pytest.raises(ConfigInvalid, match="mode 0700"):
            socket_path(site, of(site))


def test_sites_of_different_clusters_and_directories_do_not_meet(tmp_path: Path) -> None:
    """A socket belongs to one site of one cluster in one data directory."""
    sites = [a_site(tmp_path / "1"), a_site(tmp_path / "2"), a_site(tmp_path / "1", "beta")]
    paths = {socket_path(site, of(site, cluster)) for site in sites for cluster in ("c", "d")}
    assert len(paths) == 6


def test_a_client_finds_a_site_that_was_started_without_the_login_s_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients look where a site puts its socket with XDG_RUNTIME_DIR and without it."""
    site = a_site(tmp_path)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    without = socket_path(site, of(site))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/dev/shm")
    assert without in socket_candidates(site, of(site))
    assert socket_candidates(site, of(site))[0].parent == Path("/dev/shm/claudefs-repl")


def test_addresses_of_this_machine_are_told_from_others() -> None:
    """A loopback address is here; one of a documentation network, or no address at all, is not."""
    assert is_local_address("127.0.0.1")
    assert is_local_address("127.0.0.3")
    assert is_local_address("localhost")
    assert not is_local_address("192.0.2.1")
    assert not is_local_address("..")


def test_a_process_lives_until_it_does_not() -> None:
    """This process lives; no process has an impossible number."""
    assert process_lives(os.getpid())
    assert not process_lives(1 << 40)


def test_a_site_that_never_ran_has_no_process(tmp_path: Path) -> None:
    """Without a lock file there is no site."""
    assert site_pid(a_site(tmp_path / "none")) is None


def test_a_shifted_clock_goes_with_the_one_beneath() -> None:
    """It shows the other's time and an offset, which may change at any moment; never a time before 1970."""
    beneath = SimpleNamespace(now_us=lambda: 5_000_000)
    clock = ShiftedClock(beneath, offset_s=1.5)
    assert clock.now_us() == 6_500_000
    clock.shift(-2)
    assert clock.now_us() == 3_000_000
    beneath.now_us = lambda: 7_000_000
    assert clock.now_us() == 5_000_000
    clock.shift(-3600)
    assert clock.now_us() == 0


def test_the_clock_tells_microseconds_and_goes_on() -> None:
    """The wall clock's unit is the microsecond, between 2020 and 2100."""
    assert 1_577_836_800_000_000 < SystemClock().now_us() < 4_102_444_800_000_000
