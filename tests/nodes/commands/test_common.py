from __future__ import annotations

import base64
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import trio
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from claudefs_repl.error import ConfigInvalid, NotWritable, OperationRefused, SiteUnknown, WorldError
from claudefs_repl.topology import ClusterConfig
from nodes.__main__ import COMMANDS, cli
from nodes.client import ClientError, SiteUnreachable
from nodes.commands.common import (
    SITE_PATH,
    ReplGroup,
    SitePath,
    config_option,
    end,
    parse_site_path,
    pass_cluster,
    path_json,
    path_text,
    run_async,
    stat_json,
)
from nodes.config import write_cluster
from nodes.launcher import SiteFailed

names = st.binary(min_size=1, max_size=20).filter(lambda name: name not in (b".", b"..") and not {0, 47} & set(name))


def program(*, raises: BaseException | None = None, status: int = 0) -> click.Group:
    @click.command()
    def act() -> None:
        if raises is not None:
            raise raises
        end(status)

    @click.command()
    @pass_cluster
    def show(cluster: ClusterConfig) -> None:
        click.echo(cluster.cluster_id)

    @click.group()
    def below() -> None:
        pass

    below.add_command(show)
    group = ReplGroup("program", params=[config_option()])
    for command in (act, show, below):
        group.add_command(command)
    return group


