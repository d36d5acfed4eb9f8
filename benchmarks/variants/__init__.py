"""Kernels on trial: variants for Hopper GPUs that are raced against the kernels in use.

A variant that wins by enough to justify its code moves to ``kernels/``; one that loses is deleted. The times of all
variants so far are in ``results/kernels_variants_gpu.csv``.
"""
