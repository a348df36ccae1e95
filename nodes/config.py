"""Reads `cluster.toml` and tells all of its errors at once; writes one for `claudefs-repl init`.

`SETTINGS` is the one table of tunable keys: their ranges, and the comment that a written file carries. Types and
defaults are those of the dataclasses in `claudefs_repl.topology`.
"""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, create_model

from claudefs_repl.block import BODY_BYTES_MAX
from claudefs_repl.error import ConfigInvalid
from claudefs_repl.journal import SHARDS_MAX, SITE_ID_MAX, SiteId
from claudefs_repl.topology import (
    COMPACTION_MODES,
    MIB,
    ClusterConfig,
    ConflictsConfig,
    FailoverConfig,
    JournalConfig,
    RateLimitConfig,
    ReplicationConfig,
    SiteConfig,
    StartupConfig,
)
from nodes.config_check import Table, check_table
from nodes.identity_config import read_id_tables

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}\Z"
"""A site's name is part of file names and of SITE:/path addresses."""
ADDRESS_PATTERN = r"^[A-Za-z0-9:][A-Za-z0-9.:%_-]{0,252}$"
"""IPv4, IPv6 or a host name; the resolver judges the rest."""
PATH_PATTERN = r"^[^\x00]+$"
_Word = Annotated[str, Field(pattern=PATH_PATTERN)]
_TIB = 1 << 40
_DAY_S = 86400
CLOCK_OFFSET_MAX_S = 30.0 * _DAY_S
"""Beyond any drift that a site could allow, and far from where stamps would end."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One tunable key: its range, both ends included, and what it means; of a list of words, the range of their number.

    `words` are all that a text may be.
    """

    key: str
    low: float
    high: float
    meaning: str
    words: tuple[str, ...] = ()


SECTIONS: Mapping[str, type[Any]] = {
    "journal": JournalConfig,
    "replication": ReplicationConfig,
    "failover": FailoverConfig,
    "startup": StartupConfig,
    "rate_limit": RateLimitConfig,
    "conflicts": ConflictsConfig,
}

SETTINGS: Mapping[str, tuple[Setting, ...]] = {
    "journal": (
        Setting(
            "segment_bytes", 2 * BODY_BYTES_MAX, 1024 * MIB, "a log grows by files of this size, allocated in full"
        ),
        Setting(
            "retention_max_bytes", 4 * MIB, _TIB, "the most one log keeps for a peer that lags; then it is cut off"
        ),
        Setting(
            "snapshot_every_bytes", MIB, _TIB, "new log bytes between local snapshots; only below one are logs cut"
        ),
        Setting("reserve_bytes", MIB, 1024 * MIB, "given up when the disk is full, to recover by itself"),
    ),
    "replication": (
        Setting("batch_bytes_max", 1024, BODY_BYTES_MAX, "the body of a batch"),
        Setting("window_batches", 1, 65536, "unacknowledged batches of one conduit"),
        Setting("window_bytes", 1024, 1024 * MIB, "unacknowledged bytes of one conduit"),
        Setting("applier_share", 0.01, 1, "the part of the time for applying while a received backlog grows"),
        Setting("max_clock_drift_s", 0.001, _DAY_S, "how far ahead of the wall clock a remote stamp may be"),
        Setting("reconnect_min_s", 0.001, 3600, "the first pause before dialling again; it doubles, with jitter"),
        Setting("reconnect_max_s", 0.001, 3600, "the longest such pause"),
        Setting("handshake_timeout_s", 0.1, 600, "for the whole handshake"),
        Setting("idle_timeout_s", 0.5, 3600, "a silent conduit is closed; both sides ping within a third of it"),
        Setting("drain_deadline_s", 0, 3600, "how long a stopping site goes on sending what it has"),
        Setting(
            "compaction", 0, 0, "send no payload that the same batch undoes: off, throttled or on", COMPACTION_MODES
        ),
    ),
    "failover": (
        Setting("failure_threshold", 1, 1000, "consecutive failures for a step down"),
        Setting("recovery_threshold", 1, 1000, "consecutive successes for a step up"),
        Setting("check_interval_ms", 10, 3_600_000, "between two probes of a peer"),
        Setting("active_active", 0, 1, "whether every healthy site takes writes"),
        Setting("initial_active", 0, 32, "without active_active, the site that takes writes after its start"),
    ),
    "startup": (Setting("startup_wait_s", 0, 3600, "how long a starting site waits for a first peer"),),
    "rate_limit": (
        Setting("max_auth_attempts_per_minute", 1, 1_000_000, "connection attempts of one key in any 60 s"),
        Setting("max_batches_per_second", 1, 10_000_000, "of one site"),
        Setting("max_global_bytes_per_second", 0, _TIB, "over all sites; 0 is no limit"),
        Setting("lockout_duration_secs", 0, 30 * _DAY_S, "how long a key that passed the limit is refused"),
    ),
    "conflicts": (
        Setting("keep_bytes_max", 0, _TIB, "content that lost; beyond it the oldest is given up, 0 is no limit"),
        Setting("command", 0, 64, "a program and its arguments, told of new conflicts as JSON on stdin"),
        Setting("command_timeout_s", 0.1, 3600, "how long one run of it may take"),
    ),
}


