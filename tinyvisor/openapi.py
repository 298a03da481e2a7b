"""The control API as an OpenAPI 3.1 document: `control` serves it, and the tests hold the daemon to it.

What each answer looks like comes from the dataclasses themselves (`state`), so that it can't be forgotten when one of them
changes. Source: OpenAPI Specification 3.1.0, JSON Schema 2020-12, WHATWG HTML "Server-sent events".
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import Any, Final, Literal, get_args, get_type_hints

from tinyvisor.control import EVENT_STREAM, INTERVALS, JSON, JSON_LINES, PROMETHEUS
from tinyvisor.logs import MAX_TAIL
from tinyvisor.release import version
from tinyvisor.state import CommandResult, Event, Exit, Probe, ServiceSummary, Stats

Schema = Mapping[str, Any]


def _told(title: str, base: type[Any], /, **more: Any) -> type[Any]:
    """`base` as it is told: with other or further fields."""
    types = get_type_hints(base) | more
    return make_dataclass(title, [(key, types[key]) for key in dict.fromkeys([*(it.name for it in fields(base)), *more])])


ProbeTold: type[Any] = _told("Probe", Probe, output=str)
Instance: type[Any] = _told("Instance", ServiceSummary, pid=int | None)
Inspection: type[Any] = _told(
    "Inspection", Instance,
    started_at=str | None, next_at=str | None, probes=list[ProbeTold], processes=list[str], config=dict[str, Any] | None,  # type: ignore[valid-type]
)  # fmt: skip
StatsTold: type[Any] = _told("Stats", Stats, name=str)
Result: type[Any] = _told("Result", CommandResult, text=str)
Lost: type = make_dataclass("Lost", [("time", str), ("event", Literal["lost"]), ("events", int)])
EVENTS: Final = (
    *(_told(kind.__name__, kind, time=str, event=Literal[kind.__name__]) for kind in get_args(Event)),
    Lost,
)


@dataclass
class About:
    """The project that the daemon runs."""

    name: str
    pid: int
    paths: list[str]
    log_dir: str
    version: str


@dataclass
class Difference:
    """Names of services."""

    added: list[str]
    removed: list[str]
    changed: list[str]
    unchanged: list[str]


@dataclass
class Reloaded:
    """What a reload has changed."""

    difference: Difference
    results: list[Result]  # type: ignore[valid-type]


@dataclass
class Executed:
    """How a command ended; its output, where no file descriptors were sent along."""

    exit: Exit
    output: str | None


@dataclass(frozen=True, slots=True)
class Upgraded:
    """The daemon's number, which stays."""

    pid: int


@dataclass
class Attached:
    """How the container ended."""

    exit: Exit


@dataclass
class LogRecord:
    """A line of output, or a piece of one, where it is not `full`."""

    time: str
    name: str
    stream: Literal["stdout", "stderr"]
    full: bool
    text: str


@dataclass
class Sample:
    """What runs uses, at one time."""

    time: str
    stats: list[StatsTold]  # type: ignore[valid-type]


@dataclass
class Problems:
    """Why it was not done, a line each."""

    problems: list[str]


@dataclass(frozen=True)
class Operation:
    """One method of a path.

    Attributes:
        answer: the type of the 200, or of one item where it is a stream.
        kinds: what the answer may come as, the usual one first.
        statuses: what else is to be expected.
        query: schemas of what may follow the ``?``.
        body: schemas of the JSON object's keys; None where there is none.
    """

    id: str
    summary: str
    answer: Any
    kinds: tuple[str, ...] = (JSON,)
    statuses: tuple[int, ...] = ()
    query: Mapping[str, Schema] = field(default_factory=dict)
    body: Mapping[str, Schema] | None = None
    required: tuple[str, ...] = ()
    description: str = ""


NAME: Final[Schema] = {"type": "string", "minLength": 1}
NAMES: Final[dict[str, Any]] = {"type": "array", "items": NAME}
TIME: Final[dict[str, Any]] = {
    "type": "string",
    "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$",
}
SERVICE: Final = {"service": NAMES | {"description": "Services or instances; none means all."}}
GRACE: Final[Schema] = {
    "type": ["number", "null"],
    "minimum": 0,
    "description": "Seconds until what is left is killed; by default each service's stop_grace_period.",
}
SERVICES: Final = {"services": NAMES | {"description": "Services or instances; none means all."}}
_STREAMS: Final = "Server-Sent Events for who accepts text/event-stream."
_FDS: Final = "File descriptors come along with the request as SCM_RIGHTS ancillary data of the unix socket."


