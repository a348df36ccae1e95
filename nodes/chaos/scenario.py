"""Scenario files: a cluster, a workload, a timeline of faults and what must hold at the end; all errors told at once.

A file is TOML. `title` is needed, everything else has a default:

| table           | what it says                                                                                  |
|-----------------|-----------------------------------------------------------------------------------------------|
| top             | `title`, `about`, `tags` (`short`: run by `make chaos`)                                       |
| `[cluster]`     | `sites`, `shards`, `settings` (sections of cluster.toml), `clock_offset_s`, `disk_mib`        |
| `[workload]`    | `duration_s`, `seed`, `clients`, `clients_at`, `ops_per_s`, `mix`, `shared`, `shared_names`,  |
|                 | `write_bytes_max`                                                                             |
| `[[timeline]]`  | `at_s`, `fault`, `for_s`, `repeat` and `every_s`, where (`site`, `sites`, `link` or `groups`),|
|                 | and the fault's own values: `claudefs-repl chaos --faults`                                    |
| `[expect]`      | `converged_within_s`, `acknowledged_min`, `conflicts`, `events`, `exercised`,                 |
|                 | `offline_within_s`                                                                            |

Sites are named as `init` names them: alpha, beta, gamma, ... A link is one direction of the network, `alpha -> beta`, or
both, `alpha <-> beta`; `*` is every other site. A fault without `for_s` lasts until the clients have stopped.
"""

from __future__ import annotations

import dataclasses
import random
import re
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from claudefs_repl.error import ConfigInvalid
from claudefs_repl.promises import CHECKERS
from nodes.chaos.fault_kinds import KINDS, OF_EVERY_KIND, SCENARIO_S_MAX, Needs, Target
from nodes.chaos.mesh import Link
from nodes.chaos.operation_mix import OPERATIONS
from nodes.config import SECTIONS, SITE_NAMES, check_sections
from nodes.config_check import Table, check_table
from nodes.events import EVENTS
from nodes.store.conflicts import ConflictKind

SITES_MAX = 8
"""Processes of one machine that still get their share of two cores."""
FAULTS_MAX = 10_000
LINK_PATTERN = re.compile(r"^\s*([A-Za-z0-9_*-]+?)\s*(->|<->)\s*([A-Za-z0-9_*-]+)\s*$")
QUICK: Mapping[str, Mapping[str, object]] = {
    "failover": {"check_interval_ms": 200, "recovery_threshold": 1},
    "startup": {"startup_wait_s": 3.0},
    "replication": {"reconnect_max_s": 0.5, "drain_deadline_s": 2.0, "handshake_timeout_s": 2.0, "idle_timeout_s": 3.0},
    "rate_limit": {"max_auth_attempts_per_minute": 100_000},
    "journal": {"segment_bytes": 8 << 20, "reserve_bytes": 1 << 20},
}
"""What a scenario's cluster has unless it says otherwise: it is soon ready, and soon notices."""


class _ClusterTable(Table):
    sites: Annotated[int, Field(ge=2, le=SITES_MAX, description=f"a whole number from 2 to {SITES_MAX}")] = 3
    shards: Annotated[int, Field(ge=1, le=256, description="a whole number from 1 to 256")] = 4
    settings: Annotated[dict[str, Any], Field(default_factory=dict, description="sections and keys of cluster.toml")]
    clock_offset_s: Annotated[
        dict[str, float], Field(default_factory=dict, description="seconds that a site's clock is ahead, by site")
    ]
    disk_mib: Annotated[
        int, Field(ge=48, le=4096, description="MiB of a disk that is filled or loses power, 48 to 4096")
    ] = 160


