"""Conversion of torch networks to their twins: a rule for each module class, and checks of the result."""
