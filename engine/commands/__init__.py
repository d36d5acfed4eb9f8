"""The start of every entry point: its command line, its help text, and how it reports errors.

Entry points import the decorator ``entry_point`` from the module of this name.
"""
