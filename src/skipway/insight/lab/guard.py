"""What the lab's server lets in: its own host names and its own page, nobody else.

A page of another site could name this port (DNS rebinding, plain forms, images); so each request must be for
127.0.0.1 or localhost at this port, come from the lab's own origin where the browser says whence it comes, and say so
where it changes or computes something. What goes out may run no script but the lab's own files.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

POLICY = (
    "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # of an SVG, which matplotlib styles inline
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """The app behind its guard.

    Args:
        app: what answers.
        port: that the server listens at.
    """

    def __init__(self, app: App, port: int):
        self._app = app
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":  # the server's own start and end; sockets there are none
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        refusal = self.refusal(scope["method"], Headers(scope=scope))
        if refusal:
            response = JSONResponse({"error": refusal}, 403, HEADERS)
            await response(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, with_headers)

    def refusal(self, method: str, headers: Headers) -> str:
        """Why a request is not answered; "" where it is."""
        host = headers.get("host", "")
        if host not in self._hosts or len(headers.getlist("host")) != 1:
            return "this server answers only to 127.0.0.1 and localhost"
        origin = headers.get("origin")
        if origin is None and method not in ("GET", "HEAD"):
            return "requests that compute something must name their origin"
        if origin is not None and origin != f"http://{host}":
            return "this server answers only its own page"
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "this server answers only its own page"
        return ""
