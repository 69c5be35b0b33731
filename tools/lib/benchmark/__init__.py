"""The benchmark: vmfs beside restic, borg and the floors of the machine, on one disk image of real files."""
