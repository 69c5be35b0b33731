"""The files inside volumes: what guests' file systems hold, as part of the mount."""
