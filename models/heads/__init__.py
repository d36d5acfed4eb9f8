"""Heads that map backbone features to logits at the features' resolution; main heads also return context features."""
