"""A VM started from a restore point: qemu reads the disks over NBD, and writes to overlays of them."""
