"""The subcommands of `claudefs-repl`, one module for each family."""
