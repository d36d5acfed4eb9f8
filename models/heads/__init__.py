"""Heads: backbone features in, class scores and context features out, at the features' size."""
