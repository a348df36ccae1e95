"""The command line: `claudefs-repl`, and `python -m nodes`, which is the same."""

from __future__ import annotations

import click

from nodes.commands.common import ReplGroup, config_option, examples

COMMANDS = {
    "nodes.commands.cluster": ("init", "up", "down", "node", "fault", "rebuild", "completion"),
    "nodes.commands.files": (
        *("put", "get", "ls", "stat", "cat", "write", "mkdir", "rm", "mv", "ln", "chmod", "chown"),
    ),
    "nodes.commands.identity": ("identity",),
    "nodes.commands.conflicts": ("conflicts",),
    "nodes.commands.observe": ("status", "verify", "logs"),
    "nodes.commands.ledger": ("trace", "deadletters"),
    "nodes.commands.operate": ("reload", "unblock", "mode", "events"),
    "nodes.commands.bootstrap": ("bootstrap", "clock"),
    "nodes.commands.keys": ("keys",),
    "nodes.commands.demo": ("demo",),
    "nodes.commands.bench": ("bench",),
    "nodes.commands.chaos": ("chaos",),
}
"""The commands of each module."""


@click.group(
    cls=ReplGroup,
    modules=COMMANDS,
    params=[config_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=examples(
        "claudefs-repl init mycluster && cd mycluster && claudefs-repl up",
        "claudefs-repl put ~/Documents alpha:/documents",
        "claudefs-repl ls -l beta:/documents",
        "claudefs-repl verify --wait 30",
        "claudefs-repl demo",
    ),
)
@click.version_option(package_name="claudefs-repl", prog_name="claudefs-repl")
def cli() -> None:
    """Replicate a file system's journal between sites: every site takes writes, all converge.

    Exit status: 0 yes, 1 no or in part, 2 usage or configuration, 3 a site is not reachable or not writable, 130
    interrupted by Ctrl-C.
    """


def main() -> None:
    """The console script."""
    cli(prog_name="claudefs-repl")


if __name__ == "__main__":
    main()
