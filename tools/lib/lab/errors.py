"""What goes wrong under the simulated engine."""


class MachineError(Exception):
    """A machine cannot do this now, or a qemu tool refused; the message is qemu's own where there is one."""
