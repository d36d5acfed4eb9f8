"""Checks of what a run is given before it is used: settings, checkpoints of others, secrets."""
