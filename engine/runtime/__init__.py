"""Processes, devices, memory, files and signals."""