class _WorkloadTable(Table):
    duration_s: Annotated[float, Field(ge=1, le=SCENARIO_S_MAX, description="seconds, at least 1")] = 10.0
    seed: Annotated[int, Field(ge=0, le=1 << 62, description="a whole number")] = 1
    clients: Annotated[int, Field(ge=0, le=32, description="clients at each site, 0 to 32")] = 2
    clients_at: Annotated[dict[str, int], Field(default_factory=dict, description="another number of them, by site")]
    ops_per_s: Annotated[
        float,
        Field(gt=0, le=10_000, description="operations a second of each client, above 0; less if answers are late"),
    ] = 20.0
    write_bytes_max: Annotated[int, Field(ge=64, le=65_536, description="bytes of one write, 64 to 65536")] = 4096
    shared_names: Annotated[
        int, Field(ge=1, le=10_000, description="names that the clients of all sites use, 1 to 10000")
    ] = 12
    shared: Annotated[
        float, Field(ge=0, le=1, description="the part of the operations that is on shared names, 0 to 1")
    ] = 0.3
    mix: Annotated[dict[str, float], Field(default_factory=dict, description=f"weights of {', '.join(OPERATIONS)}")]


class _ExpectTable(Table):
    converged_within_s: Annotated[float, Field(gt=0, le=3600, description="seconds after the last fault is over")] = (
        30.0
    )
    acknowledged_min: Annotated[int, Field(ge=0, description="writes that were acknowledged, at least")] = 1
    conflicts: Annotated[
        list[str], Field(default_factory=list, description="kinds of conflicts, each of which must come about")
    ]
    events: Annotated[list[str], Field(default_factory=list, description="names of events that some site must log")]
    exercised: Annotated[
        list[str],
        Field(default_factory=list, description=f"promises that must have been checked, of {', '.join(CHECKERS)}"),
    ]
    offline_within_s: Annotated[
        float | None, Field(gt=0, le=3600, description="seconds until the others call a site Offline that is gone")
    ] = None


