"""The oVirt lab: a simulated engine over real qemu and imageio processes."""
