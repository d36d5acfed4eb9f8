"""One file per mode of benchmark.py."""
