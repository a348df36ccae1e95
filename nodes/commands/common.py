"""What all commands share: the configuration option, SITE:/path addresses, JSON output, exit statuses, errors.

A command is a plain click command that takes `cluster` by `pass_cluster`, and runs its async part by `run_async`.
Errors that this project declares end the program with their message and an exit status; all others are bugs, shown as
tracebacks.
"""

from __future__ import annotations

import base64
import functools
import importlib
import json
import os
import shlex
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NoReturn, ParamSpec, TypeVar

import click
import trio
from click.shell_completion import CompletionItem

from claudefs_repl.error import CallerError, ConfigInvalid, NotWritable, OperationRefused, ReplError, SiteUnknown
from claudefs_repl.operations import path_text
from claudefs_repl.topology import ClusterConfig
from nodes.client import ClientError, SiteElsewhere
from nodes.config import load_cluster

EXIT_OK = 0
EXIT_NO = 1
"""The answer is no, or a part could not be done."""
EXIT_USAGE = 2
"""The command line or the configuration is wrong."""
EXIT_UNREACHABLE = 3
"""A site is not reachable or not writable."""
EXIT_INTERRUPTED = 130
"""As shells show a program that SIGINT ended."""
CONFIG_VARIABLE = "CLAUDEFS_REPL_CONFIG"

P = ParamSpec("P")
T = TypeVar("T")


class CliState:
    """What the command line said before the command; the configuration is read when a command first needs it."""

    def __init__(self) -> None:
        self.config_path = Path(os.environ.get(CONFIG_VARIABLE) or "cluster.toml")
        self.arguments: list[str] = []
        self._cluster: ClusterConfig | None = None

    def cluster(self) -> ClusterConfig:
        """The configuration.

        Raises:
            ConfigInvalid: it cannot be used.
        """
        if self._cluster is None or self._cluster.path != self.config_path.absolute():
            self._cluster = load_cluster(self.config_path)
        return self._cluster


def state_of(context: click.Context) -> CliState:
    """The one state of this run of the program."""
    return context.find_root().ensure_object(CliState)


