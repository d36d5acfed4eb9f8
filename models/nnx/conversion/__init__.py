"""Conversion of torch networks to their twins: a rule for each class of modules, and checks of the result."""
