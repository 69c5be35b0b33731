"""What the objects mean together: open, write session, read, index, leases, verify."""
