"""What the objects mean together: open, write session, read, export, index, leases, verify,
rebuild."""
