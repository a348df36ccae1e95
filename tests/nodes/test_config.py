from __future__ import annotations

import json
from pathlib import Path

import pytest

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.journal import SiteId
from claudefs_repl.topology import ClusterConfig, SiteConfig
from nodes.config import SECTIONS, SETTINGS, load_cluster, local_sites, write_cluster

REPOSITORY = Path(__file__).parents[2]
GOOD = """
[cluster]
id = "test"
[sites.alpha]
id = 1
address = "127.0.0.1"
port = 7400
[sites.beta]
id = 2
address = "127.0.0.2"
port = 7400
data_dir = "elsewhere/b"
"""


def write(directory: Path, text: str) -> Path:
    path = directory / "cluster.toml"
    path.write_text(text)
    return path


def problems_of(directory: Path, text: str) -> list[str]:
    path = write(directory, text)
    with pytest.raises(ConfigInvalid) as caught:
        load_cluster(path)
    for problem in caught.value.problems:
        assert problem.startswith(f"{path}: ")
    return [problem.removeprefix(f"{path}: ") for problem in caught.value.problems]


def test_what_is_left_out_has_the_defaults_of_the_topology(tmp_path: Path) -> None:
    """A configuration that names only its sites has every default."""
    cluster = load_cluster(write(tmp_path, GOOD))
    assert cluster == ClusterConfig(
        path=tmp_path / "cluster.toml",
        cluster_id="test",
        shards=4,
        keys_dir=tmp_path / "keys",
        sites=(
            SiteConfig("alpha", SiteId(1), "127.0.0.1", 7400, tmp_path / "data/alpha"),
            SiteConfig("beta", SiteId(2), "127.0.0.2", 7400, tmp_path / "elsewhere/b"),
        ),
    )


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the program was started changes no path of the configuration."""
    write(tmp_path, GOOD)
    monkeypatch.chdir(tmp_path)
    assert load_cluster(Path("cluster.toml")).sites[0].data_dir == tmp_path / "data/alpha"


def test_every_setting_can_be_set(tmp_path: Path) -> None:
    """Each key of each section reaches the topology."""
    text = GOOD
    expected = {}
    for section, settings in SETTINGS.items():
        defaults = SECTIONS[section]()
        text += f"[{section}]\n"
        for setting in settings:
            default = getattr(defaults, setting.key)
            if setting.words:
                value = next(word for word in setting.words if word != default)
            elif isinstance(default, bool):
                value = not default
            elif isinstance(default, str):
                value = "alpha"
            elif isinstance(default, tuple):
                value = ("a word",) * int(setting.high)
            else:
                value = type(default)(setting.high)
            expected[section, setting.key] = value
            text += f"{setting.key} = {json.dumps(value)}\n"
    cluster = load_cluster(write(tmp_path, text))
    for (section, key), value in expected.items():
        assert getattr(getattr(cluster, section), key) == value


def test_the_initial_active_site_is_named_where_it_counts(tmp_path: Path) -> None:
    """With a single active site the configuration says which; where all are active there is none."""
    (problem,) = problems_of(tmp_path, f"{GOOD}[failover]\nactive_active = false\n")
    assert problem.startswith(
        "failover.initial_active: expected, with active_active = false, one of the sites (alpha, beta)"
    )
    (problem,) = problems_of(tmp_path, f'{GOOD}[failover]\ninitial_active = "alpha"\n')
    assert problem == "failover.initial_active: expected only with active_active = false"


@pytest.mark.parametrize("offset_s", ["3600", "-0.5", "0"])
def test_a_site_s_clock_can_be_set_wrong(tmp_path: Path, offset_s: str) -> None:
    """For experiments a site has a clock offset, whole or not, either way."""
    text = GOOD.replace("[sites.beta]\n", f"[sites.beta]\nclock_offset_s = {offset_s}\n")
    alpha, beta = load_cluster(write(tmp_path, text)).sites
    assert (alpha.clock_offset_s, beta.clock_offset_s) == (0.0, float(offset_s))


@pytest.mark.parametrize("quota", ["0", "100000000"])
def test_a_site_s_disk_can_be_given_a_quota(tmp_path: Path, quota: str) -> None:
    """For experiments; without one, or with 0, there is no limit."""
    text = GOOD.replace("[sites.beta]\n", f"[sites.beta]\ndisk_quota_bytes = {quota}\n")
    alpha, beta = load_cluster(write(tmp_path, text)).sites
    assert (alpha.disk_quota_bytes, beta.disk_quota_bytes) == (0, int(quota))
    (problem,) = problems_of(tmp_path, text.replace(f"quota_bytes = {quota}", "quota_bytes = -1"))
    assert problem.startswith("sites.beta.disk_quota_bytes: expected a whole number of bytes from 0")


@pytest.mark.parametrize("offset_s", ["2592001", "-1e9", "nan", "inf", "true", '"1"'])
def test_a_clock_offset_that_is_no_time_is_told(tmp_path: Path, offset_s: str) -> None:
    """An offset is a finite number of seconds within a month."""
    text = GOOD.replace("[sites.beta]\n", f"[sites.beta]\nclock_offset_s = {offset_s}\n")
    (problem,) = problems_of(tmp_path, text)
    assert problem.startswith("sites.beta.clock_offset_s: expected a number of seconds from -2592000 to 2592000, got ")


def test_the_table_of_settings_has_every_field_of_the_topology() -> None:
    """No field of the topology is out of reach of the file, and every default is within its range."""
    for section, values_type in SECTIONS.items():
        assert [setting.key for setting in SETTINGS[section]] == list(values_type.__dataclass_fields__)
        for setting in SETTINGS[section]:
            default = getattr(values_type(), setting.key)
            if setting.words:
                assert default in setting.words
            else:
                assert setting.low <= (len(default) if isinstance(default, tuple | str) else default) <= setting.high


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    """One run names every wrong key, each with what is expected."""
    problems = problems_of(
        tmp_path,
        """
        [cluster]
        id = 3
        colour = "blue"
        [sites.alpha]
        id = true
        address = "127.0.0.1"
        port = 70000
        [sites.beta]
        address = "127.0.0.2"
        port = "7400"
        [sites."a/b"]
        id = 3
        [journal]
        segment_bytes = nan
        [replication]
        applier_share = 2.0
        compaction = "on\\n"
        [conflicts]
        command = ["notify", 5]
        [weather]
        """,
    )
    keys = [problem.split(": ")[0] for problem in problems]
    assert keys == [
        "cluster.id",
        "cluster.colour",
        "sites.alpha.id",
        "sites.alpha.port",
        "sites.beta.id",
        "sites.beta.port",
        "sites.a/b",
        "journal.segment_bytes",
        "replication.applier_share",
        "replication.compaction",
        "conflicts.command",
        "weather",
    ]
    assert "unknown key" in problems[1]
    assert problems[3] == "sites.alpha.port: expected a whole number from 1 to 65535, got 70000"
    assert problems[4].startswith("sites.beta.id: missing")
    assert problems[9] == "replication.compaction: expected one of off, throttled, on, got 'on\\n'"
    assert "a list of 0 to 64 words" in problems[10]
    assert "unknown section" in problems[11]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        (("id = 2", "id = 1"), "id"),
        (('address = "127.0.0.2"', 'address = "127.0.0.1"'), "address and port"),
        (("elsewhere/b", "data/x/../alpha"), "data_dir"),
        (("[sites.beta]", "[sites.ALPHA]"), "name"),
    ],
)
def test_two_sites_cannot_share_what_is_a_sites_own(tmp_path: Path, change: tuple[str, str], key: str) -> None:
    """Ids, names, places on the network and data directories are unique."""
    (problem,) = problems_of(tmp_path, GOOD.replace(*change))
    assert key in problem
    assert "sites.alpha" in problem


def test_a_directory_that_no_system_can_have_is_told(tmp_path: Path) -> None:
    """A NUL in a path is a problem of the file, with its key, like any other."""
    keys = 'keys_dir = "k\\u0000"\n[sites.alpha]'
    problems = problems_of(tmp_path, GOOD.replace("elsewhere/b", "b\\u0000").replace("[sites.alpha]", keys))
    assert [problem.split(": ")[0] for problem in problems] == ["cluster.keys_dir", "sites.beta.data_dir"]


def test_what_two_sites_share_is_told_beside_their_other_problems(tmp_path: Path) -> None:
    """A wrong key in a site's table hides neither its id nor its port from the comparison with the others."""
    problems = problems_of(
        tmp_path, GOOD.replace("id = 2", 'id = 1\ncolour = "red"').replace("[sites.alpha]", "[sites.alpha]\nsize = 3")
    )
    assert [problem.split(": ")[0] for problem in problems] == ["sites.alpha.size", "sites.beta.colour", "sites.beta"]
    assert problems[2] == "sites.beta: expected an id of its own, got that of sites.alpha"


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("[journal]\nsegment_bytes = 16777216\nretention_max_bytes = 16777216", "journal.retention_max_bytes"),
        ("[replication]\nwindow_bytes = 4096", "replication.window_bytes"),
        ("[replication]\nreconnect_min_s = 9.0", "replication.reconnect_max_s"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(tmp_path: Path, section: str, key: str) -> None:
    """Two values, each in its range, may still not go together."""
    (problem,) = problems_of(tmp_path, GOOD + section)
    assert problem.startswith(f"{key}: ")


def test_a_syntax_error_has_its_line(tmp_path: Path) -> None:
    """Text that is not TOML is refused with the line at which it goes wrong."""
    (problem,) = problems_of(tmp_path, "[cluster]\nid = = 3\n")
    assert "line 2" in problem


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[cluster", b"", b"sites = 3", b"[sites]\n[sites.a]\n[[sites.b]]"])
def test_whatever_the_file_has_the_error_is_one_for_the_user(tmp_path: Path, content: bytes) -> None:
    """No content of the file makes anything but ConfigInvalid."""
    path = tmp_path / "cluster.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigInvalid):
        load_cluster(path)


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """Without a configuration the remedy is named."""
    with pytest.raises(ConfigInvalid, match="claudefs-repl init"):
        load_cluster(tmp_path / "none.toml")


@pytest.mark.parametrize("count", [1, 3, 12])
def test_what_init_writes_is_valid(tmp_path: Path, count: int) -> None:
    """A written cluster loads, and each site has a loopback address and a port of its own."""
    path = write_cluster(tmp_path / "new", count, 9000, settings={"startup": {"startup_wait_s": 0.5}})
    cluster = load_cluster(path)
    assert [(site.address, site.port) for site in cluster.sites] == [
        (f"127.0.0.{i + 1}", 9000 + i) for i in range(count)
    ]
    assert cluster.failover.check_interval_ms == 1000
    assert cluster.startup.startup_wait_s == 0.5
    for settings in SETTINGS.values():
        for setting in settings:
            assert setting.key in path.read_text()


def test_the_cluster_at_the_top_is_the_one_that_init_writes(tmp_path: Path) -> None:
    """`cluster.toml` of this repository is up to date with the settings and their comments."""
    written = write_cluster(tmp_path, 3, 7400, cluster_id="local")
    assert (REPOSITORY / "cluster.toml").read_text() == written.read_text()


def test_toml_that_is_nested_without_end_is_a_problem_of_the_file(tmp_path: Path) -> None:
    """The parser's own limit is told as any other mistake in the file."""
    path = tmp_path / "cluster.toml"
    path.write_text("a = " + "[" * 100_000)
    with pytest.raises(ConfigInvalid, match="nested too deep"):
        load_cluster(path)


def test_a_cluster_is_never_overwritten(tmp_path: Path) -> None:
    """Where a configuration is, none is written."""
    path = write_cluster(tmp_path)
    before = path.read_text()
    with pytest.raises(ConfigInvalid, match="already"):
        write_cluster(tmp_path, 5)
    assert path.read_text() == before


@pytest.mark.parametrize(("count", "base_port"), [(0, 7400), (201, 7400), (3, 0), (3, 65534)])
def test_a_local_cluster_fits_its_addresses_and_ports(count: int, base_port: int) -> None:
    """Too many sites, or ports beyond the last one, are refused."""
    with pytest.raises(ConfigInvalid):
        local_sites(count, base_port)
