"""Work in a thread of its own, told to the page as it goes: server-sent events of progress, partial results, the end.

The page that goes away, or wants something else, closes the stream: then the work is cancelled.
"""

import asyncio
import contextlib
import json
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from starlette.responses import StreamingResponse

from skipway.errors import InputError
from skipway.insight.plain import to_plain
from skipway.insight.watch import Cancelled, Watch

log = logging.getLogger("uvicorn.error")
THREADS = torch.get_num_threads()
PATIENCE_S = 10.0  # at the end
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
BROKEN = "something went wrong that should not; the terminal where the lab runs says what"


def event(kind: str, value: Any) -> str:
    """One event as text."""
    return f"event: {kind}\ndata: {json.dumps(to_plain(value))}\n\n"


def streamed(work: Callable[[Watch], Any]) -> StreamingResponse:
    """Events "progress" (a share), "partial", and at the end "result" or "error" (a sentence) of some work."""
    return responding(_told(work))


def responding(events: AsyncIterator[str]) -> StreamingResponse:
    """A response of events."""
    return StreamingResponse(events, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def in_thread(work: Callable[[], None]) -> None:
    """Start work in a thread of its own, with all of the processor: a race that computes with one thread of PyTorch's
    would else hand that down to threads begun meanwhile. `wait_for_threads` waits for it."""

    def run() -> None:
        torch.set_num_threads(THREADS)
        work()

    thread = threading.Thread(target=run, daemon=True)
    _threads.add(thread)
    thread.start()


def wait_for_threads() -> None:
    """Give work that was told to stop the time to: Python must not end while PyTorch computes in a thread."""
    deadline = time.monotonic() + PATIENCE_S
    for thread in list(_threads):
        thread.join(max(deadline - time.monotonic(), 0.0))


async def _told(work: Callable[[Watch], Any]) -> AsyncIterator[str]:
    loop, gone = asyncio.get_running_loop(), threading.Event()
    queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    def put(kind: str, value: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended meanwhile
            loop.call_soon_threadsafe(queue.put_nowait, (kind, value))

    watch = Watch(lambda share: put("progress", share), lambda part: put("partial", part), gone.is_set)
    in_thread(lambda: put(*outcome(lambda: work(watch))))
    try:
        while True:
            kind, value = await queue.get()
            yield event(kind, value)
            if kind in ("result", "error", "cancelled"):
                return
    finally:
        gone.set()


def outcome(work: Callable[[], Any]) -> tuple[str, Any]:
    """How work ends: ("result", it), ("error", a sentence) or ("cancelled", "")."""
    try:
        return "result", work()
    except Cancelled:
        return "cancelled", ""
    except InputError as error:
        return "error", str(error)
    except Exception:  # a fault of the program's: the page says so and goes on
        log.exception("the lab failed")
        return "error", BROKEN
