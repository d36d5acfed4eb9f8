"""Heads: backbone features in, class scores out, at the features' size; the main head also gives its context."""