def _set_config(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        state_of(context).config_path = value


def config_option() -> click.Option:
    """The option -c/--config, which every command takes, before its name or after it."""
    return click.Option(
        ["-c", "--config"],
        type=click.Path(path_type=Path),
        expose_value=False,
        is_eager=True,
        callback=_set_config,
        help=f"The cluster's configuration  [default: ${CONFIG_VARIABLE} or ./cluster.toml]",
    )


def _take_config(command: click.Command) -> None:
    if not any("--config" in param.opts for param in command.params):
        command.params.append(config_option())
    if isinstance(command, click.Group):
        for below in command.commands.values():
            _take_config(below)


class ReplGroup(click.Group):
    """The program: gives each command the configuration option, and turns errors into messages and exit statuses.

    Args:
        modules: names of modules, each with the names of those in its `COMMANDS`. It is imported when one of them is
            asked for, so that a command starts without what the others need.
    """

    def __init__(self, *args: Any, modules: Mapping[str, Sequence[str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._modules = {name: module for module, names in (modules or {}).items() for name in names}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, imported or not."""
        return sorted({*super().list_commands(ctx), *self._modules})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command by its name; its module is imported."""
        if cmd_name in self._modules and cmd_name not in self.commands:
            for command in importlib.import_module(self._modules[cmd_name]).COMMANDS:
                self.add_command(command)
        return super().get_command(ctx, cmd_name)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Register a command, with -c/--config for it and for those below it."""
        _take_config(cmd)
        super().add_command(cmd, name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments as they were given, for a message that tells what to type on another machine."""
        state_of(ctx).arguments = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; errors that are somebody's fault end the program with a message."""
        try:
            return super().invoke(ctx)
        except (ReplError, KeyboardInterrupt) as error:
            fail(ctx, error)
        except BaseExceptionGroup as group:
            # A nursery wraps what its tasks raise; only a group of nothing but declared errors is not a bug.
            _, rest = group.split((ReplError, KeyboardInterrupt, trio.Cancelled))
            if rest is not None:
                raise
            fail(ctx, _first(group))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error to show: an interruption before anything, else the first one."""
    leaves: list[BaseException] = []
    rest: list[BaseException] = [group]
    while rest:
        error = rest.pop(0)
        if isinstance(error, BaseExceptionGroup):
            rest = [*error.exceptions, *rest]
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, KeyboardInterrupt)), leaves[0])


def exit_code_of(error: BaseException) -> int:
    """The exit status that an error means."""
    told = getattr(error, "exit_code", None)
    if isinstance(told, int):
        return told
    if isinstance(error, ConfigInvalid | SiteUnknown):
        return EXIT_USAGE
    if isinstance(error, NotWritable):
        return EXIT_UNREACHABLE
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_NO


def error_text(error: BaseException) -> str:
    """An error as the line that a person reads; it names the thing and, where there is one, the remedy."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on"
    if isinstance(error, OperationRefused | ClientError) and error.code.startswith("E") and error.code.isupper():
        return f"{error} ({error.code})"
    return str(error)


def fail(context: click.Context, error: BaseException) -> NoReturn:
    """End the program with an error's message on stderr and its exit status."""
    text = error_text(error)
    if isinstance(error, SiteElsewhere):
        text = f"{error.place}; use the command there: {ssh_command(error, state_of(context).arguments)}"
    for line in text.splitlines():
        click.echo(f"claudefs-repl: {line}", err=True)
    context.exit(exit_code_of(error))


def ssh_command(elsewhere: SiteElsewhere, arguments: Sequence[str]) -> str:
    """The same command for the machine of a site. It goes through two shells, and starts in another directory."""
    there = shlex.join(["claudefs-repl", "-c", elsewhere.config, *_without_config(arguments)])
    return shlex.join(["ssh", elsewhere.address, there])


def _without_config(arguments: Sequence[str]) -> Iterator[str]:
    rest = iter(arguments)
    for word in rest:
        if word == "--":
            yield word
            yield from rest
        elif word in ("-c", "--config"):
            next(rest, None)
        elif not word.startswith(("-c", "--config=")):
            yield word


def pass_cluster(command: Callable[Concatenate[ClusterConfig, P], T]) -> Callable[P, T]:
    """A decorator: the command gets the cluster's configuration as its first argument."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        return command(state_of(click.get_current_context()).cluster(), *args, **kwargs)

    return wrapped


def examples(*lines: str) -> str:
    """The epilog of a command's help: lines to copy, which click does not wrap."""
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines)))


def run_async(function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Run a command's async part."""
    return trio.run(functools.partial(function, *args, **kwargs))


def end(code: int) -> None:
    """End the command with an exit status; does nothing for 0."""
    if code:
        click.get_current_context().exit(code)


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
as_written_option = click.option(
    "--as-written", is_flag=True, help="Owners as their sites wrote them, not as this one maps them; none is refused."
)


def echo_json(value: Any) -> None:
    """Print one JSON document on a line of its own. Text in it is as `path_json` makes it, so this never fails."""
    click.echo(json.dumps(value, ensure_ascii=True))


def path_json(path: bytes, key: str = "path") -> dict[str, str]:
    """A path for JSON: UTF-8 with replacement characters, and where that is not exact, `..._b64` with its bytes."""
    text = path.decode("utf-8", "replace")
    shown = {key: text}
    if text.encode() != path:
        shown[f"{key}_b64"] = base64.b64encode(path).decode("ascii")
    return shown


@dataclass(frozen=True, slots=True)
class SitePath:
    """A place in the tree as one site has it. The path is absolute, without empty parts, `.` or a final slash."""

    site: str
    path: bytes

    def __str__(self) -> str:
        return f"{self.site}:{path_text(self.path)}"

    @property
    def parts(self) -> list[bytes]:
        """The names from the root down; none for the root."""
        return [part for part in self.path.split(b"/") if part]


def parse_site_path(text: str) -> SitePath:
    """Read SITE:/path, as scp writes it. The bytes that the shell gave are kept, UTF-8 or not.

    Raises:
        ValueError: it has another form.
    """
    site, colon, rest = text.partition(":")
    path = os.fsencode(rest)
    if not colon or not site or not path.startswith(b"/"):
        raise ValueError(f"expected SITE:/PATH, as in alpha:/home, got {text!r}")
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts:
        raise ValueError(f"expected a path without '..', got {text!r}")
    return SitePath(site, b"/" + b"/".join(parts))


if TYPE_CHECKING:
    _SitePathParam = click.ParamType[SitePath]
    _SiteNameParam = click.ParamType[str]
else:  # not generic at run time in every click that pyproject allows
    _SitePathParam = _SiteNameParam = click.ParamType


class SitePathType(_SitePathParam):
    """SITE:/path on the command line, checked against the configuration, with completion of sites."""

    name = "SITE:/PATH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SitePath:
        """The address; a usage error if it has another form."""
        if isinstance(value, SitePath):
            return value
        try:
            return parse_site_path(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The sites' names, each with its colon and the root."""
        return [CompletionItem(f"{name}:/") for name in _known_sites(ctx) if f"{name}:/".startswith(incomplete)]


class SiteNameType(_SiteNameParam):
    """A site's name on the command line, with completion."""

    name = "SITE"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The names in the configuration."""
        return [CompletionItem(name) for name in _known_sites(ctx) if name.startswith(incomplete)]


def _known_sites(context: click.Context) -> list[str]:
    """Names for completion, which must be silent whatever the configuration is like."""
    try:
        return [site.name for site in state_of(context).cluster().sites]
    except CallerError:
        return []


SITE_PATH = SitePathType()
SITE_NAME = SiteNameType()


def stat_json(stat: Mapping[str, Any]) -> dict[str, Any]:
    """A site's answer about one object, for JSON: its bytes fields as `path_json` shows them."""
    shown: dict[str, Any] = {}
    for key, value in stat.items():
        if isinstance(value, bytes):
            shown.update(path_json(value, key))
        else:
            shown[key] = value
    return shown
