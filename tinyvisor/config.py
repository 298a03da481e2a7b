"""YAML files → `Project`: all validation, units and defaults; every problem of every file at once, with its place.

Three passes: text becomes nodes and variables are replaced (`yamlfile`), pydantic models check keys and types, and builders
make the `spec` dataclasses, whose own checks are reported at the key they came from. What fails in one pass is left out of
the next, so that one run reports everything.

Pure but for reading files. Source: compose-spec 05-services.md, deploy.md, 12-interpolation.md.
"""

from __future__ import annotations

import difflib
import graphlib
import json
import math
import os
import re
import shlex
from collections import ChainMap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, TypeAdapter, ValidationError, WithJsonSchema, model_validator
from pydantic_core import core_schema

from tinyvisor import spec as words
from tinyvisor.errors import ConfigError, ConfigProblem, SpecError
from tinyvisor.profile import parse_profile, read_profile_text
from tinyvisor.spec import (
    Backoff,
    Blkio,
    Dependency,
    Healthcheck,
    Hook,
    Http,
    Logging,
    Project,
    RestartPolicy,
    Schedule,
    Secret,
    Service,
    Spec,
    SyscallRule,
    Tcp,
    Tmpfs,
    Ulimit,
    Volume,
    check_proc_options,
    instances,
)
from tinyvisor.units import parse_duration, parse_size, signal_name
from tinyvisor.yamlfile import Variables, parse_env, parse_yaml, read_text
from tinyvisor.yamlnode import Mark, Node, TextError

Step = str | int
Path_ = tuple[Step, ...]
_T = TypeVar("_T")
"""Keys and list indices from a file's root to a value."""

ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst", ".tzst")

_LATER = "not supported yet"
_UNSUPPORTED: Mapping[str, str] = {
    "image": f'{_LATER}; use "rootfs" with a directory or a tarball',
    "build": f'{_LATER}; build the root yourself and give it as "rootfs"',
    "pull_policy": f'{_LATER}; there are no images, use "rootfs"',
    "platform": f'{_LATER}; there are no images, use "rootfs"',
    "ports": f'{_LATER}; use "network_mode: host", or "network_mode: service:NAME" to reach another service',
    "expose": f'{_LATER}; services of one "network_mode: service:NAME" see each other\'s ports',
    "networks": f'{_LATER}; use "network_mode" with none, host or service:NAME',
    "links": f'{_LATER}; use "network_mode: service:NAME"',
    "dns": f'{_LATER}; mount a resolv.conf by "volumes"',
    "dns_search": f'{_LATER}; mount a resolv.conf by "volumes"',
    "dns_opt": f'{_LATER}; mount a resolv.conf by "volumes"',
    "extra_hosts": f'{_LATER}; mount a hosts file by "volumes"',
    "domainname": f'{_LATER}; use "hostname"',
    "mac_address": _LATER,
    "devices": _LATER,
    "device_cgroup_rules": _LATER,
    "gpus": _LATER,
    "secrets": "are for services only",
    "configs": f'{_LATER}; mount a file by "volumes" with read_only',
    "volumes_from": f'{_LATER}; repeat the "volumes"',
    "extends": f'{_LATER}; use a YAML anchor and "<<"',
    "include": f"{_LATER}; give several files or a directory",
    "develop": _LATER,
    "sysctls": _LATER,
    "pid": f'{_LATER}; every container has its own, see "namespaces"',
    "ipc": f'{_LATER}; every container has its own, see "namespaces"',
    "uts": f'{_LATER}; every container has its own, see "namespaces"',
    "cgroup": f'{_LATER}; every container has its own, see "namespaces"',
    "cgroup_parent": _LATER,
    "runtime": "not supported: tinyvisor is the runtime",
    "privileged": 'not supported: it would not isolate; name what is needed in "cap_add"',
    "container_name": "not supported: the service's name is the container's name",
    "cpu_count": 'not supported; use "cpus"',
    "cpu_percent": 'not supported; use "cpus"',
    "cpu_period": 'not supported; use "cpus"',
    "cpu_quota": 'not supported; use "cpus"',
    "cpu_shares": f'{_LATER}; use "cpus"',
    "cpu_rt_runtime": _LATER,
    "cpu_rt_period": _LATER,
    "mem_reservation": f'{_LATER}; use "mem_limit"',
    "mem_swappiness": "not supported: containers never swap",
    "oom_kill_disable": 'not supported; use "oom_score_adj"',
    "isolation": "not supported: it is for Windows",
    "credential_spec": "not supported: it is for Windows",
    "external_links": _LATER,
    "attach": _LATER,
    "provider": _LATER,
    "models": _LATER,
    "reservations": f'{_LATER}; use "limits"',
    "placement": "not supported: there is one host",
    "endpoint_mode": _LATER,
    "update_config": _LATER,
    "rollback_config": _LATER,
    "weight_device": _LATER,
    "bind": _LATER,
    "masked_paths": "can't be set in a file",
    "readonly_paths": "can't be set in a file",
}
"""Keys of compose that are not here, and the nearest thing to do."""


# --- Scalars: every one arrives as text (or None), its field says what it means. ---


def shown(value: object) -> str:
    """What was given, short, for messages."""
    if isinstance(value, str):
        return f'"{value}"' if len(value) <= 60 else f'"{value[:57]}..."'
    if value is None:
        return "nothing"
    return "a list" if isinstance(value, (list, tuple)) else "keys and values" if isinstance(value, dict) else f'"{value}"'


def near(word: str, known: Iterable[str]) -> str:
    """`` (did you mean "x"?)`` where there is a near word, else ``""``."""
    spellings = {item.lower(): item for item in known}
    matches = difflib.get_close_matches(word[:64].lower(), spellings, n=1, cutoff=0.65)
    return f' (did you mean "{spellings[matches[0]]}"?)' if matches else ""


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected text, got {shown(value)}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[-+]?[0-9]{1,30}", text):
            return int(text)
        if re.fullmatch(r"0x[0-9a-fA-F]{1,30}|0o[0-7]{1,30}", text):
            return int(text, 0)
    raise ValueError(f"expected a whole number, got {shown(value)}")


def _real(value: Any) -> float:
    if isinstance(value, str) and re.fullmatch(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?", value.strip()):
        number = float(value)
        if math.isfinite(number):
            return number
    raise ValueError(f"expected a number, got {shown(value)}")


_TRUE, _FALSE = ("true", "yes", "on", "y"), ("false", "no", "off", "n")  # compose-go interpolation: toBoolean


def _flag(value: Any) -> bool:
    if isinstance(value, str) and value.strip().lower() in _TRUE + _FALSE:
        return value.strip().lower() in _TRUE
    raise ValueError(f"expected true or false, got {shown(value)}")


def _size(value: Any) -> int:
    try:
        number: int | str = _whole(value)
    except ValueError:
        if not isinstance(value, str):
            raise ValueError(f"expected a size such as 64m, got {shown(value)}") from None
        number = value
    return parse_size(number)


def _duration(value: Any) -> float:
    try:
        number: float | str = _real(value)
    except ValueError:
        if not isinstance(value, str):
            raise ValueError(f"expected a duration such as 1m30s, got {shown(value)}") from None
        number = value
    return parse_duration(number)


def _octal(value: Any, highest: int, example: str) -> int:
    text = value.strip() if isinstance(value, str) else ""
    if not re.fullmatch(r"(0o)?[0-7]{1,8}", text) or int(text, 8) > highest:
        raise ValueError(f"expected an octal number up to {highest:o} such as {example}, got {shown(value)}")
    return int(text, 8)


def _signal(value: Any) -> int:
    return words.parse_signal(_text(value))


def _capability(value: Any) -> str:
    try:
        return words.parse_capability(_text(value))
    except ValueError as error:
        name = str(value).upper().removeprefix("CAP_")
        raise ValueError(f"{error}{near(name, words.CAPABILITIES)}") from None


def _choice(*choices: str) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        if value in choices:
            return str(value)
        hint = near(value, choices) if isinstance(value, str) else ""
        raise ValueError(f"expected {_either(choices)}, got {shown(value)}{hint}")

    return check


def _either(choices: Sequence[str]) -> str:
    return " or ".join([", ".join(choices[:-1]), choices[-1]] if len(choices) > 1 else choices)


def parse_cpuset(value: str) -> frozenset[int]:
    """CPU numbers from ``"0-2,4"``.

    Raises:
        ValueError: not such a list.
    """
    cpus: set[int] = set()
    for part in value.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f'expected CPU numbers such as "0-2,4", got {shown(value)}')
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(cpus)


def _restart(value: Any) -> tuple[str, int | None]:
    text = _text(value)
    condition, colon, attempts = ("no", "", "") if text == "false" else text.partition(":")
    known = ("no", "always", "on-failure", "unless-stopped")
    if condition not in known or (colon and (condition != "on-failure" or not re.fullmatch(r"[0-9]{1,9}", attempts))):
        raise ValueError(f"expected no, always, on-failure[:N] or unless-stopped, got {shown(value)}{near(condition, known)}")
    return condition, int(attempts) if colon else None


def _code(value: Any) -> int | str:
    """An exit code, or a signal's name."""
    try:
        return _whole(value)
    except ValueError:
        pass
    try:
        return signal_name(words.parse_signal(_text(value)))
    except ValueError:
        raise ValueError(f"expected an exit code or a signal's name, got {shown(value)}") from None


def _overlap(value: Any) -> str:
    if value == "allow":
        raise ValueError('"allow" is not supported: a service has one container at a time; expected skip or queue')
    return _choice(*get_args(words.Overlap))(value)


def _profile(value: Any) -> str:
    text = _text(value)
    if not words.NAME.fullmatch(text):
        raise ValueError(f"{text!r} is not a profile's name; expected letters, digits, dots, dashes or underscores")
    return text


def _init(value: Any) -> bool:
    if not _flag(value):
        raise ValueError("can't be turned off: every container has an init that reaps and forwards signals")
    return True


_DRIVERS = get_args(words.LogDriver)


def _driver(value: Any) -> str:
    return "local" if value == "file" else _choice(*_DRIVERS)(value)


