"""Heads that map backbone features to logits at feature resolution; main heads also return context features."""