def _command(verb: str, summary: str, **more: Schema) -> Operation:
    return Operation(verb, summary, list[Result], statuses=(404, 409), body=SERVICES | more)  # type: ignore[valid-type]


OPERATIONS: Final[Mapping[tuple[str, str], Operation]] = {
    ("GET", "/v1/project"): Operation("project", "What runs here.", About),
    ("GET", "/v1/openapi.json"): Operation("openapi", "This document.", dict[str, Any]),
    ("GET", "/v1/services"): Operation("ps", "How every instance stands.", list[Instance], statuses=(404,), query=SERVICE),  # type: ignore[valid-type]
    ("GET", "/v1/services/{name}"): Operation(
        "inspect",
        "All there is to know of a service's instances.",
        list[Inspection],  # type: ignore[valid-type]
        statuses=(404,),
    ),
    ("GET", "/v1/wait"): Operation(
        "wait",
        "Answers once they are down, running or healthy.",
        list[Instance],  # type: ignore[valid-type]
        statuses=(404,),
        query=SERVICE | {"until": {"enum": ["down", "running", "healthy"], "default": "down"}},
    ),
    ("GET", "/v1/stats"): Operation(
        "stats",
        "What runs uses, now or again and again.",
        list[StatsTold],  # type: ignore[valid-type]
        (JSON, EVENT_STREAM),
        (404,),
        SERVICE
        | {
            "interval": {
                "type": "number",
                "minimum": INTERVALS[0],
                "maximum": INTERVALS[1],
                "default": 1,
                "description": "Seconds between two samples of a stream.",
            }
        },
        description=_STREAMS,
    ),
    ("GET", "/v1/events"): Operation(
        "events",
        "What happens, from now on.",
        EVENTS,
        (EVENT_STREAM,),
        (404,),
        SERVICE
        | {
            "since": TIME | {"description": "Begins with those of the latest that are not older."},
            "until": TIME | {"description": "Ends then."},
        },
    ),
    ("GET", "/v1/logs"): Operation(
        "logs",
        "What services have written.",
        LogRecord,
        (JSON_LINES, EVENT_STREAM),
        (404, 409),
        SERVICE
        | {
            "tail": {"type": "integer", "minimum": 0, "maximum": MAX_TAIL},
            "since": TIME,
            "until": TIME | {"description": "Does not go with follow."},
            "follow": {"enum": ["0", "1", "false", "true"]},
        },
        description=_STREAMS,
    ),
    ("GET", "/metrics"): Operation("metrics", "For Prometheus.", str, (PROMETHEUS,), (501,)),
    ("POST", "/v1/services/start"): _command("start", "Starts what is down, and what it depends on."),
    ("POST", "/v1/services/stop"): _command("stop", "Stops them; does not wait.", timeout=GRACE),
    ("POST", "/v1/services/restart"): _command("restart", "Gives them new containers.", timeout=GRACE),
    ("POST", "/v1/services/kill"): _command(
        "kill", "Sends a signal; KILL also keeps them down.", signal={"type": ["string", "integer", "null"], "default": "KILL"}
    ),
    ("POST", "/v1/services/reset-failed"): _command("reset-failed", "Forgets past failures and restarts."),
    ("POST", "/v1/services/{name}/exec"): Operation(
        "exec",
        "Runs a command in a service's container.",
        Executed,
        statuses=(404, 409),
        body={
            "command": NAMES | {"minItems": 1, "items": {"type": "string"}},
            "user": {"type": ["string", "null"]},
            "working_dir": {"type": ["string", "null"]},
            "environment": {"type": ["object", "null"], "additionalProperties": {"type": "string"}},
            "timeout": {"type": ["number", "null"], "exclusiveMinimum": 0},
            "terminal": {
                "type": ["array", "null"],
                "prefixItems": [{"type": "integer", "minimum": 0, "maximum": 65535}] * 2,
                "minItems": 2,
                "maxItems": 2,
                "description": "Rows and columns. Needs the file descriptor of a socket.",
            },
        },
        required=("command",),
        description=f"{_FDS} Three are its stdin, stdout and stderr; with `terminal` one, a socket, gets the terminal.",
    ),
    ("POST", "/v1/services/{name}/attach"): Operation(
        "attach",
        "Joins the caller to a running container's stdin and output.",
        Attached,
        statuses=(404, 409),
        body={},
        description=f"{_FDS} One, a socket: a byte comes with the write side of stdin, or of the terminal, then the output.",
    ),
    ("POST", "/v1/scale"): Operation(
        "scale",
        "Sets how many instances of a service run.",
        list[Result],  # type: ignore[valid-type]
        statuses=(404, 409),
        body={"service": NAME, "count": {"type": "integer", "minimum": 0}},
        required=("service", "count"),
    ),
    ("POST", "/v1/reload"): Operation(
        "reload", "Reads the configuration anew and changes what has changed.", Reloaded, statuses=(409, 422), body={}
    ),
    ("POST", "/v1/upgrade"): Operation(
        "upgrade",
        "Starts the daemon anew, in place; its containers go on.",
        Upgraded,
        statuses=(409, 422),
        body={},
        description=f"{_FDS} One: the outcome comes there, as of up -d.",
    ),
    ("POST", "/v1/down"): Operation(
        "down", "Stops everything, and answers when it is down.", list[ServiceSummary], statuses=(409,), body={"timeout": GRACE}
    ),
}
"""What there is, by method and path."""


