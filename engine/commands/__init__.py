"""The start of every entry point: its command line, its help text, and how it reports errors.

Entry points import the decorators ``command_line`` and ``entry_point`` from the modules of these names.
"""