class _ScenarioTable(Table):
    title: Annotated[str, Field(min_length=1, max_length=120, description="what it shows, in one line")]
    about: Annotated[str, Field(max_length=2000, description="a few sentences")] = ""
    tags: Annotated[list[str], Field(default_factory=list, description="'short' for make chaos, or 'long'")]
    cluster: Annotated[dict[str, Any], Field(default_factory=dict, description="a table [cluster]")]
    workload: Annotated[dict[str, Any], Field(default_factory=dict, description="a table [workload]")]
    expect: Annotated[dict[str, Any], Field(default_factory=dict, description="a table [expect]")]
    timeline: Annotated[
        list[dict[str, Any]], Field(default_factory=list, max_length=FAULTS_MAX, description="tables [[timeline]]")
    ]


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """The cluster of a scenario.

    Attributes:
        settings: sections of `cluster.toml`, the quick defaults among them.
        clock_offset_s: by site, of those whose clock is wrong from the start.
        disk_bytes: of each disk that a fault needs.
    """

    sites: tuple[str, ...]
    shards: int
    settings: Mapping[str, Mapping[str, object]]
    clock_offset_s: Mapping[str, float]
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class WorkloadPlan:
    """What the clients do. `clients` are by site; `mix` has a weight for every operation."""

    duration_s: float
    seed: int
    clients: Mapping[str, int]
    ops_per_s: float
    write_bytes_max: int
    shared_names: int
    shared: float
    mix: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of the timeline, with the seed's choices made.

    Attributes:
        number: its place in the timeline, from 1.
        sites: those it is done to; of a fault of the network, the site whose links are meant, if one is.
        links: the directions that it is done to.
        for_s: until it is undone; None if it is over at once or lasts to the end.
        options: the values of its own kind.
    """

    number: int
    at_s: float
    kind: str
    sites: tuple[str, ...]
    links: tuple[Link, ...]
    for_s: float | None
    options: Mapping[str, Any]

    @property
    def where(self) -> str:
        """What it is done to, for people."""
        if KINDS[self.kind].target is Target.CLUSTER:
            return "all sites"
        if KINDS[self.kind].target is Target.SITES:
            return ", ".join(self.sites)
        return links_text(self.links)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must be so at the end, besides the promises."""

    converged_within_s: float
    acknowledged_min: int
    conflicts: tuple[str, ...]
    events: tuple[str, ...]
    exercised: tuple[str, ...]
    offline_within_s: float | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A whole scenario.

    Attributes:
        name: of its file, without `.toml`.
        text: the file as it was read, for a copy beside the verdict.
        command: what runs it again, where it is more than its name and seed.
    """

    name: str
    title: str
    about: str
    tags: tuple[str, ...]
    cluster: ClusterPlan
    workload: WorkloadPlan
    expect: Expectation
    timeline: tuple[Fault, ...]
    text: str
    command: str = ""

    @property
    def needs(self) -> list[Needs]:
        """What the machine has to permit."""
        return sorted(
            {KINDS[fault.kind].needs for fault in self.timeline} - {Needs.NOTHING}, key=lambda need: need.name
        )

    def sites_needing(self, need: Needs) -> set[str]:
        """The sites with a fault that needs something."""
        return {site for fault in self.timeline if KINDS[fault.kind].needs is need for site in fault.sites}

    @property
    def end_s(self) -> float:
        """When the workload and every fault that ends by itself are over, seconds after the beginning."""
        return max([self.workload.duration_s, *(fault.at_s + (fault.for_s or 0.0) for fault in self.timeline)])


def links_text(links: Sequence[Link]) -> str:
    """Directions for people; both of a pair as one."""
    told = []
    for one, other in links:
        if (other, one) not in links:
            told.append(f"{one} -> {other}")
        elif one < other:
            told.append(f"{one} <-> {other}")
    return ", ".join(told)


def shipped_scenarios() -> dict[str, str]:
    """The text of each scenario that comes with the program, by name."""
    directory = resources.files("nodes.chaos").joinpath("scenarios")
    found = {entry.name: entry.read_text(encoding="utf-8") for entry in directory.iterdir()}
    return {name.removesuffix(".toml"): found[name] for name in sorted(found) if name.endswith(".toml")}


def find_scenario(name: str, *, seed: int | None = None) -> Scenario:
    """A scenario by its name if it comes with the program, else from its file; its clients may get another seed.

    Raises:
        ConfigInvalid: there is none, or it cannot be used; with one line for each problem.
    """
    shipped = shipped_scenarios()
    if name in shipped:
        return parse_scenario(name, shipped[name], f"scenario {name}", seed=seed)
    path = Path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = ", ".join(shipped)
        raise ConfigInvalid(
            [f"{name}: neither a file nor a scenario; there are: {known}; see: claudefs-repl chaos --list"]
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid([f"{name}: cannot be read: {error}"]) from error
    scenario = parse_scenario(path.stem, text, name, seed=seed)
    command = shlex.join(["claudefs-repl", "chaos", name, "--seed", str(scenario.workload.seed)])
    return dataclasses.replace(scenario, command=command)


def parse_scenario(name: str, text: str, where: str, *, seed: int | None = None) -> Scenario:
    """Read and check a scenario's text.

    Raises:
        ConfigInvalid: with one line for each problem, all of them at once, each beginning with `where`.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid([f"{where}: not valid TOML: {error}"]) from error
    problems: list[str] = []
    whole = check_table(_ScenarioTable, document, "scenario", problems)
    problems = [problem.removeprefix("scenario.") for problem in problems]
    if whole is None:
        raise ConfigInvalid([f"{where}: {problem}" for problem in problems])
    cluster = _check_cluster(whole["cluster"], problems)
    sites = SITE_NAMES[:3] if cluster is None else cluster.sites
    workload = _check_workload({**whole["workload"], **({} if seed is None else {"seed": seed})}, sites, problems)
    expect = _check_expect(whole["expect"], problems)
    rng = random.Random(f"timeline {0 if workload is None else workload.seed}")  # noqa: S311 - a plan, not a secret
    timeline: list[Fault] = []
    for number, table in enumerate(whole["timeline"], 1):
        timeline += _check_fault(table, f"timeline entry {number}", sites, rng, problems)
    if len(timeline) > FAULTS_MAX:
        problems.append(f"timeline: expected at most {FAULTS_MAX} faults with their repetitions, got {len(timeline)}")
    if problems or cluster is None or workload is None or expect is None:
        raise ConfigInvalid([f"{where}: {problem}" for problem in problems])
    ordered = sorted(timeline, key=lambda fault: fault.at_s)
    return Scenario(
        name=name,
        title=whole["title"],
        about=" ".join(whole["about"].split()),
        tags=tuple(whole["tags"]),
        cluster=cluster,
        workload=workload,
        expect=expect,
        timeline=tuple(dataclasses.replace(fault, number=i) for i, fault in enumerate(ordered, 1)),
        text=text,
    )


