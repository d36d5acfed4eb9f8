"""Derive the optimiser, frozen layers, class weights and length of a run from its configuration, and check it."""
