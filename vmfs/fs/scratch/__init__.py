"""The writable view: what is written to raw files of a mount goes to files beside the repository."""