def _check_cluster(table: dict[str, Any], problems: list[str]) -> ClusterPlan | None:
    values = check_table(_ClusterTable, table, "cluster", problems)
    if values is None:
        return None
    given = values["settings"]
    problems += [
        f"cluster.settings.{name}: unknown section; there are: {', '.join(SECTIONS)}"
        for name in given
        if name not in SECTIONS
    ]
    settings: dict[str, dict[str, object]] = {section: dict(quick) for section, quick in QUICK.items()}
    for section, chosen in given.items():
        if isinstance(chosen, dict):
            settings.setdefault(section, {}).update(chosen)
        else:
            problems.append(f"cluster.settings.{section}: expected a table, got {chosen!r}")
    check_sections(settings, problems, "cluster.settings.")
    sites = SITE_NAMES[: values["sites"]]
    _check_names(values["clock_offset_s"], sites, "cluster.clock_offset_s", problems)
    return ClusterPlan(sites, values["shards"], settings, values["clock_offset_s"], values["disk_mib"] << 20)


def _check_workload(table: dict[str, Any], sites: Sequence[str], problems: list[str]) -> WorkloadPlan | None:
    values = check_table(_WorkloadTable, table, "workload", problems)
    if values is None:
        return None
    at = values.pop("clients_at")
    _check_names(at, sites, "workload.clients_at", problems)
    mix = values["mix"]
    for operation, weight in mix.items():
        if operation not in OPERATIONS:
            problems.append(f"workload.mix.{operation}: unknown operation; there are: {', '.join(OPERATIONS)}")
        elif weight < 0:
            problems.append(f"workload.mix.{operation}: expected a weight of at least 0, got {weight:g}")
    # What a mix does not name is not done; without a mix, everything is.
    weights = {operation: float(mix.get(operation, 0.0)) for operation in OPERATIONS} if mix else dict(OPERATIONS)
    if not any(weights.values()):
        problems.append("workload.mix: expected at least one operation with a weight above 0")
    clients = values["clients"]
    return WorkloadPlan(**{**values, "mix": weights, "clients": {site: at.get(site, clients) for site in sites}})


def _check_expect(table: dict[str, Any], problems: list[str]) -> Expectation | None:
    values = check_table(_ExpectTable, table, "expect", problems)
    if values is None:
        return None
    kinds = [kind.name.lower() for kind in ConflictKind]
    known: dict[str, Sequence[str]] = {"conflicts": kinds, "events": tuple(EVENTS), "exercised": tuple(CHECKERS)}
    for key, names in known.items():
        problems += [
            f"expect.{key}: {name!r} is none; there are: {', '.join(names)}"
            for name in values[key]
            if name not in names
        ]
    chosen: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Expectation(**chosen)


def _check_names(given: Mapping[str, Any], sites: Sequence[str], where: str, problems: list[str]) -> None:
    problems += [f"{where}.{name}: no such site; there are: {', '.join(sites)}" for name in given if name not in sites]


