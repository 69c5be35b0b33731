"""Disks of restore points as network block devices: nbdkit speaks NBD, and asks us for what it sends."""