class _ClusterTable(Table):
    id: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="1 to 64 letters, digits and . _ -")
    ]
    shards: Annotated[int, Field(ge=1, le=SHARDS_MAX, description=f"a whole number from 1 to {SHARDS_MAX}")] = 4
    keys_dir: Annotated[str, Field(pattern=PATH_PATTERN, description="a directory, relative to this file")] = "keys"


class _SiteTable(Table):
    id: Annotated[int, Field(ge=1, le=SITE_ID_MAX, description=f"a whole number from 1 to {SITE_ID_MAX}")]
    address: Annotated[str, Field(pattern=ADDRESS_PATTERN, description="an IP address or a host name")]
    port: Annotated[int, Field(ge=1, le=65535, description="a whole number from 1 to 65535")]
    data_dir: Annotated[str, Field(pattern=PATH_PATTERN, description="a directory, relative to this file")] | None = (
        None
    )
    identity: Annotated[dict[str, Any], Field(default_factory=dict, description="tables [sites.NAME.identity.FROM]")]
    clock_offset_s: Annotated[
        float,
        Field(
            ge=-CLOCK_OFFSET_MAX_S,
            le=CLOCK_OFFSET_MAX_S,
            description=f"a number of seconds from -{CLOCK_OFFSET_MAX_S:.0f} to {CLOCK_OFFSET_MAX_S:.0f}",
        ),
    ] = 0.0
    disk_quota_bytes: Annotated[
        int, Field(ge=0, le=_TIB, description=f"a whole number of bytes from 0, which is no limit, to {_TIB}")
    ] = 0


def load_cluster(path: Path) -> ClusterConfig:
    """Read and check a cluster's configuration.

    Raises:
        ConfigInvalid: with one line for each problem, all of them at once.
    """
    document = _read_toml(path)
    problems: list[str] = []
    cluster = check_table(_ClusterTable, document.pop("cluster", {}), "cluster", problems)
    raw_sites = document.pop("sites", None)
    sites = _check_sites(raw_sites, path.absolute().parent, problems)
    sections = check_sections({name: document.pop(name, {}) for name in SECTIONS}, problems)
    known = ", ".join(["cluster", "sites", *SECTIONS])
    problems += [f"{name}: unknown section; there are: {known}" for name in document]
    problems += _contradictions(sections, [site.name for site in sites])
    if problems or cluster is None:
        raise ConfigInvalid([f"{path}: {problem}" for problem in problems])
    return ClusterConfig(
        path=path.absolute(),
        cluster_id=cluster["id"],
        shards=cluster["shards"],
        keys_dir=path.absolute().parent / cluster["keys_dir"],
        sites=tuple(sorted(sites, key=lambda site: site.site_id)),
        **sections,
    )


