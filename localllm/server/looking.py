"""Looking into the daemon as llama.cpp's and vLLM's clients do: properties, slots, readiness, load."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from localllm.daemon.replies import Ask, Reply
from localllm.daemon.resident import Resident
from localllm.errors import LocalLLMError, Overloaded
from localllm.runtime.presets import sampling_in_force
from localllm.server import looking_shapes as shapes
from localllm.server.callers import Caller, caller_of, seen_by
from localllm.server.desk import Desk
from localllm.server.http import Json
from localllm.server.operations import Operation
from localllm.server.requests import may_see
from localllm.server.tokenizing import MODEL_QUERY, last_used, meant_model
from localllm.store.entry import Entry
from localllm.wire import SamplingParams

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide

TAG = "looking in"
NO_SLOT_QUERY = (("fail_on_no_slot", "1: answer 503 where no sequence more could run at once."),)


class Looking:
    """`/props`, `/slots`, `/ready` and `/load`."""

    def __init__(self, desk: Desk, version: str) -> None:
        self._desk = desk
        self._residency = desk.residency
        self._version = version

    def operations(self) -> Sequence[Operation]:
        return (
            Operation("GET", "/props", self.props, "Tell the model's properties", TAG, shapes.Props, query=MODEL_QUERY),
            Operation("GET", "/slots", self.slots, "List running sequences", TAG, query=NO_SLOT_QUERY),
            Operation(
                "GET", "/ready", self.ready, "Tell whether it would answer", TAG, shapes.Readiness,
                unwell=shapes.Readiness, scope="open", query=MODEL_QUERY,
            ),
            Operation("GET", "/load", self.load, "Count the requests under way", TAG, shapes.ServerLoad),
        )  # fmt: skip

    async def props(self, request: Request) -> Response:
        entry = await self._residency.find(meant_model(self._desk, request.query_params.get("model")))
        resident = self._resident(entry)
        seen = seen_by(caller_of(request), entry)
        return Json(_props(seen, resident, self._desk.settings.max_sequences, self._version))

    def _resident(self, entry: Entry) -> Resident | None:
        """The model if it answers now."""
        named = (each for each in self._residency.residents() if each.entry.digest == entry.digest)
        return next((each for each in named if each.state == "ready"), None)

    async def slots(self, request: Request) -> Response:
        total, caller = self._desk.settings.max_sequences, caller_of(request)
        taken = [slot for reply in list(self._desk.replies) for slot in _slots(reply, caller)][:total]
        if request.query_params.get("fail_on_no_slot") in ("1", "true") and len(taken) == total:
            raise Overloaded(f"all {total} sequences that may run at once do run", hint="try again in a few seconds")
        loaded = last_used(self._residency)
        n_ctx = loaded.context_length if loaded else 0
        idle = [_idle_slot(n_ctx) for _ in range(total - len(taken))]
        slots = [msgspec.structs.replace(slot, id=number) for number, slot in enumerate([*taken, *idle])]
        return Json(slots)

    async def ready(self, request: Request) -> Response:
        """Whether a request would be answered now; one that names a model, without waiting for it to load."""
        reason = await self._why_not(request.query_params.get("model"))
        if reason is None:
            return Json(shapes.Readiness("ready"))
        return Json(shapes.Readiness("not ready", reason), status_code=503, headers={"retry-after": "2"})

    async def _why_not(self, name: str | None) -> str | None:
        admission = self._desk.admission
        if self._desk.is_draining:
            return "the daemon is shutting down"
        if admission.num_requests >= admission.bounds.requests:
            return "as many requests as may wait do wait"
        if not name:
            return "a model has crashed" if self._residency.crashes.wounds() else None
        try:
            entry = await self._residency.find(name)
        except LocalLLMError as error:
            return error.message
        return None if self._resident(entry) else "the model is not loaded"

    async def load(self, request: Request) -> Response:
        return Json(shapes.ServerLoad(self._desk.admission.num_requests))


def _props(entry: Entry, resident: Resident | None, total_slots: int, version: str) -> shapes.Props:
    text = resident.text if resident else None
    bos, eos = _ends(text) if text else ("", "")
    return shapes.Props(
        default_generation_settings=shapes.GenerationSettings(
            n_ctx=resident.context_length if resident else entry.context_length,
            params=_sampling(sampling_in_force({}, entry.params, text.default_sampling if text else {})),
        ),
        total_slots=total_slots,
        model_alias=entry.name,
        model_path=entry.path,
        chat_template=text.template.source if text else entry.template,
        bos_token=bos,
        eos_token=eos,
        build_info=f"localllm-{version}",
        is_sleeping=resident is None,
    )


def _ends(text: "TextSide") -> tuple[str, str]:
    """How the tokens at the beginning and at the end are spelled; empty where there is none."""
    built = text.tokenizer.built
    begin, end = (
        "" if token_id is None else built.texts[token_id] for token_id in (built.special.bos_id, built.special.eos_id)
    )
    return begin, end


def _slots(reply: Reply, caller: Caller) -> Iterator[shapes.Slot]:
    """One for each sequence that has not ended."""
    shown = may_see(caller, reply.record)
    for index, ask in enumerate(reply.asks):
        num_generated = reply.num_generated(index)
        if num_generated is None:
            continue
        yield shapes.Slot(
            id=0,
            id_task=reply.record.sequence_id(index) if shown else -1,
            n_ctx=reply.context_length,
            speculative=False,
            is_processing=True,
            params=_params(ask) if shown else {},
            next_token=shapes.NextToken(
                True, -1 if ask.max_tokens is None else ask.max_tokens - num_generated, num_generated
            ),
        )


def _params(ask: Ask) -> dict[str, Any]:
    return {
        **_sampling(ask.sampling),
        "max_tokens": ask.max_tokens,
        "stop": ask.stop,
        "n_probs": ask.top_logprobs or 0,
        "priority": ask.priority,
    }


def _sampling(params: SamplingParams) -> dict[str, Any]:
    fields = {name: getattr(params, name) for name in params.__struct_fields__}
    return {**fields, "logit_bias": [[token_id, bias] for token_id, bias in params.logit_bias.items()]}


def _idle_slot(n_ctx: int) -> shapes.Slot:
    return shapes.Slot(
        id=0,
        id_task=-1,
        n_ctx=n_ctx,
        speculative=False,
        is_processing=False,
        params={},
        next_token=shapes.NextToken(False, 0, 0),
    )
