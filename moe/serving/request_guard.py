"""The door of the scoring server: a request is bounded and checked before the server reads it into tables.

MLflow's server takes bodies of any size, ignores parameters that it does not know, repairs broken base64 and answers with what it
was sent; this stands before it as ASGI middleware and answers 400 with one sentence instead. It also answers two addresses itself:
forms at `/v1/audio/transcriptions`, which MLflow's server does not have, and `/health`, where that does not say what is served.
"""

import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moe.serving.requests import RequestError
from moe.serving.service import Service
from moe.serving.transcriptions import FORM_TYPE, PATH, Reply, transcribe_form

SERVER_MODULE = "mlflow.pyfunc.scoring_server.app"
PLACE, HEALTH = "/invocations", "/health"
JSON_TYPE = "application/json"
TYPES = {PLACE: JSON_TYPE, PATH: FORM_TYPE}  # what a request at each address holds

FAILED = "the recogniser failed on this request; the server's log says more"
LOG = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RequestGuard:
    """ASGI middleware.

    Args:
        app: the server behind it.
        service: checks the body of a request, and answers forms.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], service: Service) -> None:
        self.app, self.service, self.options = app, service, service.options
        self.n_requests = 0
        self._threads: ThreadPoolExecutor | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Check a request for a transcript, and answer it or pass it on; everything else passes unchecked."""
        request = (scope["type"], scope.get("method"), scope.get("path"))
        if request == ("http", "GET", HEALTH):
            await _send(send, 200, _json(self.service.health() | {"n_requests": self.n_requests}))
        elif request in [("http", "POST", place) for place in TYPES]:
            await self._transcribe(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _transcribe(self, scope: Message, receive: Receive, send: Send) -> None:
        self._make_threads()
        self.n_requests += 1
        try:
            content_type = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1")
            body = await self._body(content_type, TYPES[scope["path"]], receive)
            if self.n_requests > self.options.max_requests:
                await _refuse(send, 503, "TEMPORARILY_UNAVAILABLE", "the server is busy: try again in a moment")
            elif scope["path"] == PATH:
                await _send(send, 200, await asyncio.to_thread(transcribe_form, self.service, body, content_type))
            else:
                await asyncio.to_thread(self.service.check, body)
                await self.app(scope, _replay(body, receive), send)
        except RequestError as error:
            await _refuse(send, error.status, error.code, str(error))
        except Exception:
            if scope["path"] != PATH:  # the server behind has its own answer to a failure
                raise
            LOG.exception("a request failed")
            await _refuse(send, 500, "INTERNAL_ERROR", FAILED)
        finally:
            self.n_requests -= 1

    async def _body(self, content_type: str, wanted: str, receive: Receive) -> bytes:
        """The whole body, at most as many bytes as are allowed.

        What is too much is read and thrown away, since a client that is still sending reads no answer; the server's own time limit on a
        request ends that too.

        Raises:
            RequestError: too large, or by its own word not of the type that is wanted.
        """
        kind = content_type.partition(";")[0].strip().lower()
        parts, n_bytes, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError("the client has gone")
            part, more = message.get("body", b""), message.get("more_body", False)
            n_bytes += len(part)
            if n_bytes <= self.options.max_bytes:
                parts.append(part)
            else:
                parts.clear()
        if n_bytes > self.options.max_bytes:
            raise RequestError(f"the request is larger than {self.options.max_request_mb:g} MiB, the most that is served at once")
        if kind != wanted:
            raise RequestError(f"content type {kind or 'missing'}: must be {wanted}")
        return b"".join(parts)

    def _make_threads(self) -> None:
        """As many threads as requests may be at work: the server's own few would keep batches small."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.options.max_requests, thread_name_prefix="requests")
            asyncio.get_running_loop().set_default_executor(self._threads)


def in_server() -> bool:
    """Whether this process is being started as MLflow's scoring server."""
    return SERVER_MODULE in sys.modules


def install(service: Service) -> None:
    """Put the guard before the application that the scoring server makes next: MLflow has no place of its own for middleware."""
    import fastapi

    module: Any = fastapi  # a class of it is replaced
    plain = fastapi.FastAPI

    def guarded(*values: Any, **names: Any) -> fastapi.FastAPI:
        module.FastAPI = plain
        app = plain(*values, **names)
        app.add_middleware(RequestGuard, service=service)
        return app

    module.FastAPI = guarded


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body that was read already, then what else comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    await _send(send, status, _json({"error_code": code, "message": message}))


async def _send(send: Send, status: int, reply: Reply) -> None:
    headers = [(b"content-type", reply.content_type.encode()), (b"content-length", str(len(reply.body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def _json(value: Mapping[str, Any]) -> Reply:
    return Reply(json.dumps(value).encode(), JSON_TYPE)
