"""The command line, on click. One file per command group, imported when its command is used; the root is `group.cli`."""