def run(group: click.Group, *arguments: str) -> Result:
    return CliRunner().invoke(group, list(arguments))


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigInvalid(["one", "two"]), 2),
        (SiteUnknown("who"), 2),
        (OperationRefused(2, "no /x"), 1),
        (ClientError("ENOENT", "no /x", 2, 1), 1),
        (ClientError("not_writable", "standby", 30, 3), 3),
        (SiteUnreachable("down"), 3),
        (NotWritable("standby"), 3),
        (SiteFailed("ended", 2), 2),
        (WorldError("disk"), 1),
        (KeyboardInterrupt(), 130),
        (ExceptionGroup("g", [ExceptionGroup("h", [SiteUnreachable("down")])]), 3),
        (BaseExceptionGroup("g", [SiteUnreachable("down"), KeyboardInterrupt()]), 130),
    ],
)
def test_an_error_that_is_somebody_s_fault_is_a_message_and_a_status(error: BaseException, status: int) -> None:
    """Declared errors end the program without a traceback, also when nurseries wrapped them."""
    result = run(program(raises=error), "act")
    assert result.exit_code == status
    assert result.stderr.startswith("claudefs-repl: ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize("error", [ValueError("x"), ExceptionGroup("g", [SiteUnreachable("down"), ValueError("x")])])
def test_a_bug_is_a_traceback(error: Exception) -> None:
    """What nobody declared is not made to look like a message."""
    assert run(program(raises=error), "act").exception is error


@pytest.mark.parametrize("status", [0, 1, 3])
def test_a_command_ends_with_its_status(status: int) -> None:
    """`end` gives the exit status, and nothing else."""
    result = run(program(status=status), "act")
    assert (result.exit_code, result.output) == (status, "")


def test_every_problem_of_a_configuration_is_a_line() -> None:
    """All errors come at once, each on a line of its own."""
    result = run(program(raises=ConfigInvalid(["one", "two"])), "act")
    assert result.stderr == "claudefs-repl: one\nclaudefs-repl: two\n"


@pytest.mark.parametrize("where", ["before", "after", "between", "variable", "here"])
def test_the_configuration_is_named_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """-c stands before a command or after it; else the environment tells, or the current directory has it."""
    path = str(write_cluster(tmp_path, cluster_id="mine"))
    monkeypatch.delenv("CLAUDEFS_REPL_CONFIG", raising=False)
    if where == "variable":
        monkeypatch.setenv("CLAUDEFS_REPL_CONFIG", path)
    elif where == "here":
        monkeypatch.chdir(tmp_path)
    arguments = {
        "before": ["-c", path, "show"],
        "after": ["show", "--config", path],
        "between": ["below", "-c", path, "show"],
    }.get(where, ["below", "show"])
    assert run(program(), *arguments).stdout == "mine\n"


def test_every_command_takes_the_configuration_and_has_help() -> None:
    """-c/--config and a help text are everywhere, below groups too."""

    def check(command: click.Command) -> None:
        assert any("--config" in param.opts for param in command.params), command.name
        assert command.help, command.name
        if isinstance(command, click.Group):
            for below in command.commands.values():
                check(below)

    with click.Context(cli) as context:
        for name in cli.list_commands(context):
            command = cli.get_command(context, name)
            assert command is not None
            check(command)


@pytest.mark.parametrize("module", COMMANDS)
def test_every_module_has_the_commands_that_the_program_says(module) -> None:
    """A command that is listed exists, and one that exists is listed, in the order of its module."""
    assert tuple(command.name for command in importlib.import_module(module).COMMANDS) == COMMANDS[module]


def test_the_program_starts_without_what_other_commands_need() -> None:
    """Asking for the version imports no command."""
    script = "import sys, nodes.__main__ as m; print(*(name for name in sys.modules if name in m.COMMANDS))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "\n"


def test_help_tells_every_exit_status() -> None:
    """A script's author finds what each status means, that of an interrupted command too."""
    told = " ".join(run(cli, "--help").stdout.split())
    for status in (0, 1, 2, 3, 130):
        assert re.search(rf"[ ,]{status} [a-z]", told.partition("Exit status:")[2]), status


def test_help_keeps_the_lines_of_its_examples() -> None:
    """Examples are not wrapped, so that they can be copied."""
    result = run(cli, "init", "--help")
    assert "\n    claudefs-repl init five --sites 5 --base-port 9000\n" in result.stdout


@given(st.sampled_from(["alpha", "b-1"]), st.lists(names, max_size=4), st.sampled_from([b"/", b"//", b"/./"]))
def test_addresses_are_bytes(site: str, parts: list[bytes], slash: bytes) -> None:
    """SITE:/path keeps every byte of its names, whether they are UTF-8 or not; empty parts and dots go."""
    text = f"{site}:" + os.fsdecode(slash + slash.join(parts))
    found = parse_site_path(text)
    assert found == SitePath(site, b"/" + b"/".join(parts))
    assert found.parts == parts


@pytest.mark.parametrize("text", ["", "alpha", "/etc", "alpha:", "alpha:etc", ":/etc", "alpha:/a/../b"])
def test_what_is_no_address_is_a_usage_error(text: str) -> None:
    """An address has a site and an absolute path that does not climb."""
    with pytest.raises(click.BadParameter, match="expected"):
        SITE_PATH.convert(text, None, None)


@pytest.mark.parametrize("config", [["-c", "{}"], ["--config={}"], ["-c{}"]])
def test_a_site_of_another_machine_is_told_with_the_whole_command(tmp_path: Path, config: list[str]) -> None:
    """What to type is there to copy: through both shells, with the file's full path, and with the same arguments."""
    path = write_cluster(tmp_path)
    path.write_text(path.read_text().replace("127.0.0.2", "192.0.2.77"))
    chosen = [word.format(path) for word in config]
    result = run(cli, *chosen, "ls", "-l", "beta:/two words")
    inner = shlex.join(["claudefs-repl", "-c", str(path), "ls", "-l", "beta:/two words"])
    assert (result.exit_code, result.stderr.endswith(f": {shlex.join(['ssh', '192.0.2.77', inner])}\n")) == (3, True)
    assert run(cli, "ls", "-l", "beta:/two words", *chosen).stderr == result.stderr


@given(st.binary(max_size=30))
def test_a_path_in_json_loses_nothing(path: bytes) -> None:
    """A path is text, with its exact bytes beside it where text cannot tell them."""
    shown = json.loads(json.dumps(path_json(path)))
    if "path_b64" in shown:
        assert base64.b64decode(shown["path_b64"]) == path
        assert "\N{REPLACEMENT CHARACTER}" in shown["path"]
    else:
        assert shown["path"].encode() == path


@given(st.binary(max_size=30))
def test_a_path_on_a_terminal_cannot_steer_it(path: bytes) -> None:
    """Control characters of names are shown escaped."""
    assert path_text(path).isprintable()


def test_a_stat_in_json_has_its_bytes_fields_as_text() -> None:
    """Names and targets come as paths do, numbers and missing fields as they are."""
    stat: dict[str, Any] = {"inode": 7, "target": None, "name": b"a\xff"}
    assert stat_json(stat) == {"inode": 7, "target": None, "name": "a\ufffd", "name_b64": "Yf8="}


def test_completion_offers_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of the configuration complete; a configuration that cannot be read is silent."""
    path = write_cluster(tmp_path)
    environment = {"_CLAUDEFS_REPL_COMPLETE": "bash_complete", "CLAUDEFS_REPL_CONFIG": str(path)}

    def complete(words: str) -> list[str]:
        environment.update(COMP_WORDS=f"claudefs-repl {words}", COMP_CWORD=str(len(words.split(" "))))
        result = CliRunner(env=environment).invoke(cli, prog_name="claudefs-repl")
        return [line.split(",")[1] for line in result.stdout.split()]

    assert complete("rebuild ") == ["alpha", "beta", "gamma"]
    assert complete("fault kill be") == ["beta"]
    assert complete("ls ga") == ["gamma:/"]
    path.write_text("broken")
    assert complete("rebuild ") == []


def test_a_command_s_async_part_gives_its_result() -> None:
    """`run_async` runs a function with its arguments under Trio."""

    async def double(number: int, *, plus: int) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * number + plus

    assert run_async(double, 20, plus=2) == 42
