"""Kernel launches: their grids and tile sizes, the set that must compile well, and the resources of compiled code."""
