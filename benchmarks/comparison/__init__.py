"""Comparison of the operator with other implementations: the peers, their verification and timing, and the results."""
