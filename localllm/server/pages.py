"""What one page of KV memory holds, for the dashboard's cursor: its requests, its tokens, the pages before it.

Asked once for each move of a cursor and answered between two steps. Text is for those who may see a request that holds
the page, or manage models.
"""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response

from localllm import wire
from localllm.daemon.journal import Journal, Record, record_id_of
from localllm.daemon.resident import Resident
from localllm.errors import InvalidRequest, LocalLLMError
from localllm.server import page_shapes as shapes
from localllm.server.callers import Caller, caller_of
from localllm.server.desk import Desk
from localllm.server.http import Json
from localllm.server.operations import Operation
from localllm.server.requests import may_see
from localllm.server.tokenizing import last_used

QUERY = (("model", "The model; without it the loaded one that was used last."),)
_STATES: tuple[shapes.PageState, ...] = ("free", "cached", "held", "shared")


class ModelNotLoaded(LocalLLMError):
    """Only a model that is loaded has pages."""

    code = "model_not_loaded"
    http_status = 404
    usual_hint = "`localllm ps` lists those that are loaded"


class Pages:
    """`GET /localllm/v1/pages/{page}`."""

    def __init__(self, desk: Desk, journal: Journal) -> None:
        self._residency = desk.residency
        self._journal = journal

    def operations(self) -> Sequence[Operation]:
        return (
            Operation(
                "GET", "/localllm/v1/pages/{page}", self.page, "Tell what a page holds", "localllm", shapes.PageDetails,
                query=QUERY,
            ),
        )  # fmt: skip

    async def page(self, request: Request) -> Response:
        resident = await self._resident(request.query_params.get("model"))
        number = _page_number(request.path_params["page"], resident)
        answer = await resident.ask(lambda question_id: wire.AskPage(question_id, number))
        assert isinstance(answer, wire.PageAnswer)
        return Json(self._details(answer, resident, caller_of(request)))

    async def _resident(self, name: str | None) -> Resident:
        if not name:
            found = last_used(self._residency)
        else:
            entry = await self._residency.find(name)
            named = (each for each in self._residency.residents() if each.entry.digest == entry.digest)
            found = next((each for each in named if each.state == "ready"), None)
        if found is None:
            raise ModelNotLoaded(f"{name} is not loaded" if name else "no model is loaded", param="model")
        return found

    def _details(self, answer: wire.PageAnswer, resident: Resident, caller: Caller) -> shapes.PageDetails:
        assert resident.ready is not None
        size = resident.ready.page_size
        shown = {holder.request_id: self._visible(holder.request_id, caller) for holder in answer.holders}
        is_readable = "manage" in caller.scopes or any(shown.values())
        return shapes.PageDetails(
            model=resident.entry.name,
            page=answer.page,
            state=_STATES[answer.state],
            references=answer.num_references,
            start=answer.index * size,
            end=answer.index * size + len(answer.tokens),
            holders=[_holder(holder, shown[holder.request_id], size) for holder in answer.holders],
            tokens=[_token(resident, token_id) for token_id in answer.tokens] if is_readable else None,
            chain=[self._link(link, caller) for link in answer.chain],
            chain_length=answer.num_links,
        )

    def _link(self, link: wire.PageLink, caller: Caller) -> shapes.ChainLink:
        records = [self._visible(holder, caller) for holder in link.holders]
        ids = [record.id for record in records if record is not None]
        return shapes.ChainLink(link.page, link.chain, len(link.holders), list(dict.fromkeys(ids)))

    def _visible(self, sequence_id: str, caller: Caller) -> Record | None:
        record = self._journal.find(record_id_of(sequence_id))
        return record if record is not None and may_see(caller, record) else None


def _page_number(given: str, resident: Resident) -> int:
    most = resident.ready.num_pages - 1 if resident.ready else 0
    if not (given.isascii() and given.isdigit() and len(given) < 12 and int(given) <= most):
        raise InvalidRequest(f"page must be a number from 0 to {most}", param="page")
    return int(given)


def _holder(holder: wire.PageHolder, record: Record | None, page_size: int) -> shapes.Holder:
    start = holder.index * page_size
    if record is None:
        return shapes.Holder(None, 0, start, start + page_size)
    return shapes.Holder(record.id, record.serial, start, start + page_size)


def _token(resident: Resident, token_id: int) -> shapes.PageToken:
    raw = resident.text.tokenizer.said_bytes(token_id)
    return shapes.PageToken(token_id, raw.decode("utf-8", errors="replace"), list(raw))
