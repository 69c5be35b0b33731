"""A backup repository for virtual machine disks that can be mounted."""

__version__ = "0.1.0"
