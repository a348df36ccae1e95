"""The command line: `claudefs-repl`, and `python -m nodes`, which is the same."""

from __future__ import annotations

import click

from nodes.commands import (
    bench,
    bootstrap,
    chaos,
    cluster,
    conflicts,
    demo,
    files,
    identity,
    keys,
    ledger,
    observe,
    operate,
)
from nodes.commands.common import ReplGroup, config_option, examples


@click.group(
    cls=ReplGroup,
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


for _module in (cluster, files, identity, conflicts, observe, ledger, operate, bootstrap, keys, demo, bench, chaos):
    for _command in _module.COMMANDS:
        cli.add_command(_command)


def main() -> None:
    """The console script."""
    cli(prog_name="claudefs-repl")


if __name__ == "__main__":
    main()
