"""The public names: every one can be had, and importing the package costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tinyvisor


@pytest.mark.parametrize("name", tinyvisor.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(tinyvisor, name).__name__ == name if name not in ("PIPE", "STDOUT") else getattr(tinyvisor, name) < 0


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        tinyvisor.nope  # noqa: B018


def test_names_in_all_are_those_that_are_mapped() -> None:
    assert set(tinyvisor.__all__) == set(tinyvisor._MODULE_OF)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, tinyvisor; print(*sorted({'anyio', 'trio', 'pydantic', 'ruamel', 'rich', 'asyncio'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
