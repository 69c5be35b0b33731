"""The simulated engine: what it knows, what it refuses, and what it has machines and imageio do."""