def _check_fault(
    table: dict[str, Any], where: str, sites: Sequence[str], rng: random.Random, problems: list[str]
) -> Iterator[Fault]:
    """One entry of the timeline, as often as it is repeated."""
    name = table.get("fault")
    if not isinstance(name, str) or name not in KINDS:
        problems.append(f"{where}: fault: expected one of {', '.join(KINDS)}, got {name!r}")
        return
    where = f"{where} ({name})"
    kind = KINDS[name]
    values = check_table(kind.table, table, where, problems)
    if values is None:
        return
    if not kind.lasts and values["for_s"] is not None:
        problems.append(f"{where}: for_s: expected none, for {name} is over at once")
    if (values["repeat"] > 1) != (values["every_s"] is not None):
        problems.append(f"{where}: expected repeat and every_s together, or neither")
        return
    options = {key: value for key, value in values.items() if key not in OF_EVERY_KIND}
    for i in range(values["repeat"]):
        found: list[str] = []
        where_to = _targets(values, kind.target, sites, rng, found)
        if found:
            problems += [f"{where}: {problem}" for problem in found]
            return
        at_s = values["at_s"] + i * (values["every_s"] or 0.0)
        yield Fault(0, round(at_s, 6), name, *where_to, values["for_s"], options)


def _targets(
    values: Mapping[str, Any], target: Target, sites: Sequence[str], rng: random.Random, problems: list[str]
) -> tuple[tuple[str, ...], tuple[Link, ...]]:
    """The sites and the links that a fault is done to."""
    if target is Target.CLUSTER:
        return (), ()
    given = [key for key in ("site", "sites", "link", "groups") if values.get(key) is not None]
    if len(given) != 1:
        wanted = (
            "site or sites" if target is Target.SITES else "site, link" + (" or groups" if "groups" in values else "")
        )
        problems.append(f"expected one of {wanted}, got {' and '.join(given) or 'none'}")
        return (), ()
    if given == ["link"]:
        return (), _parse_link(values["link"], sites, problems)
    if given == ["groups"]:
        return (), _between_groups(values["groups"], sites, problems)
    named = [values["site"]] if given == ["site"] else values["sites"]
    chosen = tuple(rng.choice(sites) if name == "any" else name for name in named)
    for name in chosen:
        if name not in sites:
            problems.append(f"{given[0]}: no site is named {name!r}; there are: {', '.join(sites)}, and 'any'")
    if target is Target.SITES:
        return chosen, ()
    return chosen, tuple((a, b) for a in sites for b in sites if a != b and (a in chosen or b in chosen))


def _parse_link(text: str, sites: Sequence[str], problems: list[str]) -> tuple[Link, ...]:
    found = LINK_PATTERN.match(text)
    if found is None:
        problems.append(f"link: expected 'alpha -> beta' or 'alpha <-> beta', got {text!r}")
        return ()
    one, arrow, other = found.groups()
    for name in (one, other):
        if name not in (*sites, "*"):
            problems.append(f"link: no site is named {name!r}; there are: {', '.join(sites)}, and *")
    ones, others = sites if one == "*" else (one,), sites if other == "*" else (other,)
    links = {(a, b) for a in ones for b in others if a != b}
    if arrow == "<->":
        links |= {(b, a) for a, b in links}
    if not links and not problems:
        problems.append(f"link: expected two sites, got {text!r}")
    return tuple(sorted(links))


def _between_groups(groups: Sequence[Sequence[str]], sites: Sequence[str], problems: list[str]) -> tuple[Link, ...]:
    named = [name for group in groups for name in group]
    problems += [
        f"groups: no site is named {name!r}; there are: {', '.join(sites)}" for name in named if name not in sites
    ]
    problems += [
        f"groups: {name} is in two of them" for name in sorted({name for name in named if named.count(name) > 1})
    ]
    group_of = {name: i for i, group in enumerate(groups) for name in group}
    return tuple((a, b) for a in named for b in named if group_of[a] != group_of[b] and not problems)
