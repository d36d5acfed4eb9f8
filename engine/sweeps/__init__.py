"""Entry points, sweeps and their reports."""
