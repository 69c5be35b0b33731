"""The command `vmfs-ingest`: one module a command, as in vmfs.cli."""