@functools.cache
def document() -> Mapping[str, Any]:
    """The OpenAPI document."""
    schemas = _Schemas([*(operation.answer for operation in OPERATIONS.values()), Problems, Sample])
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method.lower()] = _operation(path, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tinyvisor", "version": version(), "description": "The control API of a project's daemon."},
        "servers": [{"url": "http://localhost", "description": "HTTP/1.1 on the unix socket NAME.sock in the run directory."}],
        "paths": paths,
        "components": {"schemas": schemas.components},
    }


class _Schemas:
    """JSON schemas of types, which share their components."""

    def __init__(self, types: Iterable[Any]) -> None:
        from pydantic import TypeAdapter

        flat = [each for kind in types for each in (kind if isinstance(kind, tuple) else (kind,))]
        self._keys = {str(kind): kind for kind in flat}
        inputs: Any = [(key, "serialization", TypeAdapter(kind)) for key, kind in self._keys.items()]
        found, shared = TypeAdapter.json_schemas(inputs, ref_template="#/components/schemas/{model}")
        self._found = {str(key): schema for (key, _), schema in found.items()}
        self.components: dict[str, Any] = shared.get("$defs", {})
        for schema in self.components.values():
            if schema.get("type") == "object" and "properties" in schema:  # what has a default is told all the same
                schema |= {"required": list(schema["properties"]), "additionalProperties": False}

    def of(self, kind: Any) -> Schema:
        if isinstance(kind, tuple):
            return {"oneOf": [self.of(each) for each in kind]}
        return self._found[str(kind)]


def _operation(path: str, operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    found: dict[str, Any] = {"operationId": operation.id, "summary": operation.summary}
    if operation.description:
        found["description"] = operation.description
    parameters: list[dict[str, Any]] = [
        {"name": key, "in": "query", "schema": schema, **({"explode": True} if schema is not NAMES else {})}
        for key, schema in operation.query.items()
    ]
    if "{name}" in path:
        parameters.append({"name": "name", "in": "path", "required": True, "schema": NAME, "description": "A service."})
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        body: dict[str, Any] = {"type": "object", "properties": dict(operation.body)}
        body |= {"required": list(operation.required)} if operation.required else {}
        found["requestBody"] = {"required": bool(operation.required), "content": {JSON: {"schema": body}}}
    problem = {"content": {JSON: {"schema": schemas.of(Problems)}}}
    found["responses"] = {
        "200": {"description": "Done.", "content": {kind: _content(kind, operation, schemas) for kind in operation.kinds}},
        **{str(status): {"description": _MEANINGS[status]} | problem for status in sorted({400, *operation.statuses})},
        "default": {"description": "Too slow, too long, or a bug: as HTTP's status says."} | problem,
    }
    return found


_MEANINGS: Final = {
    400: "The request makes no sense.",
    404: "There is no such service.",
    409: "It can't be done as things stand.",
    422: "The configuration is at fault; nothing was changed.",
    501: "Something that this needs is not installed.",
}


def _content(kind: str, operation: Operation, schemas: _Schemas) -> Schema:
    """A stream's schema is that of one item, as OpenAPI 3.2 has it under `itemSchema`."""
    if kind == EVENT_STREAM:
        data = Sample if operation.id == "stats" else operation.answer
        return {"x-itemSchema": {"type": "object", "properties": {"event": {"type": "string"}, "data": schemas.of(data)}}}
    if kind == JSON_LINES:
        return {"x-itemSchema": schemas.of(operation.answer)}
    return {"schema": schemas.of(operation.answer)}
