"""The guard by itself, as an ASGI application among others: what it lets through, and what it answers."""

import asyncio
import json
from typing import Any

import pytest

from moe.serving import request_guard
from moe.serving.request_guard import RequestGuard
from moe.serving.requests import RequestError, ServiceOptions

OPTIONS = ServiceOptions(max_request_mb=0.001, max_requests=2)  # 1048 bytes
JSON_HEADERS = [(b"content-type", b"application/json; charset=utf-8")]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the body it got."""
    body = b""
    while True:
        message = await receive()
        body += message["body"]
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Checks:
    """A service that refuses one body."""

    options = OPTIONS

    def check(self, body: bytes) -> None:
        if body == b"bad":
            raise RequestError("this is bad")

    def health(self) -> dict[str, str]:
        return {"status": "ok"}


SERVICE: Any = Checks()


def call(
    parts: list[bytes], headers: list = JSON_HEADERS, path: str = "/invocations", guard: RequestGuard | None = None
) -> tuple[int, bytes]:
    guard = guard or RequestGuard(echo, SERVICE)
    waiting = [{"type": "http.request", "body": part, "more_body": number + 1 < len(parts)} for number, part in enumerate(parts)]
    sent: list[dict] = []

    async def receive() -> dict:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": "POST" if path == "/invocations" else "GET", "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def test_a_good_body_arrives_whole_whatever_its_parts() -> None:
    assert call([b"a" * 500, b"", b"b" * 500]) == (200, b"a" * 500 + b"b" * 500)


@pytest.mark.parametrize(
    ("parts", "headers", "said"),
    [
        ([b"bad"], JSON_HEADERS, "this is bad"),
        ([b"x" * 600, b"x" * 600], JSON_HEADERS, "larger than 0.001 MiB"),
        ([b"x" * 10_000] * 50, JSON_HEADERS, "larger than"),
        ([b"{}"], [], "content type missing: must be application/json"),
        ([b"{}"], [(b"content-type", b"text/csv")], "content type text/csv"),
    ],
)
def test_what_is_refused_gets_a_400_in_one_sentence(parts: list[bytes], headers: list, said: str) -> None:
    status, body = call(parts, headers)
    answer = json.loads(body)
    assert status == 400 and said in answer["message"] and answer["error_code"] == "BAD_REQUEST"


def test_health_says_what_is_served_and_how_much_is_at_work() -> None:
    status, body = call([b""], [], "/health")
    assert status == 200 and json.loads(body) == {"status": "ok", "n_requests": 0}


def test_other_places_are_not_touched() -> None:
    assert call([b"bad"], [], "/ping") == (200, b"bad")


def test_a_crowd_is_told_to_come_back_and_a_place_that_is_left_is_free() -> None:
    guard = RequestGuard(echo, SERVICE)
    guard.n_requests = 2
    status, body = call([b"good"], guard=guard)
    assert status == 503 and "try again" in json.loads(body)["message"] and guard.n_requests == 2
    guard.n_requests = 1
    assert call([b"good"], guard=guard)[0] == 200 and guard.n_requests == 1
    assert call([b"bad"], guard=guard)[0] == 400 and guard.n_requests == 1


def test_the_next_application_is_guarded_and_only_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    import fastapi

    plain = fastapi.FastAPI
    request_guard.install(SERVICE)
    first, second = fastapi.FastAPI(), fastapi.FastAPI()
    assert fastapi.FastAPI is plain and [middleware.cls for middleware in first.user_middleware] == [RequestGuard]
    assert second.user_middleware == [] and not request_guard.in_server()
