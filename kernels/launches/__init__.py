"""The launches of a call: their grids and tile sizes, the set of those that ship, and what they compile to."""
