"""The API is what its document says: requests made up from the document, answers held against it.

By a property test of our own: schemathesis brings some thirty packages, starts its own threads and wants a network address,
and what it would find here, a few strategies and jsonschema find in the same process and on a mock clock.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from trio.testing import MockClock

from tests.bench import service
from tests.fake_runtime import Script
from tests.test_control import anyio_backend as anyio_backend
from tests.test_control import request, rig
from tinyvisor.control import _ROUTES, EVENT_STREAM, JSON_LINES
from tinyvisor.openapi import OPERATIONS, document
from tinyvisor.spec import Healthcheck, Project

pytestmark = pytest.mark.anyio
DOCUMENT: Any = json.loads(json.dumps(document()))
ENDLESS = {"events", "down", "wait"}
"""What does not answer at once, or ends the daemon."""


def validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator(schema | {"components": DOCUMENT["components"]})


def test_document_has_every_route_and_no_other() -> None:
    routes = {(method, pattern.replace("*", "{name}")) for method, found in _ROUTES.items() for pattern, _ in found}
    assert set(OPERATIONS) == routes
    assert {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item} == routes
    names = [operation["operationId"] for item in DOCUMENT["paths"].values() for operation in item.values()]
    assert len(set(names)) == len(names)


def test_every_schema_is_one_and_every_reference_leads_somewhere() -> None:
    schemas, references = [], set()

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                if key == "$ref":
                    references.add(value.removeprefix("#/components/schemas/"))
                elif key in ("schema", "x-itemSchema"):
                    schemas.append(value)
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(DOCUMENT)
    for schema in [*schemas, *DOCUMENT["components"]["schemas"].values()]:
        Draft202012Validator.check_schema(schema)
    assert references == set(DOCUMENT["components"]["schemas"])


NAMES = st.sampled_from(["a", "b", "b-2", "a", "b", "nobody"])


def fitting(schema: Any) -> st.SearchStrategy[Any]:
    """What a schema of ours allows, or nearly."""
    kinds = schema.get("type", [])
    match kinds if isinstance(kinds, str) else kinds[0] if kinds else "":
        case "integer":
            return st.integers(0, 3)
        case "number":
            return st.floats(0.1, 5)
        case "array":
            return st.lists(values(schema.get("items", {"type": "integer"})), min_size=schema.get("minItems", 0), max_size=3)
        case "object":
            return st.dictionaries(st.sampled_from("AB"), values(schema.get("additionalProperties", {})), max_size=2)
    return st.sampled_from(schema["enum"]) if "enum" in schema else st.just("TERM") if "default" in schema else NAMES


def values(schema: Any) -> st.SearchStrategy[Any]:
    """Mostly what fits."""
    wrong: st.SearchStrategy[Any] = st.none() | st.integers(-3, 70_000) | st.text(max_size=4) | st.lists(st.none(), max_size=1)
    return st.integers(0, 15).flatmap(lambda number: fitting(schema) if number else wrong)


def objects(schemas: Any, required: Any = ()) -> st.SearchStrategy[dict[str, Any]]:
    keys = {key: values(schema) for key, schema in schemas.items()}
    given = st.fixed_dictionaries(
        {key: keys[key] for key in required}, optional={key: it for key, it in keys.items() if key not in required}
    )
    return st.integers(0, 15).flatmap(lambda number: given if number else st.just({}))


@st.composite
def asked(draw: st.DrawFn) -> tuple[str, str, bytes, str]:
    (method, path), operation = draw(
        st.sampled_from([(key, it) for key, it in OPERATIONS.items() if it.id not in ENDLESS and it.id != "metrics"])
    )
    query = {key: value for key, value in draw(objects(operation.query)).items() if value is not None}
    if query.get("follow") in (1, "1", "true"):
        del query["follow"]
    target = path.replace("{name}", quote(draw(NAMES | st.just("ä/..")), safe=""))
    target += f"?{urlencode(query, doseq=True)}" if query else ""
    body = b"" if operation.body is None else json.dumps(draw(objects(operation.body, operation.required))).encode()
    return method, target, body, path


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(asked(), min_size=1, max_size=6))
def test_answers_are_as_documented(tmp_path: Path, asking: list[Any]) -> None:
    async def main() -> None:
        check = Healthcheck(test=("x",), interval=1)
        scripts = {"a": [Script(output=((0.0, "stdout", b"one\n"),))]}
        async with rig(tmp_path, service("a", healthcheck=check), service("b", scale=2), scripts=scripts) as r:
            r.project = Project(name="test", services=dict(r.bench.supervisor.services))
            await trio.sleep(3)
            for method, target, body, path in asking:
                answer = await r.raw(request(method, target, body))
                head, _, rest = answer.partition(b"\r\n\r\n")
                status = head.split()[1].decode()
                responses = DOCUMENT["paths"][path][method.lower()]["responses"]
                assert status in responses, (method, target, body, answer)
                (kind, content), *_ = responses[status]["content"].items()
                assert f"content-type: {kind}".encode() in head.lower()
                if kind != JSON_LINES:
                    validator(content["schema"]).validate(json.loads(rest))
            assert not r.problems

    trio.run(main, clock=MockClock(autojump_threshold=0))


def unchunked(data: bytes) -> bytes:
    found = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        found, data = found + data[: int(size, 16)], data[int(size, 16) + 2 :]
    return found


def sse(path: str) -> bytes:
    return request("GET", path).replace(b"Host: x", b"Host: x\r\nAccept: text/event-stream")


@pytest.mark.parametrize(
    "path, names",
    [("/v1/events", {"ServiceStopping", "ServiceExited", "ServiceStopped"}), ("/v1/stats?interval=0.5", {"stats"}),
     ("/v1/logs?follow=1", {"log"})],
)  # fmt: skip
def test_streams_are_as_documented(tmp_path: Path, path: str, names: set[str]) -> None:
    """From their first event until the daemon ends."""
    content = DOCUMENT["paths"][path.partition("?")[0]]["get"]["responses"]["200"]["content"][EVENT_STREAM]
    data = validator(content["x-itemSchema"]["properties"]["data"])
    told = []

    async def main() -> None:
        async def read() -> None:
            told.append(await r.raw(sse(path)))

        script = Script(output=((0.0, "stdout", b"one\n"), (2.0, "stderr", b"two\n")))
        async with rig(tmp_path, service("a"), scripts={"a": [script]}) as r:
            r.nursery.start_soon(read)
            await trio.sleep(4)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    head, _, rest = told[0].partition(b"\r\n\r\n")
    assert b"text/event-stream" in head
    events = [event.split(b"\n") for event in unchunked(rest).split(b"\n\n")[:-1]]
    assert {event[0].removeprefix(b"event: ").decode() for event in events} == names
    assert len(events) >= 2
    for event in events:
        data.validate(json.loads(event[1].removeprefix(b"data: ")))


@pytest.mark.parametrize(
    "method, target, body",
    [
        ("GET", "/v1/services?service=a&service=b", None),
        ("GET", "/v1/services/a", None),
        ("GET", "/v1/wait?until=healthy&service=a", None),
        ("GET", "/v1/stats?service=b", None),
        ("GET", "/v1/openapi.json", None),
        ("POST", "/v1/services/kill", {"services": ["a"], "signal": 1}),
        ("POST", "/v1/services/a/exec", {"command": ["x"], "environment": {"A": "b"}, "timeout": 1.5, "user": None}),
        ("POST", "/v1/scale", {"service": "b", "count": 1}),
        ("POST", "/v1/reload", None),
    ],
)
async def test_what_is_right_is_answered_as_documented(tmp_path: Path, method: str, target: str, body: Any) -> None:
    async with rig(tmp_path, service("a", healthcheck=Healthcheck(test=("x",), interval=1)), service("b", scale=2)) as r:
        r.project = Project(name="test", services=dict(r.bench.supervisor.services))
        await trio.sleep(3)
        path = target.partition("?")[0].replace("/a", "/{name}")
        path = path if path in DOCUMENT["paths"] else target.partition("?")[0]
        status, answer = await r.ask(method, target, body)
        assert status == 200
        content = DOCUMENT["paths"][path][method.lower()]["responses"]["200"]["content"]["application/json"]
        validator(content["schema"]).validate(answer)
        if target == "/v1/services/a":
            assert answer[0]["probes"]
