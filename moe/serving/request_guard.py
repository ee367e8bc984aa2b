"""The door of the scoring server: a request is bounded and checked before the server reads it into tables.

MLflow's server takes bodies of any size, ignores parameters that it does not know, repairs broken base64 and answers with what it
was sent; this stands before it as ASGI middleware and answers 400 with one sentence instead.
"""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from moe.serving.requests import RequestError, ServiceOptions

SERVER_MODULE = "mlflow.pyfunc.scoring_server.app"
PLACE = "/invocations"
JSON_TYPE = "application/json"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class RequestGuard:
    """ASGI middleware.

    Args:
        app: the server behind it.
        check: raises RequestError for a body that is not to be served.
    """

    def __init__(self, app: Callable[..., Awaitable[None]], check: Callable[[bytes], None], options: ServiceOptions) -> None:
        self.app, self.check, self.options = app, check, options
        self.n_requests = 0
        self._threads: ThreadPoolExecutor | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Check a request for a transcript and pass it on; everything else passes unchecked."""
        if scope["type"] != "http" or scope["path"] != PLACE or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        self._make_threads()
        self.n_requests += 1
        try:
            body = await self._body(scope, receive)
            if self.n_requests > self.options.max_requests:
                await _answer(send, 503, "TEMPORARILY_UNAVAILABLE", "the server is busy: try again in a moment")
                return
            await asyncio.to_thread(self.check, body)
        except RequestError as error:
            await _answer(send, error.status, error.code, str(error))
        else:
            await self.app(scope, _replay(body, receive), send)
        finally:
            self.n_requests -= 1

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        """The whole body, at most as many bytes as are allowed.

        What is too much is read and thrown away, since a client that is still sending reads no answer; the server's own time limit on a
        request ends that too.

        Raises:
            RequestError: too large, or no JSON by its own word.
        """
        kind = dict(scope["headers"]).get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
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
        if kind != JSON_TYPE:
            raise RequestError(f"content type {kind or 'missing'}: must be {JSON_TYPE}")
        return b"".join(parts)

    def _make_threads(self) -> None:
        """As many threads as requests may be at work: the server's own few would keep batches small."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(self.options.max_requests, thread_name_prefix="requests")
            asyncio.get_running_loop().set_default_executor(self._threads)


def in_server() -> bool:
    """Whether this process is being started as MLflow's scoring server."""
    return SERVER_MODULE in sys.modules


def install(check: Callable[[bytes], None], options: ServiceOptions) -> None:
    """Put the guard before the application that the scoring server makes next: MLflow has no place of its own for middleware."""
    import fastapi

    module: Any = fastapi  # a class of it is replaced
    plain = fastapi.FastAPI

    def guarded(*values: Any, **names: Any) -> fastapi.FastAPI:
        module.FastAPI = plain
        app = plain(*values, **names)
        app.add_middleware(RequestGuard, check=check, options=options)
        return app

    module.FastAPI = guarded


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body that was read already, then what else comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def _answer(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error_code": code, "message": message}).encode()
    headers = [(b"content-type", JSON_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
