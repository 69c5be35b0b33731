"""The files in a guest's file systems, read in user space by worker processes that hold no key."""