def check_sections(tables: Mapping[str, object], problems: list[str], where: str = "") -> dict[str, Any]:
    """The sections of settings as values, by name; what is wrong is appended to `problems`, each with `where` before it."""
    sections: dict[str, Any] = {}
    for name, values_type in SECTIONS.items():
        values = check_table(_section_model(name), tables.get(name, {}), f"{where}{name}", problems)
        if values is not None:
            sections[name] = values_type(
                **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
            )
    return sections


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        raise ConfigInvalid([f"{path}: there is no such file; make a cluster with: claudefs-repl init DIR"]) from None
    except OSError as error:
        raise ConfigInvalid([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid([f"{path}: not valid TOML: {error}"]) from error
    except RecursionError as error:
        raise ConfigInvalid([f"{path}: not valid TOML: nested too deep"]) from error


def _section_model(section: str) -> type[BaseModel]:
    """A model of one section: types and defaults from its dataclass, ranges from `SETTINGS`."""
    defaults = SECTIONS[section]()
    fields: dict[str, Any] = {}
    for setting in SETTINGS[section]:
        default = getattr(defaults, setting.key)
        field: Any
        if setting.words:
            field = Field(
                default, pattern=rf"^({'|'.join(setting.words)})$", description=f"one of {', '.join(setting.words)}"
            )
        elif isinstance(default, bool):
            field = Field(default, description="true or false")
        elif isinstance(default, str):
            field = Field(default, max_length=int(setting.high), description=f"a site's name ({setting.meaning})")
        elif isinstance(default, tuple):
            words = f"a list of {setting.low} to {setting.high} words ({setting.meaning})"
            field = Field(list(default), min_length=int(setting.low), max_length=int(setting.high), description=words)
        else:
            kind = "a whole number" if isinstance(default, int) else "a number"
            field = Field(
                default,
                ge=setting.low,
                le=setting.high,
                description=f"{kind} from {setting.low} to {setting.high} ({setting.meaning})",
            )
        fields[setting.key] = (list[_Word] if isinstance(default, tuple) else type(default), field)
    return create_model(section, __base__=Table, **fields)


def _check_sites(raw: object, base: Path, problems: list[str]) -> list[SiteConfig]:
    if not isinstance(raw, dict) or not raw:
        problems.append("sites: expected at least one section [sites.NAME] with id, address and port")
        return []
    sites: list[SiteConfig] = []
    identities: dict[str, Mapping[str, Any]] = {}
    for name, table in raw.items():
        if not re.match(NAME_PATTERN, name):
            problems.append(f"sites.{name}: expected a name of 1 to 32 letters, digits, _ and -, got {name!r}")
            continue
        values = check_table(_SiteTable, table, f"sites.{name}", problems)
        if values is not None:
            data_dir = base / (values["data_dir"] or f"data/{name}")
            place = SiteConfig(name, SiteId(values["id"]), values["address"], values["port"], data_dir)
            experiments = {key: values[key] for key in ("clock_offset_s", "disk_quota_bytes")}
            sites.append(dataclasses.replace(place, **experiments))
            identities[name] = values["identity"]
    _find_twins(raw, base, problems)
    ids: dict[str, SiteId | None] = {**dict.fromkeys(raw), **{site.name: site.site_id for site in sites}}
    return [
        dataclasses.replace(site, identity=read_id_tables(identities[site.name], site.name, ids, problems))
        for site in sites
    ]


def _find_twins(tables: Mapping[str, object], base: Path, problems: list[str]) -> None:
    """What must be a site's own may not be two sites'; key files of ALPHA and alpha are one on some file systems.

    Tables that have other problems are compared too, as far as they say something of the right type.
    """
    first: dict[tuple[str, object], str] = {}
    for name, table in tables.items():
        for what, value in _own_of(name, table, base):
            twin = first.setdefault((what, value), name)
            if twin != name:
                problems.append(f"sites.{name}: expected {what} of its own, got that of sites.{twin}")


def _own_of(name: str, table: object, base: Path) -> Iterator[tuple[str, object]]:
    """What has to be one site's only, in words and as a value that is equal for equal things."""
    yield "a name, in capitals or not,", name.lower()
    if not isinstance(table, dict):
        return
    site_id, address, port = table.get("id"), table.get("address"), table.get("port")
    data_dir = table.get("data_dir", f"data/{name}")
    if type(site_id) is int:  # a bool is none
        yield "an id", site_id
    if isinstance(address, str) and type(port) is int:
        yield "an address and port", (address, port)
    if isinstance(data_dir, str) and re.match(PATH_PATTERN, data_dir):
        yield "a data_dir", (base / data_dir).resolve()


def _contradictions(sections: Mapping[str, Any], sites: Sequence[str]) -> list[str]:
    """Values that are in range, but not beside each other."""
    problems = []
    failover = sections.get("failover")
    if failover is not None and failover.active_active and failover.initial_active:
        problems.append("failover.initial_active: expected only with active_active = false")
    if failover is not None and not failover.active_active and failover.initial_active not in sites:
        known = ", ".join(sites)
        problems.append(
            f"failover.initial_active: expected, with active_active = false, one of the sites ({known}), "
            f"got {failover.initial_active!r}"
        )
    journal, replication = sections.get("journal"), sections.get("replication")
    if journal is not None and journal.retention_max_bytes < 2 * journal.segment_bytes:
        problems.append("journal.retention_max_bytes: expected at least twice journal.segment_bytes")
    if replication is not None and replication.window_bytes < replication.batch_bytes_max:
        problems.append("replication.window_bytes: expected at least replication.batch_bytes_max")
    if replication is not None and replication.reconnect_max_s < replication.reconnect_min_s:
        problems.append("replication.reconnect_max_s: expected at least replication.reconnect_min_s")
    return problems


SITE_NAMES = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa")
"""Names for the first sites that `init` makes; later ones are called site-11 and so on."""
LOCAL_SITES_MAX = 200
"""Sites of a cluster on one machine: 127.0.0.1 to 127.0.0.200."""


IDENTITY_EXAMPLE = (
    "# Where sites number their users differently, one that reads may map the ids that another site wrote:",
    "# [sites.beta.identity.alpha]              # how beta shows the ids that alpha wrote; beta's own are never mapped",
    "# uids = [{ from = 1000, to = 2000, count = 10 }]  # alpha's 1000-1009 show as 2000-2009; no overlap, from nor to",
    "# gids = [{ from = 100, to = 100 }]        # count = 1",
    '# unmapped = "passthrough"                 # ids in no range: passthrough, nobody (65534) or refuse',
    '# root = "passthrough"                     # id 0 in no range, likewise',
)
"""What a new cluster.toml tells of identity tables."""


def local_sites(count: int, base_port: int) -> list[tuple[str, int, str, int]]:
    """Name, id, address and port of each site of a cluster on this machine.

    Raises:
        ConfigInvalid: the sites or their ports are too many.
    """
    if not 1 <= count <= LOCAL_SITES_MAX:
        raise ConfigInvalid([f"--sites: expected 1 to {LOCAL_SITES_MAX}, got {count}"])
    if not 1 <= base_port <= 65536 - count:
        raise ConfigInvalid([f"--base-port: expected 1 to {65536 - count} for {count} sites, got {base_port}"])
    names = [SITE_NAMES[i] if i < len(SITE_NAMES) else f"site-{i + 1}" for i in range(count)]
    return [(name, i + 1, f"127.0.0.{i + 1}", base_port + i) for i, name in enumerate(names)]


def cluster_text(
    *,
    cluster_id: str,
    sites: Sequence[tuple[str, int, str, int]],
    shards: int = 4,
    settings: Mapping[str, Mapping[str, object]] | None = None,
) -> str:
    """A commented `cluster.toml`. `settings` (section, key, value) are those that differ from the defaults.

    Settings that keep their default are written as comments, so that the file shows all there are.
    """
    lines = [
        "# A cluster of claudefs-repl: every site reads the same file.",
        "# Paths are relative to this file. What begins with # shows a default.",
        "",
        "[cluster]",
        _commented(f'id = "{cluster_id}"', "equal at all sites; a peer with another one is refused"),
        _commented(f"shards = {shards}", f"1 to {SHARDS_MAX}, fixed for the life of the cluster"),
        _commented('# keys_dir = "keys"', "SITE.json for each site, mode 0600; give each machine only its own"),
        "",
        "# One section for each site. Where sites run on machines of their own, `address` is the machine's;",
        "# on one machine each has a loopback address of its own, which tells peers apart before they prove a key.",
        "# For experiments `clock_offset_s = 3600` sets a site's clock an hour ahead of the machine's; it follows a reload.",
        "# Likewise `disk_quota_bytes = 100000000` lets a site find no room for new files beyond that, as on a full disk.",
    ]
    for name, site_id, address, port in sites:
        lines += [
            "",
            f"[sites.{name}]",
            f"id = {site_id}",
            f'address = "{address}"',
            f"port = {port}",
            f'data_dir = "data/{name}"',
        ]
    lines += ["", *IDENTITY_EXAMPLE]
    chosen = settings or {}
    for section, values_type in SECTIONS.items():
        lines += ["", f"[{section}]"]
        lines += _section_lines(section, dataclasses.asdict(values_type()), chosen.get(section, {}))
    return "\n".join(lines) + "\n"


def _section_lines(section: str, defaults: Mapping[str, Any], chosen: Mapping[str, object]) -> list[str]:
    lines = []
    for setting in SETTINGS[section]:
        value = chosen.get(setting.key, defaults[setting.key])
        text = json.dumps(value) if isinstance(value, bool | str | list | tuple) else str(value)
        mark = "" if setting.key in chosen else "# "
        lines.append(_commented(f"{mark}{setting.key} = {text}", setting.meaning))
    return lines


def _commented(line: str, comment: str) -> str:
    return f"{line:<42} # {comment}"


def write_cluster(
    directory: Path,
    sites: int = 3,
    base_port: int = 7400,
    *,
    cluster_id: str = "local",
    shards: int = 4,
    settings: Mapping[str, Mapping[str, object]] | None = None,
) -> Path:
    """Write a cluster of so many sites on this machine's loopback addresses; the path of its `cluster.toml`.

    Local clusters probe each other every second, so that what a developer breaks is soon seen.

    Raises:
        ConfigInvalid: there is one already, the numbers do not fit, or the directory cannot be written.
    """
    path = directory / "cluster.toml"
    chosen: dict[str, Mapping[str, object]] = {"failover": {"check_interval_ms": 1000}}
    for section, values in (settings or {}).items():
        chosen[section] = {**chosen.get(section, {}), **values}
    text = cluster_text(cluster_id=cluster_id, sites=local_sites(sites, base_port), shards=shards, settings=chosen)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigInvalid([f"{path}: there is one already; it is left as it is"]) from None
    except OSError as error:
        raise ConfigInvalid([f"{path}: cannot be written: {error.strerror}"]) from error
    return path
