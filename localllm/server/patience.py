"""A stream for a model that is still loading: its status line goes out at once, then word of the loading, then the
answer. Whoever is not streamed to just waits."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope, Send

from localllm.daemon.residency import Wait
from localllm.errors import LocalLLMError
from localllm.server.http import Streamed, attended, in_time
from localllm.server.outlet import Outlet, outlet_of
from localllm.server.pump import OPENAI_FORM, Form

PATIENCE_S = 1.0
"""So long a refusal still gets a status of its own, whatever the model is doing."""
WORD_EVERY_S = 1.0
STATE = "localllm.wait"


def wait_of(request: Request) -> Wait:
    """What keeps this request from its model, if anything does."""
    found = request.scope.setdefault(STATE, Wait())
    assert isinstance(found, Wait)
    return found


async def streaming(request: Request, begin: Coroutine[Any, Any, Streamed], form: Form = OPENAI_FORM) -> Response:
    """What `begin` makes: a stream that has its first words, or whatever it raises. Where the model turns out to be
    loading, a stream that says so, and goes on as the one that `begin` makes; errors are events from then on."""
    wait = wait_of(request)
    task = asyncio.ensure_future(begin)
    try:
        is_settled = await attended(request, _settled(task, wait))
    except BaseException:
        await _given_up(task)
        raise
    return task.result() if is_settled else _Patient(task, wait, form)


async def _settled(task: "asyncio.Future[Streamed]", wait: Wait) -> bool:
    """True when the task is done, False when it is known that this takes long."""
    while not (await asyncio.wait({task}, timeout=PATIENCE_S))[0]:
        if wait.text is not None:
            wait.is_told = True
            return False
    return True


async def _given_up(task: "asyncio.Future[Streamed]") -> None:
    """Nobody reads what the task makes, or has made."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and task.exception() is None:
        await task.result().close()


class _Patient(Streamed):
    """Word of the loading first, then another stream."""

    def __init__(self, task: "asyncio.Future[Streamed]", wait: Wait, form: Form) -> None:
        super().__init__(form.media_type)
        self._task = task
        self._wait = wait
        self._form = form

    async def write(self, scope: Scope, send: Send) -> bool:
        outlet = outlet_of(scope, send)
        said = None
        while not self._task.done():
            if self._wait.text != said or said is None:
                said = self._wait.text
                outlet.write(self._form.waiting(said or "waiting"))
            if outlet.is_full and not await in_time(outlet.drain()):
                return False
            await asyncio.wait({self._task}, timeout=WORD_EVERY_S)
        try:
            stream = self._task.result()
        except LocalLLMError as error:
            return await _told(outlet, self._form.error(error))
        return await stream.write(scope, send)

    async def close(self) -> None:
        await _given_up(self._task)


async def _told(outlet: Outlet, data: bytes) -> bool:
    outlet.write(data)
    return not outlet.is_full or await in_time(outlet.drain())
