"""The command line, on click. One file per command group, imported when its command is used."""

from tinyvisor.cli.group import cli

__all__ = ("cli",)
