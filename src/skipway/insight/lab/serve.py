"""`skipway lab`: the page and what it asks, served on this machine alone.

    skipway.insight.lab.serve.serve("runs/photos-resnet18-1")

The page is plain files in skipway/web/lab; each room of it has its requests in a file here: strip.py, race_room.py,
terrain.py, one_image.py, jobs.py. guard.py says who is answered.
"""

import asyncio
import socket
import threading
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipway.errors import InputError
from skipway.insight.subject import Subject, subject_of
from skipway.run import Run

if TYPE_CHECKING:
    from skipway.insight.lab.guard import Guard

HOST = "127.0.0.1"
WEB = Path(__file__).parents[2] / "web" / "lab"


def make_app(subject: Subject, *, port: int, what: str = "", data: str = "", trust_code: bool = False) -> "Guard":
    """The lab of a subject as an ASGI app, behind its guard.

    Args:
        subject: network and images.
        port: that it is served at; requests must name it.
        what, data: as the user gave them, for the lines of Python that panels show.
        trust_code: as in load_model.

    Raises:
        InputError: a network without known residual blocks.
    """
    from fastapi import FastAPI
    from starlette.staticfiles import StaticFiles

    from skipway.insight.lab import jobs, one_image, race_room, strip, terrain
    from skipway.insight.lab.guard import Guard
    from skipway.insight.lab.state import Lab

    lab = Lab(subject, what=what, data=data)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(lab.close)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    _answer_errors(app)
    app.include_router(strip.routes(lab, trust_code=trust_code))
    for room in (race_room, terrain, one_image, jobs):
        app.include_router(room.routes(lab))
    app.mount("/", StaticFiles(directory=WEB, html=True))
    return Guard(app, port)


def _answer_errors(app: Any) -> None:
    """Every refusal is one sentence of JSON."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    from skipway.insight.lab.asked import TooLarge
    from skipway.insight.lab.stream import BROKEN

    def refused(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 413 if isinstance(error, TooLarge) else 422)

    def missing(_: Request, error: Exception) -> JSONResponse:
        status = getattr(error, "status_code", 404)
        return JSONResponse({"error": "there is nothing here" if status == 404 else "that is not done here"}, status)

    def broken(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": BROKEN}, 500)

    app.add_exception_handler(InputError, refused)
    app.add_exception_handler(RequestValidationError, missing)
    app.add_exception_handler(HTTPException, missing)
    app.add_exception_handler(Exception, broken)


def serve(
    what: Run | str | Path, *, data: str = "", port: int = 0, open_browser: bool = True, trust_code: bool = False
) -> None:
    """Serve the lab until it is interrupted.

    Args:
        what: a run, its folder, or a network's name.
        data: other images than the run's own; for a name the data, scikit-learn's digits by default.
        port: to listen at; 0: one that is free.
        open_browser: show the page.
        trust_code: as in load_model.

    Raises:
        InputError: no such run, network or data; the run's data are not at their place; a port that is taken; or
            fastapi and uvicorn are not installed.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise InputError(f"the lab needs {error.name}: pip install 'skipway[see]'") from error
    name = str(what.folder if isinstance(what, Run) else what)
    with _listening(port) as listener:
        port = listener.getsockname()[1]
        app = make_app(subject_of(what, data, trust_code=trust_code), port=port, what=name, data=data)
        address = f"http://{HOST}:{port}"
        print(f"the lab of {name}: {address}    Ctrl-C ends it", flush=True)
        if open_browser:
            threading.Timer(0.5, webbrowser.open, [address]).start()
        settings = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, server_header=False)
        uvicorn.Server(settings).run([listener])


def _listening(port: int) -> socket.socket:
    """A socket of this machine alone. Raises InputError where the port is taken."""
    if not 0 <= port <= 65535:
        raise InputError(f"port must be from 0 to 65535, got {port}")
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"port {port} cannot be had ({error.strerror}): choose another, or 0 for a free one"
        ) from error
    return listener