def _security(value: Any) -> tuple[str, Any]:
    """A field of `Spec` and its value; a profile's file as it was written."""
    name, _, argument = _text(value).replace("=", ":", 1).partition(":")
    if name == "no-new-privileges" and argument in ("", "true", "false"):
        return "no_new_privs", argument != "false"
    if name == "seccomp" and argument:
        return "seccomp", argument
    if name == "landlock" and argument in get_args(words.LandlockMode):
        return "landlock", argument
    if name == "network" and argument in ("default", "new"):
        return "new_network", argument == "new"
    if name == "proc-opts" and argument:
        check_proc_options(argument)
        return "proc_opts", argument
    raise ValueError(
        f"{shown(value)} is {_LATER}; expected no-new-privileges:true, no-new-privileges:false, "
        "seccomp=default, seccomp=unconfined, seccomp=FILE, landlock=default, landlock=unconfined, network=new or "
        "proc-opts=OPTIONS"
    )


def parse_security(text: str, base_dir: Path) -> tuple[str, Any]:
    """One ``security_opt``: the field of `Spec` that it sets, and to what. A profile's file is looked at.

    Raises:
        ValueError: there is no such option, or the profile can't be used; with what is wrong with it.
    """
    return _build_security(_security(text), base_dir)


def _build_security(option: tuple[str, Any], base_dir: Path) -> tuple[str, Any]:
    name, value = option
    if name != "seccomp" or value in ("default", "unconfined"):
        return option
    path = _resolve(value, base_dir)
    try:
        parse_profile(read_profile_text(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {_os_text(error)}") from None
    return name, path


_STRING: dict[str, Any] = {"type": "string"}
Text = Annotated[str, PlainValidator(_text), WithJsonSchema({"type": ["string", "number", "boolean"]})]
Whole = Annotated[int, PlainValidator(_whole), WithJsonSchema({"type": ["integer", "string"]})]
Real = Annotated[float, PlainValidator(_real), WithJsonSchema({"type": ["number", "string"]})]
Flag = Annotated[bool, PlainValidator(_flag), WithJsonSchema({"type": ["boolean", "string"]})]
Size = Annotated[int, PlainValidator(_size), WithJsonSchema({"type": ["integer", "string"], "examples": ["64m"]})]
Duration = Annotated[float, PlainValidator(_duration), WithJsonSchema({"type": ["number", "string"], "examples": ["1m30s"]})]
Umask = Annotated[
    int, PlainValidator(lambda value: _octal(value, 0o777, "0022")), WithJsonSchema({"type": ["integer", "string"]})
]
Mode = Annotated[
    int, PlainValidator(lambda value: _octal(value, 0o7777, "1777")), WithJsonSchema({"type": ["integer", "string"]})
]
Signal = Annotated[int, PlainValidator(_signal), WithJsonSchema({"type": ["integer", "string"]})]
Code = Annotated[int | str, PlainValidator(_code), WithJsonSchema({"type": ["integer", "string"]})]
Capability = Annotated[str, PlainValidator(_capability), WithJsonSchema(_STRING)]
Cpuset = Annotated[
    frozenset[int], PlainValidator(lambda value: parse_cpuset(_text(value))), WithJsonSchema({"type": ["integer", "string"]})
]


# --- Forms: a field that may be written shorter is made long first. ---


@dataclass(frozen=True, eq=False)
class Short:
    """`expand` makes a field's short form long; `schema` describes the short form."""

    expand: Callable[[Any], Any]
    schema: dict[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self.expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"anyOf": [self.schema, handler(schema)]}


_STRINGS: dict[str, Any] = {"type": "array", "items": {"type": "string"}}


def split_words(value: Any) -> Any:
    """Text as shell words; everything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return shlex.split(value)
    except ValueError:
        raise ValueError(f"a quote or backslash is not finished in {shown(value)}") from None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """``["A=1", "B"]`` → ``{"A": "1", "B": None}``."""
    if not isinstance(value, list):
        return value
    items = [_text(item).partition("=") for item in value]
    return {name: text if equals else None for name, equals, text in items}


def _dependencies(value: Any) -> Any:
    return {_text(name): {} for name in value} if isinstance(value, list) else value


def _env_files(value: Any) -> Any:
    return [{"path": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value


def _pair(value: Any) -> Any:
    return {"soft": value, "hard": value} if isinstance(value, str) else value


def _volume_form(value: Any) -> Any:
    return _split_volume(value) if isinstance(value, str) else value


def _split_volume(text: str) -> dict[str, str]:
    parts = text.split(":")
    if len(parts) == 1:
        raise ValueError(f'"{text}" has no source; expected SOURCE:TARGET[:ro], or use "tmpfs" for space of its own')
    if len(parts) > 3 or not all(parts):
        raise ValueError(f'"{text}" is not a volume; expected SOURCE:TARGET[:ro]')
    if len(parts) == 3 and parts[2] not in ("ro", "rw"):
        raise ValueError(f'"{text}": the option "{parts[2]}" is not supported; expected ro or rw')
    return {"type": "bind", "source": parts[0], "target": parts[1], "read_only": str(parts[2:] == ["ro"]).lower()}


class _Model(BaseModel):
    # Deferred: of each model that others have in them, the validator is only made as a part of theirs.
    model_config: ClassVar[ConfigDict] = ConfigDict(
        defer_build=True, extra="forbid", frozen=True, json_schema_extra={"patternProperties": {"^x-": {}}}
    )
    elsewhere: ClassVar[Mapping[str, str]] = {}
    """Keys that this model lacks and others have, and what to do instead."""

    @model_validator(mode="before")
    @classmethod
    def _sort_keys(cls, data: Any) -> Any:
        """Drops x- keys and keys without a value; an unknown key's value becomes the text that says so."""
        if not isinstance(data, dict):
            raise ValueError(f"expected keys and values, got {shown(data)}")
        known = {item.alias or name for name, item in cls.model_fields.items()}
        return {
            key: value if key in known else cls.elsewhere.get(key) or _unknown(key, known)
            for key, value in data.items()
            if not key.startswith("x-") and not (value is None and key in known)
        }


def _unknown(key: str, known: Iterable[str]) -> str:
    return _UNSUPPORTED.get(key) or f"there is no such key{near(key, known)}"


class _EnvFile(_Model):
    path: Text
    required: Flag = True


class _TmpfsOptions(_Model):
    size: Size | None = None
    mode: Mode | None = None
    inodes: Whole | None = None
    executable: Flag | None = None


class _Volume(_Model):
    type: Annotated[str, PlainValidator(_choice("bind", "tmpfs")), WithJsonSchema({"enum": ["bind", "tmpfs"]})] = "bind"
    source: Text | None = None
    target: Text
    read_only: Flag = False
    tmpfs: _TmpfsOptions | None = None


class _Ulimit(_Model):
    soft: Whole
    hard: Whole


class _Rate(_Model):
    path: Text
    rate: Size


class _Blkio(_Model):
    weight: Whole | None = None
    device_read_bps: tuple[_Rate, ...] = ()
    device_write_bps: tuple[_Rate, ...] = ()
    device_read_iops: tuple[_Rate, ...] = ()
    device_write_iops: tuple[_Rate, ...] = ()


class _Seccomp(_Model):
    action: Annotated[
        str,
        PlainValidator(_choice(*get_args(words.SeccompAction))),
        WithJsonSchema({"enum": list(get_args(words.SeccompAction))}),
    ]


class _SyscallRule(_Model):
    syscall: Text
    action: Annotated[
        str, PlainValidator(_choice(*get_args(words.RuleAction))), WithJsonSchema({"enum": list(get_args(words.RuleAction))})
    ]
    args: Annotated[tuple[Text, ...], Short(_listed, _STRING)] = ()
    path: Text = ""
    address: Text = ""


class _Storage(_Model):
    size: Size | None = None
    inodes: Whole | None = None


_WHEN = get_args(words.Condition)


class _Dependency(_Model):
    condition: Annotated[str, PlainValidator(_choice(*_WHEN)), WithJsonSchema({"enum": list(_WHEN)})] = "service_started"
    restart: Flag = False
    required: Flag = True


def _host_of(text: str) -> str:
    host = text.removeprefix("[").removesuffix("]") if text.startswith("[") else text
    return "127.0.0.1" if host.lower() == "localhost" else host


_ENDPOINT = r"(?:(?P<host>\[[0-9a-fA-F:.]+\]|[^:/\[\]?#@]+))"


def _url(value: Any) -> Any:
    """``"http://HOST[:PORT][/PATH]"`` made long."""
    if not isinstance(value, str):
        return value
    if value.startswith("https:"):
        raise ValueError('TLS is not spoken here; use "test" with a program of the container, or "tcp"')
    match = re.fullmatch(rf"http://{_ENDPOINT}(?::(?P<port>[0-9]{{1,5}}))?(?P<path>/[^#]*)?", value)
    if match is None:
        raise ValueError(f"expected http://HOST[:PORT][/PATH], got {shown(value)}")
    return {"host": match["host"], "port": match["port"] or "80", "path": match["path"] or "/"}


def _host_and_port(value: Any) -> Any:
    """``"5432"`` and ``"HOST:5432"`` made long."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(rf"(?:{_ENDPOINT}:)?(?P<port>[0-9]{{1,5}})", value)
    if match is None:
        raise ValueError(f"expected a port or HOST:PORT, got {shown(value)}")
    return {"port": match["port"], **({"host": match["host"]} if match["host"] else {})}


class _Tcp(_Model):
    port: Whole
    host: Annotated[str, PlainValidator(lambda value: _host_of(_text(value))), WithJsonSchema(_STRING)] | None = Field(
        None, description="an IP address or localhost, in the container's network; default: 127.0.0.1"
    )


class _Http(_Tcp):
    path: Text | None = None
    headers: Annotated[dict[str, Text], Short(_pairs, _STRINGS)] | None = None
    status: Annotated[tuple[Whole, ...], Short(_listed, {"type": "integer"})] | None = Field(
        None, description="good answers; default: 200 to 399. Redirects are not followed"
    )


class _Healthcheck(_Model):
    test: Annotated[tuple[Text, ...], Short(lambda value: ["CMD-SHELL", value] if isinstance(value, str) else value, _STRING)] | (
        None
    ) = Field(None, description="CMD and a program with arguments, CMD-SHELL and a line for /bin/sh (as text, too), or NONE")
    http: Annotated[_Http, Short(_url, _STRING)] | None = Field(
        None, description="instead of test: a GET in the container's network; as text http://HOST[:PORT][/PATH]"
    )
    tcp: Annotated[_Tcp, Short(_host_and_port, {"type": ["integer", "string"]})] | None = Field(
        None, description="instead of test: a connection in the container's network; as text PORT or HOST:PORT"
    )
    interval: Duration | None = None
    timeout: Duration | None = None
    retries: Whole | None = None
    start_period: Duration | None = None
    start_interval: Duration | None = None
    disable: Flag = False


class _SecretSource(_Model):
    """Where a secret comes from."""

    file: Text | None = Field(None, description="relative to this file; read at each start")
    environment: Text | None = Field(None, description="a variable's name")
    name: Annotated[Any, WithJsonSchema({})] = None
    external: Annotated[bool, PlainValidator(lambda value: _not_external(value)), WithJsonSchema({"const": False})] = False


def _not_external(value: Any) -> bool:
    if _flag(value):
        raise ValueError('not supported: there is nothing outside to keep secrets; use "file" or "environment"')
    return False


def _secret_form(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class _SecretUse(_Model):
    source: Text | None = Field(None, description="the name of one of the project's")
    file: Text | None = Field(None, description="instead of source: relative to this file; read at each start")
    environment: Text | None = Field(None, description="instead of source: a variable's name")
    target: Text | None = Field(None, description="the file's name in /run/secrets; default: that of the source")
    uid: Whole | None = Field(None, description="default: the container's user")
    gid: Whole | None = None
    mode: Mode | None = Field(None, description="octal; default: 0444")


class _Hook(_Model):
    command: Annotated[tuple[Text, ...], Short(split_words, _STRING)]
    user: Text | None = None
    working_dir: Text | None = None
    environment: Annotated[dict[str, Text | None], Short(_pairs, _STRINGS)] | None = None


class _Schedule(_Model):
    cron: Text | None = Field(None, description="minute hour day month weekday, or @daily and the like")
    interval: Duration | None = None
    timezone: Text | None = Field(None, description="default: UTC")
    overlap: Annotated[str, PlainValidator(_overlap), WithJsonSchema({"enum": list(get_args(words.Overlap))})] | None = Field(
        None, description="what becomes of a time that comes while it still runs; default: skip"
    )


class _LogOptions(_Model):
    max_size: Size | None = Field(None, alias="max-size", description="of a file, which is rotated then")
    max_file: Whole | None = Field(None, alias="max-file", description="files, the current one included")
    max_age: Duration | None = Field(None, alias="max-age", description="of a file's first line; the file is rotated then")
    compress: Flag | None = Field(None, description="rotated files, by gzip")
    max_rate: Size | None = Field(None, alias="max-rate", description="bytes a second; what is more is counted and not kept")
    syslog_address: Text | None = Field(None, alias="syslog-address", description="unixgram:///PATH or udp://IP[:PORT]")
    syslog_format: Text | None = Field(None, alias="syslog-format", description="rfc3164 or rfc5424")
    syslog_facility: Text | None = Field(None, alias="syslog-facility")
    tag: Text | None = Field(None, description="how it is called in syslog and journal; default: its name")


class _Logging(_Model):
    driver: Annotated[str, PlainValidator(_driver), WithJsonSchema({"enum": [*_DRIVERS, "file"]})] = "local"
    options: _LogOptions | None = None


class _Backoff(_Model):
    initial: Duration | None = None
    factor: Real | None = None
    max: Duration | None = None
    jitter: Real | None = None
    reset_after: Duration | None = None


class _StartLimit(_Model):
    burst: Whole | None = None
    interval: Duration | None = None


_CONDITIONS = {"none": "no", "on-failure": "on-failure", "any": "always"}


class _DeployRestart(_Model):
    condition: Annotated[str, PlainValidator(_choice(*_CONDITIONS)), WithJsonSchema({"enum": list(_CONDITIONS)})] = "any"
    delay: Duration | None = None
    max_attempts: Whole | None = None
    window: Duration | None = None


class _DeployLimits(_Model):
    cpus: Real | None = None
    memory: Size | None = None
    pids: Whole | None = None


class _Resources(_Model):
    limits: _DeployLimits | None = None


class _Deploy(_Model):
    replicas: Whole | None = None
    restart_policy: _DeployRestart | None = None
    resources: _Resources | None = None
    labels: Annotated[Any, WithJsonSchema({})] = None


_Words = Annotated[tuple[Text, ...], Short(split_words, _STRING)]
_Codes = Annotated[tuple[Code, ...], Short(_listed, {"type": ["integer", "string"]})]
_ILL = get_args(words.OnUnhealthy)
_List = Annotated[tuple[Text, ...], Short(_listed, _STRING)]


class ContainerModel(_Model):
    """What services and jobs say about their container."""

    command: _Words | None = Field(None, description="program and arguments; text is split as shell words")
    entrypoint: _Words | None = Field(None, description="put before command")
    environment: Annotated[dict[str, Text | None], Short(_pairs, _STRINGS)] | None = None
    env_file: (
        Annotated[tuple[_EnvFile, ...], Short(lambda value: _env_files(_listed(value)), {"anyOf": [_STRING, _STRINGS]})] | None
    ) = None
    working_dir: Text | None = None
    user: Text | None = Field(None, description="uid, uid:gid, name or name:group")
    group_add: tuple[Text, ...] | None = None
    hostname: Text | None = None
    rootfs: Text | None = Field(None, description="a directory or tarball, relative to this file; default: the host view")
    root_method: (
        Annotated[str, PlainValidator(_choice("pivot", "chroot")), WithJsonSchema({"enum": ["pivot", "chroot"]})] | None
    ) = None
    read_only: Flag | None = Field(None, description="no writable layer")
    storage_opt: _Storage | None = Field(None, description="bounds of the writable layer")
    volumes: tuple[Annotated[_Volume, Short(_volume_form, _STRING)] | None, ...] | None = None
    tmpfs: _List | None = Field(None, description="PATH[:size=64m,mode=1777,nr_inodes=65536,noexec]")
    namespaces: tuple[Text, ...] | None = None
    userns_mode: Text | None = Field(
        None, description="ids: auto (a range of its own), host (the same), keep-id (who calls sudo is the same inside)"
    )
    network_mode: Text | None = Field(None, description="none, host or service:NAME")
    pids_limit: Whole | None = Field(None, description="processes and threads at most; -1 is unlimited")
    mem_limit: Size | None = None
    memswap_limit: Size | None = Field(None, description="must equal mem_limit: containers never get swap")
    cpus: Real | None = None
    cpuset: Cpuset | None = None
    blkio_config: _Blkio | None = None
    ulimits: dict[str, Annotated[_Ulimit, Short(_pair, {"type": ["integer", "string"]})]] | None = None
    shm_size: Size | None = None
    cap_add: tuple[Capability, ...] | None = Field(None, description="kept, whoever the user is; ALL are all")
    cap_drop: tuple[Capability, ...] | None = Field(
        None, description="of a service's default ones, which only root has, and of ALL; ALL leaves those of cap_add"
    )
    security_opt: tuple[Annotated[tuple[str, Any], PlainValidator(_security), WithJsonSchema(_STRING)], ...] | None = Field(
        None,
        description="no-new-privileges:BOOL; seccomp=default, unconfined or a profile's file, relative to this file; "
        "landlock=default or unconfined; network=new; proc-opts=hidepid=2,subset=pid",
    )
    seccomp: _Seccomp | None = Field(
        None, description="what happens on a call that the filter refuses: errno, kill, log or trace"
    )
    on_syscall: tuple[_SyscallRule, ...] | None = Field(
        None, description="rules before the profile's; the first that fits decides"
    )
    umask: Umask | None = Field(None, description="octal")
    oom_score_adj: Whole | None = None
    stop_signal: Signal | None = None
    stop_grace_period: Duration | None = None
    orphan_grace_period: Duration | None = Field(None, description="what other processes get once the command has ended")
    signal_group: Flag | None = Field(None, description="signals go to the command's process group")
    init: Annotated[bool, PlainValidator(_init), WithJsonSchema({"const": True})] | None = None
    tty: Flag | None = None
    stdin_open: Flag | None = None
    timeout: Duration | None = Field(None, description="wall time after which everything is killed")
    deploy: _Deploy | None = None
    labels: Annotated[dict[str, Text | None], Short(_pairs, _STRINGS)] | None = None
    annotations: Annotated[Any, WithJsonSchema({})] = None


class _Service(ContainerModel):
    """One service: a container and when to start it."""

    restart: (
        Annotated[tuple[str, int | None], PlainValidator(_restart), WithJsonSchema({"type": ["string", "boolean"]})] | None
    ) = Field(None, description="no, always, on-failure[:N] or unless-stopped")
    backoff: _Backoff | None = Field(None, description="delay between restarts")
    start_limit: _StartLimit | None = Field(None, description="more starts than burst within interval: failed")
    success_exit_codes: Annotated[tuple[Whole, ...], Short(_listed, {"type": "integer"})] | None = None
    restart_prevent_exit_codes: _Codes | None = Field(
        None, description="exit codes and signals that are never followed by a restart"
    )
    restart_force_exit_codes: _Codes | None = Field(None, description="exit codes and signals that always are")
    schedule: _Schedule | None = Field(None, description="run again and again at its time")
    healthcheck: _Healthcheck | None = None
    on_unhealthy: Annotated[str, PlainValidator(_choice(*_ILL)), WithJsonSchema({"enum": list(_ILL)})] | None = Field(
        None, description="none, restart (with backoff and limits) or stop"
    )
    ready_log: Text | None = Field(None, description="a regular expression for the line of output that says it is ready")
    ready_notify: Flag | None = Field(None, description="it says that it is ready by READY=1 on its NOTIFY_SOCKET (sd_notify)")
    ready_fd: Whole | None = Field(None, description="it says that it is ready by a newline on this fd, 3 to 255 (s6)")
    start_timeout: Duration | None = Field(
        None, description="time in which it has to say that it is ready, else its start has failed; default: 1m30s, 0: any time"
    )
    watchdog: Duration | None = Field(
        None, description="more time than this without WATCHDOG=1 on its NOTIFY_SOCKET ends it, as a failure"
    )
    secrets: tuple[Annotated[_SecretUse, Short(_secret_form, _STRING)], ...] | None = Field(
        None, description="files in /run/secrets, in memory only"
    )
    post_start: tuple[_Hook, ...] | None = Field(None, description="commands run inside once it has started")
    pre_stop: tuple[_Hook, ...] | None = Field(None, description="commands run inside before it is stopped")
    scale: Whole | None = Field(None, description="copies, called NAME-1 to NAME-N")
    profiles: (
        Annotated[tuple[Annotated[str, PlainValidator(_profile), WithJsonSchema(_STRING)], ...], Short(_listed, _STRING)] | None
    ) = Field(None, description="only there when one of these is active")
    depends_on: Annotated[dict[str, _Dependency], Short(_dependencies, _STRINGS)] | None = None
    logging: _Logging | None = None


class _ServiceFile(_Service):
    """A file that is one service."""

    name: Text | None = Field(None, description="default: the file's name")


class _ServicesFile(_Model):
    """A file with a map of services, as compose has it."""

    elsewhere: ClassVar[Mapping[str, str]] = {
        "volumes": f'named volumes are {_LATER}; mount a directory by a service\'s "volumes"',
    }

    services: dict[str, _Service]
    name: Text | None = Field(None, description="the project's name")
    secrets: dict[str, _SecretSource] | None = Field(None, description="by name, for the services of all files")
    version: Annotated[Any, WithJsonSchema({})] = None


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a configuration file, for editors."""
    adapter: TypeAdapter[Any] = TypeAdapter(_ServicesFile | _ServiceFile)
    schema = adapter.json_schema()
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "tinyvisor configuration"}
    return cast(dict[str, Any], json.loads(json.dumps(title | schema)))


# --- What the command line shares. ---


def parse_volume(text: str, base_dir: Path) -> Volume:
    """A volume from ``"SOURCE:TARGET[:ro|rw]"``; a relative SOURCE is relative to `base_dir`.

    Raises:
        ValueError: not such a text, a named volume, or there is no SOURCE.
    """
    with _as_text():
        return _build_volume(_Volume.model_validate(_split_volume(text)), base_dir)
    raise AssertionError


def parse_tmpfs(text: str) -> Tmpfs:
    """A tmpfs from ``"/x:size=1m,mode=1777,nr_inodes=1000,noexec"``.

    Raises:
        ValueError: not such a text.
    """
    target, _, options = text.partition(":")
    found: dict[str, Any] = {}
    for option in filter(None, options.split(",")):
        name, equals, value = option.partition("=")
        try:
            if name == "size" and equals:
                found["size"] = _size(value)
            elif name == "mode" and equals:
                found["mode"] = _octal(value, 0o7777, "1777")
            elif name in ("inodes", "nr_inodes") and equals:
                found["inodes"] = _whole(value)
            elif name in ("exec", "noexec") and not equals:
                found["executable"] = name == "exec"
            elif name not in ("rw", "nosuid", "nodev") or equals:
                known = ("size", "mode", "inodes", "nr_inodes", "exec", "noexec")
                raise ValueError(f"not supported; expected size=, mode=, nr_inodes=, exec or noexec{near(name, known)}")
        except ValueError as error:
            raise ValueError(f'"{option}": {error}') from None
    with _as_text():
        return Tmpfs(target, **found)
    raise AssertionError


def parse_ulimit(text: str) -> tuple[str, Ulimit]:
    """A limit's name and values from ``"nofile=1024:2048"`` or ``"nofile=1024"``; -1 is unlimited.

    Raises:
        ValueError: not such a text.
    """
    name, equals, value = text.partition("=")
    soft, _, hard = value.partition(":")
    if not equals:
        raise ValueError(f"expected NAME=SOFT[:HARD] such as nofile=1024:2048, got {shown(text)}")
    _check_ulimit(name)
    with _as_text():
        return name, Ulimit(_whole(soft), _whole(hard or soft))
    raise AssertionError


def _shared(value: _T) -> _T:
    """The first that equals it: of a thousand services most are alike in most."""
    return cast(_T, _first_of_them(value))


@lru_cache(maxsize=128)
def _first_of_them(value: Any) -> Any:
    return value


def parse_capabilities(add: Iterable[str], drop: Iterable[str] = ()) -> frozenset[str]:
    """The capabilities kept: `add` without `drop`. ``ALL`` works in both; with ``drop: ALL`` those named in `add` stay.

    Raises:
        ValueError: no such capability.
    """
    added, dropped = set(map(_capability, add)), set(map(_capability, drop))
    if "ALL" in dropped:
        return frozenset(added - {"ALL"} - dropped)
    return frozenset((set(words.CAPABILITIES) if "ALL" in added else added) - dropped)


def parse_root_capabilities(default: frozenset[str], add: Iterable[str], drop: Iterable[str] = ()) -> frozenset[str]:
    """What is left to root of `default`, beside what `parse_capabilities` keeps.

    Raises:
        ValueError: no such capability.
    """
    changed = {*map(_capability, add), *map(_capability, drop)}
    return frozenset() if "ALL" in changed else default - changed


def _root_capabilities(own_ids: bool, own_network: bool) -> frozenset[str]:
    """What root has in a service of which the file says nothing else: nothing where it is the host's root. Over a network that is
    the host's or another service's it has no power."""
    if not own_ids:
        return frozenset()
    return words.SERVICE_CAPABILITIES - (set() if own_network else {"NET_BIND_SERVICE"})


def read_env_file(path: Path, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """An env file's variables. `environ` serves ``${…}`` in values, and names that stand without a value.

    Raises:
        ValueError: the file can't be read or has a bad line; one line of text that names the file.
    """
    try:
        return parse_env(read_text(path), environ or {})
    except TextError as error:
        raise ValueError(f"{path}:{error.mark.line}: {error}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {_os_text(error)}") from None


def _os_text(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


@contextmanager
def _as_text() -> Iterator[None]:
    """Raises a `SpecError` again as a plain ValueError without the field."""
    try:
        yield
    except SpecError as error:
        raise ValueError(error.problem) from None


def _check_ulimit(name: str) -> None:
    if name not in words.ULIMITS:
        raise ValueError(f"there is no such limit{near(name, words.ULIMITS)}; expected one of {', '.join(words.ULIMITS)}")


def _build_volume(model: _Volume, base_dir: Path) -> Volume:
    source = model.source
    if not source:
        raise ValueError('"source" is required for a bind mount')
    if model.tmpfs is not None:
        raise ValueError('"tmpfs" needs "type: tmpfs"')
    if not source.startswith(("/", "./", "../", "~")) and source not in (".", ".."):
        raise ValueError(f'named volumes are {_LATER}; write "./{source}" for a path next to the file')
    path = _resolve(source, base_dir)
    if not os.path.exists(path):
        raise ValueError(f'there is no "{path}"')
    return Volume(path, model.target, model.read_only)


def _build_tmpfs(model: _Volume) -> Tmpfs:
    if model.source is not None or model.read_only:
        raise ValueError('a tmpfs has neither "source" nor "read_only"')
    return Tmpfs(model.target, **(model.tmpfs.model_dump(exclude_none=True) if model.tmpfs else {}))


def _resolve(path: str, base_dir: Path) -> Path:
    if "\0" in path:
        raise ValueError("must not contain NUL")
    return Path(os.path.abspath(os.path.join(base_dir, os.path.expanduser(path))))


def _build_rootfs(text: str, base_dir: Path) -> Path:
    path = _resolve(text, base_dir)
    if not os.path.exists(path):
        raise ValueError(f'there is no "{path}"')
    if not os.path.isdir(path) and not (os.path.isfile(path) and path.name.endswith(ARCHIVES)):
        raise ValueError(f'"{path}" is neither a directory nor a tarball ({", ".join(ARCHIVES)})')
    return path


# --- Files. ---


@dataclass(slots=True)
class SourceFile:
    """One configuration file while it is read.

    Attributes:
        path: as the user named it.
        environ: the environment with `.env` below it.
        problems: of the whole load, this file's among them.
        unknown: places whose variables could not be replaced: nothing more can be said about them.
    """

    path: Path
    environ: Mapping[str, str]
    problems: list[ConfigProblem]
    warn: Callable[[str], None]
    root: Node = field(default_factory=lambda: Node(Mark(1, 1), None))
    unknown: set[Mark] = field(default_factory=set)

    @property
    def base_dir(self) -> Path:
        return Path(os.path.abspath(self.path)).parent

    def report(self, mark: Mark, key: str, problem: str) -> None:
        if mark not in self.unknown:
            self.problems.append(ConfigProblem(self.path, mark.line, mark.column, one_line(key), one_line(problem)))

    def report_at(self, path: Path_, problem: str) -> None:
        """Reports at the key at `path`, or at the nearest one above it that is in the file."""
        mark, depth = self.root.find(path)
        missing = path[depth : depth + 1]
        if missing and not (isinstance(missing[0], str) and isinstance(self.root.at(path[:depth]).value, dict)):
            missing = ()
        self.report(mark, _dotted(path[:depth] + missing), problem)

    def has(self, path: Path_) -> bool:
        return self.root.find(path)[1] == len(path)

    def place(self, path: Path_) -> str:
        return f"{self.path}:{self.root.find(path)[0].line}"


def _dotted(path: Path_) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def one_line(text: str) -> str:
    """`text` with everything escaped that is not printable, so that no file can move the terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "replace").decode() for char in text)


def interpolate(file: SourceFile, node: Node, path: Path_, mark: Mark, variables: Variables) -> Node:
    """`node` with variables replaced in values; keys, and what is below x- keys, stay."""
    if isinstance(node.value, dict):
        entries = {}
        for key, entry in node.value.items():
            if not key.startswith("x-") or path[-1:] == ("environment",):
                entry = entry._replace(node=interpolate(file, entry.node, (*path, key), entry.mark, variables))
            entries[key] = entry
        return Node(node.mark, entries)
    if isinstance(node.value, list):
        return Node(node.mark, [interpolate(file, item, (*path, i), item.mark, variables) for i, item in enumerate(node.value)])
    if node.value is None:
        return node
    where = f"{file.path}:{mark.line}:{mark.column}: {one_line(_dotted(path))}"
    try:
        text = variables.expand(
            node.value, lambda name: file.warn(f'{where}: the variable "{name}" is not set; it is replaced by nothing')
        )
    except ValueError as error:
        file.report(mark, _dotted(path), str(error))
        file.unknown.add(mark)
        text = ""
    return Node(node.mark, text)


def _read(file: SourceFile) -> bool:
    """Fills `file.root`; False (and a problem) where the file can't be used."""
    try:
        file.root = parse_yaml(read_text(file.path), lambda mark, problem: file.report(mark, "", problem))
    except TextError as error:
        file.report(error.mark, "", str(error))
        return False
    except (OSError, ValueError) as error:
        file.report(Mark(1, 1), "", f"can't be read: {_os_text(error)}")
        return False
    if not isinstance(file.root.value, dict):
        found = "the file is empty" if file.root.value is None else f"found {shown(file.root.plain())}"
        file.report(file.root.mark, "", f'expected a service\'s keys, or "services:" with several services; {found}')
        return False
    file.root = interpolate(file, file.root, (), file.root.mark, Variables(file.environ))
    return True


# --- Services. ---


@dataclass(frozen=True, slots=True)
class _Entry:
    """A service in its file; `service` is None where it could not be built."""

    file: SourceFile
    path: Path_
    name: str
    model: _Service
    service: Service | None


def validate(file: SourceFile, path: Path_, data: Any, model: type[_Model]) -> tuple[Any, frozenset[Step]]:
    """The model of `data` without what is wrong, and the top keys where that was; None where nothing of it can be used."""
    bad: set[Step] = set()
    first = True
    while True:
        try:
            return model.model_validate(data), frozenset(bad)
        except ValidationError as error:
            items = error.errors(include_url=False)
        for item in items:
            if first:
                file.report_at(path + tuple(item["loc"]), _problem(cast(dict[str, Any], item)))
            bad.update(item["loc"][:1])
        if not sum(_prune(data, tuple(item["loc"])) for item in items):
            return None, frozenset()
        first = False


def _prune(data: Any, path: Path_) -> bool:
    """Takes what is at `path` out of `data`: a volume, or else the last key before a list; False where it is not there."""
    last: tuple[dict[Step, Any], Step] | None = None
    for depth, step in enumerate(path):
        if isinstance(data, list) and last is not None and last[1] == "volumes" and isinstance(step, int):
            data[step] = None
            return True
        if not isinstance(data, dict):
            break
        if step not in data:
            if depth < len(path) - 1:
                return False  # gone before
            break
        last, data = (data, step), data[step]
    if last is not None:
        last[0].pop(last[1])
    return last is not None


def _problem(error: dict[str, Any]) -> str:
    """A pydantic error in our words."""
    match error["type"]:
        case "extra_forbidden":
            return str(error["input"])
        case "value_error":
            reason = error["ctx"]["error"]
            return reason.problem if isinstance(reason, SpecError) else str(reason)
        case "missing":
            return "is required"
        case "tuple_type":
            return f"expected a list, got {shown(error['input'])}"
        case "dict_type":
            return f"expected keys and values, got {shown(error['input'])}"
        case _:
            return str(error["msg"])


_PASSED_ON = (
    "working_dir", "user", "group_add", "hostname", "root_method", "read_only", "namespaces", "userns_mode",
    "network_mode", "cpuset",
    "shm_size", "umask", "oom_score_adj", "stop_signal", "stop_grace_period", "orphan_grace_period", "signal_group", "tty",
    "stdin_open", "timeout",
)  # fmt: skip
"""Keys whose checked value is the `Spec` field of the same name."""

_FIELDS = {
    "storage_opt.size": "storage_size", "storage_opt.inodes": "storage_inodes", "cap_add": "capabilities",
    "security_opt": "seccomp", "seccomp.action": "seccomp_action",
}  # fmt: skip
"""`SpecError.field` → `Spec` field, where they differ."""

_ELSEWHERE: Mapping[str, Path_] = {
    "volumes": ("tmpfs",),
    "cpus": ("deploy", "resources", "limits", "cpus"),
    "mem_limit": ("deploy", "resources", "limits", "memory"),
    "pids_limit": ("deploy", "resources", "limits", "pids"),
    "restart": ("deploy", "restart_policy", "max_attempts"),
    "scale": ("deploy", "replicas"),
    "backoff.initial": ("deploy", "restart_policy", "delay"),
    "backoff.reset_after": ("deploy", "restart_policy", "window"),
}
"""Where else a field's value can have come from."""


class SpecBuilder:
    """Makes a `Spec` of a model; what is wrong is reported and left at its default."""

    def __init__(self, file: SourceFile, path: Path_, model: ContainerModel, name: str, bad: frozenset[Step]) -> None:
        self._file, self._path, self._model, self._name, self._bad = file, path, model, name, bad
        self._before = len(file.problems)

    def _filled_in(self, environment: Mapping[str, str | None]) -> dict[str, str]:
        """With our own variables where there is no value."""
        given = {name: self._file.environ.get(name) if value is None else value for name, value in environment.items()}
        return {name: value for name, value in given.items() if value is not None}

    @contextmanager
    def _at(self, *path: Step) -> Iterator[None]:
        """Reports what is raised inside at `path`."""
        try:
            yield
        except SpecError as error:
            self._file.report_at(self._path + path, error.problem)
        except ValueError as error:
            self._file.report_at(self._path + path, str(error))

    @contextmanager
    def _at_field(self, *path: Step) -> Iterator[None]:
        """Reports a `SpecError` raised inside at its field below `path`."""
        try:
            yield
        except SpecError as error:
            self._file.report_at((*self._path, *path, *error.field.split(".")), error.problem)

    def checked(self, kind: type[Any], values: dict[str, Any]) -> Any:
        """``kind(**values)``, where a value that it refuses is reported and left out; None where that does not help."""
        while True:
            try:
                return kind(**values)
            except SpecError as error:
                path: Path_ = tuple(error.field.split("."))
                if not self._file.has(self._path + path) and error.field in _ELSEWHERE:
                    elsewhere = _ELSEWHERE[error.field]
                    path = elsewhere if self._file.has(self._path + elsewhere) else path
                self._file.report_at(self._path + path, error.problem)
                refused = self._refused(kind, error.field)
                if refused not in values or refused == "command":
                    return None
                del values[refused]

    @staticmethod
    def _refused(kind: type[Any], name: str) -> str:
        names = {item.name for item in fields(kind)}
        candidates = (_FIELDS.get(name), name, name.rpartition(".")[2], name.partition(".")[0].removesuffix("_config"))
        return next((item for item in candidates if item in names), "")

    def spec_fields(self) -> dict[str, Any]:
        model, base_dir = self._model, self._file.base_dir
        values = {name: value for name in _PASSED_ON if (value := getattr(model, name)) is not None}
        values |= {"name": self._name, "command": self._command(), "environment": self._environment()}
        if model.rootfs is not None:
            with self._at("rootfs"):
                values["rootfs"] = _build_rootfs(model.rootfs, base_dir)
        if model.storage_opt:
            values |= {f"storage_{name}": value for name, value in model.storage_opt.model_dump(exclude_none=True).items()}
        if model.blkio_config:
            with self._at("blkio_config"):
                values["blkio"] = self.checked(Blkio, _blkio_fields(model.blkio_config))
        for index, option in enumerate(model.security_opt or ()):
            with self._at("security_opt", index):
                values |= [_build_security(option, base_dir)]
        if model.seccomp:
            values["seccomp_action"] = model.seccomp.action
        values |= self._on_syscall()
        values["capabilities"] = _shared(parse_capabilities(model.cap_add or (), model.cap_drop or ()))
        values |= self._mounts() | {"ulimits": self._ulimits()} | self._limits()
        return values

    def _on_syscall(self) -> dict[str, Any]:
        rules: list[SyscallRule] = []
        for index, item in enumerate(self._model.on_syscall or ()):
            try:
                rules.append(SyscallRule(**item.model_dump()))
            except SpecError as error:
                self._file.report_at((*self._path, "on_syscall", index, error.field.rpartition(".")[2]), error.problem)
        return {"on_syscall": tuple(rules)} if rules else {}

    def _command(self) -> tuple[str, ...]:
        command = (*(self._model.entrypoint or ()), *(self._model.command or ()))
        if not command:
            programs = ("command", "entrypoint")
            if not any(key in programs or near(str(key), programs) for key in self._bad):
                self._file.report_at((*self._path, "command"), "expected a program to run")
            return ("-",)
        if self._model.entrypoint and "\0" in "".join(self._model.entrypoint):
            self._file.report_at((*self._path, "entrypoint"), "must not contain NUL")
            return ("-",)
        return command

    def _environment(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for index, item in enumerate(self._model.env_file or ()):
            with self._at("env_file", index):
                path = _resolve(item.path, self._file.base_dir)
                if item.required or os.path.exists(path):
                    found |= read_env_file(path, self._file.environ)
        return found | self._filled_in(self._model.environment or {})

    def _mounts(self) -> dict[str, Any]:
        volumes: list[Volume] = []
        tmpfs: list[Tmpfs] = []
        for index, text in enumerate(self._model.tmpfs or ()):
            with self._at("tmpfs", index):
                tmpfs.append(parse_tmpfs(text))
        for index, item in enumerate(self._model.volumes or ()):
            with self._at("volumes", index):
                if item is None:
                    continue  # reported before
                if item.type == "tmpfs":
                    tmpfs.append(_build_tmpfs(item))
                else:
                    volumes.append(_build_volume(item, self._file.base_dir))
        return {"volumes": tuple(volumes), "tmpfs": tuple(tmpfs)}

    def _ulimits(self) -> dict[str, Ulimit]:
        found: dict[str, Ulimit] = {}
        for name, item in (self._model.ulimits or {}).items():
            with self._at("ulimits", name):
                _check_ulimit(name)
                found[name] = Ulimit(item.soft, item.hard)
        return found

    def _limits(self) -> dict[str, Any]:
        """Limits that may stand in two places; both at once must agree, as compose has it."""
        model = self._model
        resources = model.deploy.resources if model.deploy else None
        deploy = (resources.limits if resources else None) or _DeployLimits()
        found: dict[str, Any] = {}
        for name, key, value, other in (
            ("cpus", "cpus", model.cpus, deploy.cpus),
            ("mem_limit", "memory", model.mem_limit, deploy.memory),
            ("pids_limit", "pids", model.pids_limit, deploy.pids),
        ):
            if value is not None and other is not None and value != other:
                self._file.report_at((*self._path, "deploy", "resources", "limits", key), f'differs from "{name}"')
            found[name] = other if value is None else value
        if found["pids_limit"] == -1:
            found["pids_limit"] = None
        if model.memswap_limit is not None and model.memswap_limit != found["mem_limit"]:
            self._file.report_at((*self._path, "memswap_limit"), 'must equal "mem_limit": containers never get swap')
        return found


def _secret_values(source: _SecretSource, file: SourceFile) -> dict[str, Any]:
    """Where a `Secret` comes from.

    Raises:
        ValueError: it is nowhere.
    """
    if (source.file is None) == (source.environment is None):
        raise ValueError("expected either file or environment")
    if source.file is not None:
        path = _resolve(source.file, file.base_dir)
        if not path.is_file():
            raise ValueError(f'"{path}" is not a file' if path.exists() else f'there is no "{path}"')
        return {"file": path}
    value = file.environ.get(source.environment or "")
    if value is None:
        raise ValueError(f'the variable "{source.environment}" is not set')
    return {"content": os.fsencode(value), "environment": source.environment}


_FILES, _SYSLOG = words.LOG_FILES, ("syslog",)
_LOG_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "max_size": _FILES, "max_file": _FILES, "max_age": _FILES, "compress": _FILES,
    "syslog_address": _SYSLOG, "syslog_format": _SYSLOG, "syslog_facility": _SYSLOG, "tag": ("syslog", "journald"),
    "max_rate": (*_FILES, "syslog", "journald"),
}  # fmt: skip
"""Which drivers an option is for."""


class _ServiceBuilder(SpecBuilder):
    """Makes a `Service`."""

    _model: _Service

    def __init__(
        self,
        file: SourceFile,
        path: Path_,
        model: _Service,
        name: str,
        bad: frozenset[Step],
        secrets: Mapping[str, dict[str, Any]],
    ) -> None:
        super().__init__(file, path, model, name, bad)
        self._known_secrets = secrets

    def service(self) -> Service | None:
        fields = self.spec_fields()
        spec = self.checked(Spec, fields | {"secrets": self._secrets(), "root_capabilities": self._root_capabilities(fields)})
        logs = self._logs()
        restart = self._restart()
        rest = self._supervision()
        if spec is None or restart is None or len(self._file.problems) > self._before:
            return None
        values = {"spec": spec, "restart": restart, "depends_on": self._dependencies(spec), **rest, **logs}
        service = cast(Service | None, self.checked(Service, values))
        return service if len(self._file.problems) == self._before else None

    def _root_capabilities(self, fields: Mapping[str, Any]) -> frozenset[str]:
        namespaces = fields.get("namespaces", words.DEFAULT_NAMESPACES)
        own_ids = fields.get("userns_mode") != "host" and "user" in namespaces
        default = _root_capabilities(own_ids, fields.get("network_mode", "none") == "none" and "net" in namespaces)
        return _shared(parse_root_capabilities(default, self._model.cap_add or (), self._model.cap_drop or ()))

    def _supervision(self) -> dict[str, Any]:
        model = self._model
        replicas = model.deploy.replicas if model.deploy else None
        if model.scale is not None and replicas is not None and model.scale != replicas:
            self._file.report_at((*self._path, "deploy", "replicas"), 'differs from "scale"')
        found = {
            "healthcheck": self._healthcheck(),
            "ready_log": model.ready_log,
            "ready_notify": model.ready_notify,
            "ready_fd": model.ready_fd,
            "watchdog": model.watchdog,
            "on_unhealthy": model.on_unhealthy,
            "post_start": self._hooks("post_start", model.post_start or ()),
            "pre_stop": self._hooks("pre_stop", model.pre_stop or ()),
            "scale": replicas if model.scale is None else model.scale,
            "labels": {name: value or "" for name, value in (model.labels or {}).items()},
        }
        found = {name: value for name, value in found.items() if value is not None}
        if model.start_timeout is not None:
            found["start_timeout"] = model.start_timeout or None
        return found

    def _healthcheck(self) -> Healthcheck | None:
        model = self._model.healthcheck
        if model is None or model.disable or model.test == ("NONE",) or "healthcheck" in self._bad:
            return None
        probes = {"http": self._http(model.http), "tcp": self._tcp(model.tcp)}
        values = model.model_dump(exclude_none=True, exclude={"test", "disable", "http", "tcp"})
        values |= {name: probe for name, probe in probes.items() if probe is not None}
        kind, *rest = model.test or ("",)
        if model.test is None and (model.http is not None or model.tcp is not None):
            if (model.http is None or probes["http"]) and (model.tcp is None or probes["tcp"]):
                return cast(Healthcheck | None, self.checked(Healthcheck, values))
            return None
        if not model.test:
            self._file.report_at((*self._path, "healthcheck", "test"), 'is required, or "http" or "tcp"')
            return None
        if kind == "CMD-SHELL" and len(rest) == 1:
            rest = ["/bin/sh", "-c", rest[0]]
        elif kind != "CMD" or not rest:
            what = f"expected NONE, CMD and a program, or CMD-SHELL and one line, got {shown(' '.join(model.test))}"
            self._file.report_at((*self._path, "healthcheck", "test"), what)
            return None
        return cast(Healthcheck | None, self.checked(Healthcheck, {"test": tuple(rest), **values}))

    def _tcp(self, model: _Tcp | None) -> Tcp | None:
        if model is not None:
            with self._at_field():
                return Tcp(**model.model_dump(exclude_none=True))
        return None

    def _http(self, model: _Http | None) -> Http | None:
        if model is not None:
            with self._at_field():
                return Http(**model.model_dump(exclude_none=True))
        return None

    def _secrets(self) -> tuple[Secret, ...]:
        found: list[Secret] = []
        for index, model in enumerate(self._model.secrets or ()):
            with self._at("secrets", index):
                found.append(self._secret(model))
        return tuple(found)

    def _secret(self, model: _SecretUse) -> Secret:
        if (model.source is not None) + (model.file is not None) + (model.environment is not None) != 1:
            raise ValueError("expected one of source, file and environment")
        if model.source is None:
            values = _secret_values(_SecretSource(file=model.file, environment=model.environment), self._file)
        elif (known := self._known_secrets.get(model.source)) is None:
            raise ValueError(f'there is no secret "{model.source}"{near(model.source, self._known_secrets)}')
        else:
            values = known
        name = model.target or model.source or model.environment or Path(model.file or "").name
        owner = model.model_dump(exclude_none=True, include={"uid", "gid", "mode"})
        return Secret(target=name.removeprefix(f"{words.SECRETS}/"), **values, **owner)

    def _hooks(self, key: str, models: Iterable[_Hook]) -> tuple[Hook, ...]:
        found: list[Hook] = []
        for index, model in enumerate(models):
            values = model.model_dump(exclude_none=True, exclude={"environment"})
            environment = self._filled_in(model.environment or {})
            with self._at_field(key, index):
                found.append(Hook(**values, environment=environment))
        return tuple(found)

    def _dependencies(self, spec: Spec) -> dict[str, Dependency]:
        needs = {name: Dependency(**item.model_dump()) for name, item in sorted((self._model.depends_on or {}).items())}
        kind, _, provider = spec.network_mode.partition(":")
        if kind == "service":
            needs.setdefault(provider, Dependency())
        return dict(sorted(needs.items()))

    def _logs(self) -> dict[str, Any]:
        model = self._model.logging
        if model is None:
            return {}
        found = {"driver": model.driver} | (model.options.model_dump(exclude_none=True) if model.options else {})
        for name in found.keys() & _LOG_OPTIONS.keys():
            if model.driver not in _LOG_OPTIONS[name]:
                where = (*self._path, "logging", "options", name.replace("_", "-"))
                self._file.report_at(where, f'is for the driver {_either(_LOG_OPTIONS[name])}, and this one is "{model.driver}"')
        if "max_file" in found:
            found["max_files"] = found.pop("max_file")
        with self._at_field():
            return {"logging": _shared(Logging(**found))}
        return {}

    def _restart(self) -> RestartPolicy | None:
        model = self._model
        condition, attempts = model.restart or ("no", None)
        backoff = model.backoff.model_dump(exclude_none=True) if model.backoff else {}
        deploy = model.deploy.restart_policy if model.deploy else None
        if deploy:
            condition, attempts = _CONDITIONS[deploy.condition], deploy.max_attempts
            backoff |= {
                name: value for name, value in (("initial", deploy.delay), ("reset_after", deploy.window)) if value is not None
            }
            if deploy.delay is not None and not (model.backoff and model.backoff.max is not None):
                backoff["max"] = max(deploy.delay, Backoff().max)
        limit = model.start_limit.model_dump(exclude_none=True) if model.start_limit else {}
        values: dict[str, Any] = {f"start_limit_{name}": value for name, value in limit.items()}
        values |= {"condition": condition, "max_attempts": attempts}
        for name in ("success_exit_codes", "restart_prevent_exit_codes", "restart_force_exit_codes"):
            values[name] = _shared(frozenset(getattr(model, name) or ()))
        if model.schedule is not None and "schedule" not in self._bad:
            with self._at_field():
                values["schedule"] = Schedule(**model.schedule.model_dump(exclude_none=True))
        values |= {"backoff": self.checked(Backoff, backoff) or Backoff()}
        return _shared(cast(RestartPolicy | None, self.checked(RestartPolicy, values)))


def _blkio_fields(model: _Blkio) -> dict[str, Any]:
    found: dict[str, Any] = {"weight": model.weight}
    for name in ("read_bps", "write_bps", "read_iops", "write_iops"):
        found[name] = tuple((item.path, item.rate) for item in getattr(model, f"device_{name}"))
    return found


def _build(
    file: SourceFile, path: Path_, name: str, data: Any, kind: type[_Service], secrets: Mapping[str, dict[str, Any]]
) -> _Entry | None:
    model, bad = validate(file, path, data, kind)
    if model is None:
        return None
    if isinstance(model, _ServiceFile) and model.name is not None:
        name, where = model.name, (*path, "name")
    else:
        where = path
    before = len(file.problems)
    if not words.NAME.fullmatch(name):
        file.report_at(where, f"{name!r} is not a name; expected 1 to 63 letters, digits, dots, dashes or underscores")
    valid = len(file.problems) == before
    service = _ServiceBuilder(file, path, model, name if valid else "invalid", bad, secrets).service()
    return _Entry(file, path, name, model, service if valid and not bad else None)


# --- The project. ---


class _Loader:
    """Collects files, services and problems; one use."""

    def __init__(self, environ: Mapping[str, str], warn: Callable[[str], None]) -> None:
        self._environ, self._warn = environ, warn
        self._dotenv: dict[Path, Mapping[str, str]] = {}
        self.problems: list[ConfigProblem] = []
        self.entries: dict[str, _Entry] = {}
        self.inactive: dict[str, _Entry] = {}
        """Services whose profiles are not active."""
        self.complete = True
        """Whether every file could be read, so that a service not found is a service not there."""
        self.name: str | None = None
        self._named_at = ""
        self._secrets: dict[str, dict[str, Any]] = {}
        self._secrets_at: dict[str, str] = {}
        self._unbuilt: list[tuple[SourceFile, Path_, str, Any, type[_Service]]] = []

    def add(self, path: Path) -> None:
        """A file or a directory."""
        try:
            files = _files(path)
        except OSError as error:
            self._report(path, f"can't be read: {_os_text(error)}")
            return
        except ValueError as error:
            self._report(path, str(error))
            return
        for file in files:
            if path.is_dir() and file.exists() and not file.is_file():
                self._report(file, "is not a regular file")  # a FIFO would wait for its writer; who names it wants that
            else:
                self._add_file(file)

    def _report(self, path: Path, problem: str, line: int = 1) -> None:
        self.complete = False
        self.problems.append(ConfigProblem(path, line, 1, "", one_line(problem)))

    def _add_file(self, path: Path) -> None:
        file = SourceFile(path, self._variables(path.parent), self.problems, self._warn)
        if not _read(file):
            self.complete = False
            return
        data = file.root.plain()
        if "services" not in data:
            self._unbuilt.append((file, (), path.stem, data, _ServiceFile))
            return
        services = data["services"]
        top, _ = validate(file, (), {**data, "services": {}}, _ServicesFile)
        if top is not None and top.name is not None:
            self._set_name(file, top.name)
        for name, source in ((top and top.secrets) or {}).items():
            self._add_secret(file, name, source)
        if not isinstance(services, dict) or not services:
            self.complete = False
            file.report_at(("services",), "expected at least one service, by name")
            return
        for name, service in services.items():
            if not name.startswith("x-"):
                self._unbuilt.append((file, ("services", name), name, service, _Service))

    def build(self) -> None:
        """The services, once all files have said what they share."""
        for one in self._unbuilt:
            self._add_entry(_build(*one, self._secrets))

    def _add_secret(self, file: SourceFile, name: str, source: _SecretSource) -> None:
        where: Path_ = ("secrets", name)
        try:
            values = _secret_values(source, file)
        except ValueError as error:
            file.report_at(where, str(error))
            values = {"content": b""}  # that it is there is not to be doubted, too
        if self._secrets.setdefault(name, values) != values:
            file.report_at(where, f'another secret "{name}" is in {self._secrets_at[name]}')
        self._secrets_at.setdefault(name, file.place(where))

    def _variables(self, directory: Path) -> Mapping[str, str]:
        """The environment, and below it the ``.env`` of `directory`."""
        if directory not in self._dotenv:
            self._dotenv[directory] = {}
            path = directory / ".env"
            try:
                self._dotenv[directory] = parse_env(read_text(path), self._environ)
            except TextError as error:
                self._report(path, str(error), error.mark.line)
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError):
                pass  # none there; a directory of this name is somebody's virtual environment
            except OSError as error:
                self._report(path, f"can't be read: {_os_text(error)}")
        return ChainMap(dict(self._environ), dict(self._dotenv[directory]))

    def _set_name(self, file: SourceFile, name: str) -> None:
        if not words.NAME.fullmatch(name):
            file.report_at(("name",), f"{name!r} is not a name; expected letters, digits, dots, dashes or underscores")
        elif self.name not in (None, name):
            file.report_at(("name",), f'"{name}" differs from "{self.name}" in {self._named_at}')
        else:
            self.name, self._named_at = name, file.place(("name",))

    def _add_entry(self, entry: _Entry | None) -> None:
        if entry is None:
            self.complete = False
        elif entry.name in self.entries:
            first = self.entries[entry.name]
            where = (*entry.path, "name") if entry.path == () else entry.path
            entry.file.report_at(where, f'the service "{entry.name}" is already in {first.file.place(first.path)}')
        else:
            self.entries[entry.name] = entry

    def set_profiles(self, profiles: Collection[str]) -> None:
        """Puts aside what is in other profiles only; ``*`` means all of them."""
        known = {profile for entry in self.entries.values() for profile in entry.model.profiles or ()}
        for profile in profiles:
            if profile not in known and profile != "*":
                self._warn(f'there is no profile "{one_line(profile)}"{near(profile, known)}')
        for name, entry in list(self.entries.items()):
            own = entry.model.profiles
            if own and "*" not in profiles and not set(own) & set(profiles):
                self.inactive[name] = self.entries.pop(name)

    def check_instances(self) -> None:
        """No two instances have one name, and what others join the network of is one."""
        owners: dict[str, str] = {}
        for name, entry in self.entries.items():
            service, where = entry.service, (*entry.path, "scale")
            if service is None:
                continue
            try:
                names = list(instances(service, service.scale))
            except SpecError as error:  # NAME-1000 is longer than NAME
                entry.file.report_at(where, error.problem)
                continue
            for each in names:
                if each in owners:
                    entry.file.report_at(where, f'"{each}" would be an instance of both "{owners[each]}" and "{name}"')
                    break
                owners[each] = name
            provider = self.entries.get(service.network_provider or "")
            if provider is not None and provider.service is not None and provider.service.scale not in (None, 1):
                problem = f'there must be one "{provider.name}" to join, and its scale is {provider.service.scale}'
                entry.file.report_at((*entry.path, "network_mode"), problem)
            if provider is not None and provider.service is not None and provider.service.spec.in_host_network:
                entry.file.report_at((*entry.path, "network_mode"), f'"{provider.name}" is in the host\'s network; use host')

    def check_dependencies(self) -> None:
        """Every service that is waited for is there, and none waits for itself, directly or through others."""
        graph: dict[str, set[str]] = {}
        for entry in self.entries.values():
            graph[entry.name] = set()
            for need, path in _needs(entry):
                terms = (entry.model.depends_on or {}).get(need)
                if need == entry.name:
                    entry.file.report_at(path, "a service can't depend on itself")
                elif need in self.entries:
                    graph[entry.name].add(need)
                    self._check_health(entry, need, path)
                elif need in self.inactive and (terms is None or terms.required):
                    own = ", ".join(self.inactive[need].model.profiles or ())
                    entry.file.report_at(path, f'"{need}" is in the profile {own}, which is not active')
                elif need in self.inactive:
                    pass
                elif self.complete and (terms is None or terms.required or path[-1] == "network_mode"):
                    entry.file.report_at(path, f'there is no service "{need}"{near(need, self.entries)}')
        while cycle := _cycle(graph):
            entry = self.entries[cycle[0]]
            path = next(path for need, path in _needs(entry) if need == cycle[1])
            entry.file.report_at(path, f"the services wait for each other: {' → '.join(cycle)}")
            for name in cycle:
                graph[name] = set()

    def _check_health(self, entry: _Entry, need: str, path: Path_) -> None:
        terms, other = (entry.model.depends_on or {}).get(need), self.entries[need].service
        if terms is not None and terms.condition == "service_healthy" and other is not None and not other.tells_health:
            problem = f'"{need}" has no healthcheck and no ready_log, so it is never healthy'
            entry.file.report_at((*path, "condition"), problem)


def _needs(entry: _Entry) -> Iterator[tuple[str, Path_]]:
    """What `entry` depends on, and where it says so."""
    written = entry.file.root.at(entry.path).plain().get("depends_on")
    for name in entry.model.depends_on or ():
        yield name, (*entry.path, "depends_on", written.index(name) if isinstance(written, list) else name)
    mode = entry.model.network_mode or ""
    if mode.startswith("service:") and words.NAME.fullmatch(mode.removeprefix("service:")):
        yield mode.removeprefix("service:"), (*entry.path, "network_mode")


def _cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """A cycle of `graph` as ``[a, b, a]``, each waiting for the next, or ``[]``."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def _files(path: Path) -> list[Path]:
    """The configuration files that `path` stands for."""
    if not path.is_dir():
        return [path]
    found = sorted(
        item
        for item in path.iterdir()
        if item.suffix in (".yaml", ".yml") and not item.name.startswith(".") and not item.is_dir()
    )
    if not found:
        raise ValueError("there is no *.yaml or *.yml file in this directory")
    return found


def _project_name(path: Path) -> str:
    """A directory's name as compose-go's NormalizeProjectName makes it."""
    directory = Path(os.path.abspath(path if path.is_dir() else path.parent))
    return re.sub(r"[^a-z0-9_-]", "", directory.name.lower()).lstrip("_-")[:63]


def load(
    paths: Sequence[Path],
    *,
    environ: Mapping[str, str],
    name: str | None = None,
    profiles: Collection[str] = (),
    warn: Callable[[str], None] = lambda text: None,
) -> Project:
    """The project that files and directories (their ``*.yaml`` and ``*.yml``) describe.

    Args:
        environ: for ``${VAR}`` and for variables without a value; a ``.env`` next to a file comes after it.
        name: the project's name; else a file's ``name:``, else the first directory's name.
        profiles: those that are active; services with other profiles only are not in the project.
        warn: gets one line for each use of a variable that is not set, and for each profile that is nowhere.

    Raises:
        ConfigError: all that is wrong in all files.
    """
    loader = _Loader(environ, warn)
    for path in paths:
        loader.add(Path(path))
    loader.build()
    loader.set_profiles(profiles)
    loader.check_dependencies()
    loader.check_instances()
    first = Path(paths[0]) if paths else Path()
    if not paths:
        loader.problems.append(ConfigProblem(first, 1, 1, "", "no file or directory was given"))
    if loader.inactive and not loader.entries:
        own = sorted({profile for entry in loader.inactive.values() for profile in entry.model.profiles or ()})
        problem = f"every service has a profile, and none is active of {', '.join(own)}"
        loader.problems.append(ConfigProblem(first, 1, 1, "", problem))
    if name is None and loader.name is None and not loader.problems:
        name = _project_name(first)
        hint = 'the directory\'s name makes no project name; set "name:" or give a name'
    else:
        name, hint = name if name is not None else loader.name or "project", f"{name!r} is not a project's name"
    if not words.NAME.fullmatch(name):
        loader.problems.append(ConfigProblem(first, 1, 1, "name", one_line(hint)))
    if loader.problems:
        raise ConfigError(_in_order(loader.problems))
    return Project(name=name, services={key: entry.service for key, entry in loader.entries.items() if entry.service})


def _in_order(problems: Iterable[ConfigProblem]) -> list[ConfigProblem]:
    """By file, as they were read, and by place; each text once per place."""
    files: dict[Path, dict[tuple[int, int, str], ConfigProblem]] = {}
    for problem in problems:
        files.setdefault(problem.file, {}).setdefault((problem.line, problem.column, str(problem)), problem)
    return [found[key] for found in files.values() for key in sorted(found)]


# --- Back to compose terms. ---


def normalised(project: Project) -> dict[str, Any]:
    """`project` as a compose-like file in one form, JSON-ready; loading its dump gives an equal project.

    What has its default is left out; paths are absolute; a dollar in a text is ``$$``.
    """
    services = {name: _escaped(normal_service(service)) for name, service in project.services.items()}
    return {"name": project.name, "services": services}


def to_json(project: Project) -> str:
    """`normalised` as JSON that is YAML, too (DEL is escaped)."""
    return json.dumps(normalised(project), indent=2).replace("\x7f", "\\u007f")


def to_yaml(project: Project) -> str:
    """`normalised` as YAML."""
    from tinyvisor.yamlwriter import write_yaml  # which few ask for, and takes its time to be imported

    return write_yaml(normalised(project))


def _escaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("$", "$$") if isinstance(value, str) else value


def normal_service(service: Service) -> dict[str, Any]:
    """`service` as `normalised` has it, but for dollars."""
    spec, default = service.spec, Spec(command=("-",))
    found: dict[str, Any] = {"command": list(spec.command)}
    if spec.environment:
        found["environment"] = dict(spec.environment)
    for name in (*_PASSED_ON, "pids_limit", "mem_limit", "cpus"):
        if (value := getattr(spec, name)) != getattr(default, name):
            found[name] = value
    _normal_root(spec, default, found)
    _normal_isolation(spec, found)
    _normal_policy(service, found)
    return found


def _normal_root(spec: Spec, default: Spec, found: dict[str, Any]) -> None:
    if spec.rootfs is not None:
        found["rootfs"] = str(spec.rootfs)
    storage = _changed(spec, default, {"size": "storage_size", "inodes": "storage_inodes"})
    if storage:
        found["storage_opt"] = storage
    mounts: list[dict[str, Any]] = [
        {"type": "bind", "source": str(item.source), "target": item.target, "read_only": item.read_only} for item in spec.volumes
    ]
    for item in spec.tmpfs:
        options = {"size": item.size, "mode": f"{item.mode:04o}", "inodes": item.inodes, "executable": item.executable}
        mounts.append({"type": "tmpfs", "target": item.target, "tmpfs": options})
    if mounts:
        found["volumes"] = mounts


def _normal_isolation(spec: Spec, found: dict[str, Any]) -> None:
    for name in ("group_add", "namespaces"):
        if name in found:
            found[name] = sorted(found[name]) if name == "namespaces" else list(found[name])
    if "cpuset" in found:
        found["cpuset"] = ",".join(map(str, sorted(spec.cpuset)))
    if "umask" in found:
        found["umask"] = f"{spec.umask:04o}"
    if spec.ulimits:
        found["ulimits"] = {name: {"soft": item.soft, "hard": item.hard} for name, item in spec.ulimits.items()}
    if spec.capabilities:
        found["cap_add"] = sorted(spec.capabilities)
    default = _root_capabilities(spec.userns != "host", spec.network_mode == "none" and "net" in spec.namespaces)
    dropped = default - spec.possible_capabilities
    if dropped:
        found["cap_drop"] = sorted(dropped) if spec.root_capabilities else ["ALL"]
    options = [] if spec.no_new_privs else ["no-new-privileges:false"]
    options += [] if spec.seccomp == "default" else [f"seccomp={spec.seccomp}"]
    options += [] if spec.landlock == "default" else [f"landlock={spec.landlock}"]
    options += ["network=new"] if spec.new_network else []
    options += [f"proc-opts={spec.proc_opts}"] if spec.proc_opts else []
    if options:
        found["security_opt"] = options
    if spec.seccomp_action is not None:
        found["seccomp"] = {"action": spec.seccomp_action}
    if spec.on_syscall:
        found["on_syscall"] = [
            {"syscall": rule.syscall, "action": rule.action, **({"args": list(rule.args)} if rule.args else {})}
            | {name: value for name in ("path", "address") if (value := getattr(rule, name))}
            for rule in spec.on_syscall
        ]
    if spec.blkio is not None:
        rates = {
            f"device_{name}": [{"path": path, "rate": rate} for path, rate in getattr(spec.blkio, name)]
            for name in ("read_bps", "write_bps", "read_iops", "write_iops")
            if getattr(spec.blkio, name)
        }
        found["blkio_config"] = rates if spec.blkio.weight is None else {"weight": spec.blkio.weight, **rates}


_SAME_DEPENDENCY = {item.name: item.name for item in fields(Dependency)}


def _normal_policy(service: Service, found: dict[str, Any]) -> None:
    policy, default = service.restart, RestartPolicy()
    if policy.max_attempts is None:
        if policy.condition != "no":
            found["restart"] = policy.condition
    elif policy.condition == "on-failure":
        found["restart"] = f"on-failure:{policy.max_attempts}"
    else:
        condition = "none" if policy.condition == "no" else "any"
        found["deploy"] = {"restart_policy": {"condition": condition, "max_attempts": policy.max_attempts}}
    parts: dict[str, Any] = {
        "backoff": _changed(policy.backoff, default.backoff, {item.name: item.name for item in fields(Backoff)}),
        "start_limit": _changed(policy, default, {"burst": "start_limit_burst", "interval": "start_limit_interval"}),
        "success_exit_codes": sorted(policy.success_exit_codes),
        "restart_prevent_exit_codes": sorted(policy.restart_prevent_exit_codes, key=str),
        "restart_force_exit_codes": sorted(policy.restart_force_exit_codes, key=str),
        "schedule": _normal_schedule(policy.schedule),
        "depends_on": _normal_dependencies(service),
        "healthcheck": _normal_healthcheck(service.healthcheck),
        "secrets": [_normal_secret(secret) for secret in service.spec.secrets],
        "post_start": [_normal_hook(hook) for hook in service.post_start],
        "pre_stop": [_normal_hook(hook) for hook in service.pre_stop],
        "labels": dict(service.labels),
    }
    if service.scale is not None:
        parts["deploy"] = {**found.get("deploy", {}), "replicas": service.scale}
    own = ("ready_log", "ready_notify", "ready_fd", "watchdog", "on_unhealthy")
    parts |= _changed(service, Service(spec=service.spec), {name: name for name in own})
    found |= {key: value for key, value in parts.items() if value}
    if service.start_timeout != Service(spec=service.spec).start_timeout:
        found["start_timeout"] = service.start_timeout or 0
    names = {item.name.replace("_", "-"): item.name for item in fields(Logging) if item.name not in ("driver", "max_files")}
    options = _changed(service.logging, Logging(), names | {"max-file": "max_files"})
    if service.logging != Logging():
        found["logging"] = {"driver": service.logging.driver, "options": options}


def _normal_schedule(schedule: Schedule | None) -> dict[str, Any]:
    if schedule is None:
        return {}
    given = {"cron": schedule.cron} if schedule.cron is not None else {"interval": schedule.interval}
    return given | _changed(schedule, Schedule(interval=1), {"timezone": "timezone", "overlap": "overlap"})


def _normal_healthcheck(check: Healthcheck | None) -> dict[str, Any]:
    if check is None:
        return {}
    names = {item.name: item.name for item in fields(Healthcheck) if item.name not in ("test", "http", "tcp")}
    return _normal_test(check) | _changed(check, Healthcheck(test=("-",)), names)


def _normal_test(check: Healthcheck) -> dict[str, Any]:
    if check.tcp is not None:
        return {"tcp": {"port": check.tcp.port, "host": check.tcp.host}}
    if check.http is not None:
        found = {"port": check.http.port, "host": check.http.host, "path": check.http.path}
        more = {"headers": dict(check.http.headers), "status": sorted(check.http.status)}
        return {"http": found | {key: value for key, value in more.items() if value}}
    return {"test": ["CMD", *check.test]}


def _normal_secret(secret: Secret) -> dict[str, Any]:
    """Where it is, and not what."""
    source = {"file": str(secret.file)} if secret.file is not None else {"environment": secret.environment}
    plain = Secret(target="-", content=b"")
    owner = _changed(secret, plain, {"uid": "uid", "gid": "gid"})
    mode = {} if secret.mode == plain.mode else {"mode": f"{secret.mode:04o}"}
    return {**source, "target": secret.target, **owner, **mode}


def _normal_hook(hook: Hook) -> dict[str, Any]:
    found = {"command": list(hook.command), "environment": dict(hook.environment)}
    return {key: value for key, value in found.items() if value} | _changed(
        hook, Hook(command=hook.command), {"user": "user", "working_dir": "working_dir"}
    )


def _normal_dependencies(service: Service) -> Any:
    """Names where these say it all."""
    terms = {name: _changed(item, Dependency(), _SAME_DEPENDENCY) for name, item in sorted(service.depends_on.items())}
    return terms if any(terms.values()) else list(terms)


def _changed(value: Any, default: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """Key → attribute, for the attributes of `value` that differ from those of `default`."""
    return {key: getattr(value, name) for key, name in names.items() if getattr(value, name) != getattr(default, name)}
