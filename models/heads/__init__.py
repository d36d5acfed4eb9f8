"""Heads: from backbone features to class scores at the features' size; the main heads also give their context."""
