"""The mount: a tree that knows nothing of FUSE, and a thin pyfuse3 adapter over it."""
