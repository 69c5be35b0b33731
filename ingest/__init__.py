"""Everything that talks to a hypervisor or reads a disk, and feeds a vmfs repository."""
