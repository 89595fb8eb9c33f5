"""Requests from outside: which are under way or were lately, what they waited for, and ending them.

A key sees and ends its own requests; one that may manage sees all.
"""

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.feed import RequestEvent
from localllm.daemon.journal import Event, Journal, Record
from localllm.errors import LocalLLMError
from localllm.server.callers import Caller, caller_of
from localllm.server.http import Json
from localllm.server.operations import Operation
from localllm.server.verdict import Phases, phases_of, verdict
from localllm.server.waterfall import Waterfall, waterfall_of

State = Literal["queued", "loading", "waiting", "reading", "writing", "finished", "failed"]


class RequestNotFound(LocalLLMError):
    """No request of this name is known, or it is somebody else's."""

    code = "request_not_found"
    http_status = 404
    usual_hint = "`localllm ps --requests` lists those under way"


class RequestRow(msgspec.Struct, kw_only=True):
    """One request. `verdict` says in a sentence where its time went; `age_s` counts from its arrival to its end, or to
    now; `created` is in seconds since the epoch."""

    id: str
    route: str
    model: str
    caller: str
    state: State
    created: float
    age_s: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    verdict: str
    object: Literal["request"] = "request"


class RequestDetails(RequestRow, kw_only=True):
    """A request with everything that happened to it, the seconds that each phase took, and all that it takes to draw
    them."""

    events: list[RequestEvent]
    phases: Phases
    waterfall: Waterfall


class RequestList(msgspec.Struct):
    """Those under way first, the oldest first; then those that are over, the latest first."""

    data: list[RequestRow]
    object: Literal["list"] = "list"


class CancelledRequest(msgspec.Struct):
    """`cancelled` is false where the request was over before."""

    id: str
    cancelled: bool
    state: State


class Requests:
    """`/v1/requests`, `/v1/requests/{id}` and its `cancel`."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def operations(self) -> Sequence[Operation]:
        base = "/v1/requests"
        return (
            Operation("GET", base, self.listed, "List the requests", "requests", RequestList),
            Operation("GET", base + "/{id}", self.one, "Find one request", "requests", RequestDetails),
            Operation("POST", base + "/{id}/cancel", self.cancel, "End one request", "requests", CancelledRequest),
        )

    async def listed(self, request: Request) -> Response:
        caller, journal = caller_of(request), self._journal
        found = [record for record in (*journal.running.values(), *journal.over()) if may_see(caller, record)]
        return Json(RequestList([row_of(record) for record in found]))

    async def one(self, request: Request) -> Response:
        record, caller, journal = self._found(request), caller_of(request), self._journal
        known = (*journal.running.values(), *journal.over())
        return Json(details_of(record, waterfall_of(record, known, lambda other: may_see(caller, other))))

    async def cancel(self, request: Request) -> Response:
        record = self._found(request)
        is_cancelled = record.cancel()
        return Json(CancelledRequest(record.id, is_cancelled, state_of(record)))

    def _found(self, request: Request) -> Record:
        name = request.path_params["id"]
        record = self._journal.find(name)
        if record is None or not may_see(caller_of(request), record):
            raise RequestNotFound(f"there is no request {name!r}", param="id")
        return record


def may_see(caller: Caller, record: Record) -> bool:
    return "manage" in caller.scopes or caller.name == record.caller


def row_of(record: Record) -> RequestRow:
    return RequestRow(**_fields(record))


def details_of(record: Record, waterfall: Waterfall) -> RequestDetails:
    events = [event_of(record, happened) for happened in record.events]
    return RequestDetails(**_fields(record), events=events, phases=phases_of(record), waterfall=waterfall)


def event_of(record: Record, happened: Event) -> RequestEvent:
    return RequestEvent(
        id=record.id,
        model=record.model,
        route=record.route,
        name=happened.name,
        at=happened.at,
        time=record.wall_time(happened),
        data=happened.data,
        serial=record.serial,
        source=record.source or record.caller,
        priority=record.priority,
    )


def _fields(record: Record) -> dict[str, Any]:
    admitted = record.first("admitted")
    return {
        "id": record.id,
        "route": record.route,
        "model": record.model,
        "caller": record.caller,
        "state": state_of(record),
        "created": record.created,
        "age_s": phases_of(record).total_s,
        "prompt_tokens": admitted.data["prompt"] if admitted else 0,
        "cached_tokens": admitted.data["cached"] if admitted else 0,
        "completion_tokens": record.num_tokens,
        "verdict": verdict(record),
    }


_STATES: dict[str, State] = {
    "queued": "queued",
    "loading": "loading",
    "submitted": "waiting",
    "admitted": "reading",
    "progress": "reading",
    "first_token": "writing",
    "preempted": "waiting",
    "resumed": "writing",
    "finished": "finished",
    "failed": "failed",
}


def state_of(record: Record) -> State:
    last = record.events[-1].name
    return "reading" if last == "resumed" and not record.num_tokens else _STATES[last]
