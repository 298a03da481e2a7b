"""Which tinyvisor this is."""

from __future__ import annotations


def version() -> str:
    """The installed release's version; ``"0"`` where it runs from a source tree."""
    from importlib import metadata  # email and zipfile come with it: only who asks pays

    try:
        return metadata.version("tinyvisor")
    except metadata.PackageNotFoundError:
        return "0"
