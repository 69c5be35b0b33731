"""The command `vmfs`: one module a command, each with `register(subparsers)` and `run(args)`."""
