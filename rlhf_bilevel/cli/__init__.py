"""The command line: its parser, and one module a command."""
