"""Finding files over restore points: walking the file systems of a point for its file list, and asking the
catalog."""
