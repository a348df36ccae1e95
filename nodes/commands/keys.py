"""The commands that rotate the keys with which sites know each other: keys list, add, use, retire."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from claudefs_repl.topology import ClusterConfig
from nodes.commands.common import EXIT_NO, EXIT_OK, echo_json, end, examples, json_option, pass_cluster, run_async
from nodes.commands.operate import answers_code, answers_json, ask_sites, echo_answers, reload_line
from nodes.key_rotation import KeyChange, KeyList, add_keys, list_keys, retire_keys, take_keys, use_keys
from nodes.runtime import site_pid


@click.group(
    epilog=examples(
        "claudefs-repl keys list",
        "claudefs-repl keys add && claudefs-repl keys use k2 && claudefs-repl keys retire k1",
    )
)
def keys() -> None:
    """Rotate the keys with which sites know each other, while they run.

    \b
    A rotation goes in this order, each step everywhere before the next:
      1. keys add        new keys beside the old ones; sites reload
      2. keys use ID     connections are opened with the new keys; sites reload
      3. keys retire ID  the old keys go, and connections that were made with them; sites reload

    The files in the directory of keys of this machine are changed, and the sites that run here reload by themselves. For
    sites whose files are on other machines it is told what to do there.
    """


no_reload_option = click.option("--no-reload", is_flag=True, help="Change the files only; sites go on as they are.")


@keys.command("list", epilog=examples("claudefs-repl keys list --json"))
@json_option
@pass_cluster
def keys_list(cluster: ClusterConfig, as_json: bool) -> None:
    """Show the keys in the files of this machine, never their secrets.

    Exit status 1 if a site lacks a key that its peer has, or has another.
    """
    found = list_keys(cluster)
    if as_json:
        echo_json(_list_json(cluster, found))
    else:
        width = max((len(row.key_id) for row in found.rows), default=0)
        for row in found.rows:
            used = {True: "used", False: "not used", None: f"the file of {row.dialer} is not here"}[row.used]
            click.echo(f"{row.key_id:<{width}}  {row.dialer} -> {row.listener}  {used}")
        for site in found.absent:
            click.echo(f"the file of site {site.name} ({site.address}) is not on this machine")
        for problem in found.problems:
            click.echo(f"claudefs-repl: {problem}", err=True)
    end(EXIT_NO if found.problems else EXIT_OK)


def _list_json(cluster: ClusterConfig, found: KeyList) -> dict[str, Any]:
    return {
        "keys_dir": str(cluster.keys_dir),
        "keys": [
            {
                "key_id": row.key_id,
                "dialer": row.dialer,
                "listener": row.listener,
                "used": row.used,
                "held_by": list(row.held_by),
            }
            for row in found.rows
        ],
        "absent": [site.name for site in found.absent],
        "problems": list(found.problems),
    }


@keys.command(
    "add",
    epilog=examples(
        "claudefs-repl keys add             # the next of k1, k2, ...",
        "claudefs-repl keys add 2026-spring",
        "claudefs-repl keys add --from gamma.k2.json    # made on another machine for site gamma of this one",
    ),
)
@click.argument("key_id", metavar="[ID]", required=False)
@click.option(
    "--from",
    "delivery",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take in a file with keys that were made on another machine.",
)
@no_reload_option
@json_option
@pass_cluster
def keys_add(cluster: ClusterConfig, key_id: str | None, delivery: Path | None, no_reload: bool, as_json: bool) -> None:
    """Add new keys, one for each pair of sites, all under one ID. Nothing uses them yet.

    Run it on one machine. For each site whose file is on another one a file is made that is to be carried there.
    """
    if delivery is not None and key_id is not None:
        raise click.UsageError("--from takes the ID that the file has")
    if delivery is not None:
        change, elsewhere = take_keys(cluster, delivery), []
    else:
        change = add_keys(cluster, os.urandom, key_id)
        elsewhere = [_delivery_step(change, name) for name in change.deliveries]
    told = f"keys {change.key_id} are added" + (f"; now remove {delivery}" if delivery else "")
    then = f"when every site has them and has reloaded: claudefs-repl keys use {change.key_id}"
    _finish_change(cluster, change, told, elsewhere, then, no_reload=no_reload, as_json=as_json)


def _delivery_step(change: KeyChange, name: str) -> dict[str, str]:
    path = change.deliveries[name]
    return {
        "site": name,
        "carry": str(path),
        "command": f"claudefs-repl keys add --from {path.name}",
        "then": f"remove {path} here",
    }


@keys.command("use", epilog=examples("claudefs-repl keys use k2"))
@click.argument("key_id", metavar="ID")
@no_reload_option
@json_option
@pass_cluster
def keys_use(cluster: ClusterConfig, key_id: str, no_reload: bool, as_json: bool) -> None:
    """Let the sites of this machine open connections with the keys ID; the old ones are accepted until they are retired."""
    change = use_keys(cluster, key_id)
    told = f"keys {key_id} are used" if change.changed else f"keys {key_id} were used already"
    old = sorted({row.key_id for row in list_keys(cluster).rows if not row.used} - {key_id})
    then = f"when every site uses them and has reloaded: claudefs-repl keys retire {old[0] if len(old) == 1 else 'ID'}"
    _finish_change(cluster, change, told, _same_steps(change, "use"), then, no_reload=no_reload, as_json=as_json)


@keys.command("retire", epilog=examples("claudefs-repl keys retire k1"))
@click.argument("key_id", metavar="ID")
@no_reload_option
@json_option
@pass_cluster
def keys_retire(cluster: ClusterConfig, key_id: str, no_reload: bool, as_json: bool) -> None:
    """Remove the keys ID, which no site uses any more; connections that were made with them are made anew."""
    change = retire_keys(cluster, key_id)
    told = f"keys {key_id} are retired"
    _finish_change(cluster, change, told, _same_steps(change, "retire"), None, no_reload=no_reload, as_json=as_json)


def _same_steps(change: KeyChange, verb: str) -> list[dict[str, str]]:
    return [
        {"site": site.name, "command": f"claudefs-repl keys {verb} {change.key_id}", "file": f"{site.name}.json"}
        for site in change.absent
    ]


def _finish_change(
    cluster: ClusterConfig,
    change: KeyChange,
    told: str,
    elsewhere: list[dict[str, str]],
    then: str | None,
    *,
    no_reload: bool,
    as_json: bool,
) -> None:
    """Let the sites that run here reload, and tell what was done, what is to be done elsewhere, and what comes next."""
    names = [site.name for site in cluster.sites if site_pid(site) is not None]
    answers = {} if no_reload else run_async(ask_sites, cluster, names, "reload")
    if as_json:
        document: dict[str, Any] = {"key_id": change.key_id, "changed": [str(path) for path in change.changed]}
        echo_json({**document, "elsewhere": elsewhere, "next": then, "reloaded": answers_json(answers)})
    else:
        files = ", ".join(path.name for path in change.changed) or "none"
        click.echo(f"{told}; changed in {cluster.keys_dir}: {files}")
        echo_answers(answers, reload_line)
        if not names:
            click.echo("no site runs on this machine; sites read their keys when they start")
        elif no_reload:
            click.echo(f"not reloaded yet: {', '.join(names)}; do it with: claudefs-repl reload")
        for step in elsewhere:
            _echo_step(cluster, step)
        if then:
            click.echo(then)
    if answers_code(answers):
        if not as_json:
            click.echo("claudefs-repl: not every site has reloaded; try again: claudefs-repl reload", err=True)
        end(EXIT_NO)


def _echo_step(cluster: ClusterConfig, step: Mapping[str, str]) -> None:
    site = cluster.site(step["site"])
    place = f"site {site.name} ({site.address})"
    if "carry" in step:
        click.echo(
            f"{place}: its file {site.name}.json is not on this machine; carry {step['carry']} to its machine, "
            f"run there: {step['command']}, and {step['then']}"
        )
    else:
        click.echo(f"{place}: its file {step['file']} is not on this machine; run there: {step['command']}")


COMMANDS: list[click.Command] = [keys]
