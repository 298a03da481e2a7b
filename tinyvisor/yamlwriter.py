"""YAML written for people, as the full parser reads it back. Pure."""

from __future__ import annotations

import io
import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter


class _Representer(SafeRepresenter):
    def represent_str(self, data: Any) -> Any:
        """Quoted so that it is escaped, where it holds a line break that the emitter would fold away."""
        style = '"' if re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Representer.add_representer(str, _Representer.represent_str)


def write_yaml(value: Any) -> str:
    """`value`, of dicts, lists and scalars, in block style, in its own order."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.width = 1 << 20
    out = io.StringIO()
    yaml.dump(value, out)
    return out.getvalue()
