"""What the Tokens screen asks the daemon for, one question of a kind at a time.

While an answer is awaited later wishes wait, and only the last of them is asked.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from localllm import told
from localllm.errors import LocalLLMError
from localllm.tui.tokens.state import MAX_LISTED, MAX_PANELS, TokensState

if TYPE_CHECKING:
    from localllm.client import Client
    from localllm.tui.link import Link

SAMPLE_CHARS = 2000
"""Of the text, as a message in the template: more than any window shows."""
SYSTEM = "You are a helpful assistant."
MAX_MODELS_AT_FIRST = 2
LONG_CHARS, AROUND_CHARS = 8192, 512
"""Of a text that is longer, a word is asked about with the lines around it alone."""


class Turn:
    """Runs one piece of work at a time; a wish meanwhile makes it run once more."""

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._is_running = False
        self._is_wanted = False

    async def take(self) -> None:
        self._is_wanted = True
        if self._is_running:
            return
        self._is_running = True
        try:
            while self._is_wanted:
                self._is_wanted = False
                await self._work()
        finally:
            self._is_running = False


class Asking:
    """Puts answers into the state. An error becomes a sentence where the answer would stand."""

    def __init__(self, link: Link, state: TokensState) -> None:
        self._link = link
        self._state = state

    async def rows(self) -> list[told.TokenizerRow]:
        """LocalLLMError where there is no daemon."""
        return await self._link.ask(lambda client: client.tokens.tokenizers())

    async def explain(self) -> None:
        state = self._state
        text, names = state.cut_text, list(state.names)
        if not text or not names:
            state.explanation, state.traces, state.facts = None, {}, None
            return
        try:
            found = await self._link.ask(lambda client: client.tokens.explain(text, names, most=MAX_LISTED))
        except LocalLLMError as error:
            state.problem = _sentence(error)
            if error.code != "daemon_unreachable":  # what was here stays where only the connection is gone
                state.explanation = None
            return
        state.traces, state.facts = {}, None
        if names == state.names:
            state.explained(found)

    async def look(self, *, with_others: bool) -> None:
        """The token under the cursor, and how its word was made; with the same word in the other tokenizers."""
        state = self._state
        token, split, text = state.current, state.split, state.cut_text
        if token is None or split is None or not text:
            return
        try:
            if state.facts is None or (state.facts.model, state.facts.id) != (split.model, token.id):
                facts = await self._link.ask(lambda client: client.tokens.facts(split.model, token.id))
                if state.current is token:
                    state.facts = facts
            at = min(token.start, len(text) - 1)
            await self._trace(split.model, text, at)
            for other in state.splits if with_others else ():
                if other.kind != split.kind and not other.problem:
                    await self._trace(other.model, text, at)
        except LocalLLMError as error:
            state.traces[split.model] = told.Trace(
                model=split.model, kind=split.kind, word="", start=0, end=0, ids=[], note=_sentence(error)
            )

    async def _trace(self, model: str, text: str, at: int) -> None:
        state = self._state
        known = state.traces.get(model)
        if known is not None and known.start <= at < known.end:
            return
        found = await self._part_traced(model, text, at)
        if found is None:
            found = await self._link.ask(lambda client: client.tokens.trace(text, model, at))
        if text == state.cut_text:
            state.traces[model] = found

    async def _part_traced(self, model: str, text: str, at: int) -> told.Trace | None:
        """Of a long text, the lines around the place are asked for alone; None where the word is another one then."""
        if len(text) <= LONG_CHARS:
            return None
        start = text.rfind("\n", 0, max(0, at - AROUND_CHARS)) + 1
        end = text.find("\n", at + AROUND_CHARS)
        part = text[start : end if end >= 0 else len(text)]
        if len(part) > LONG_CHARS:
            return None
        found = await self._link.ask(lambda client: client.tokens.trace(part, model, at - start))
        found = msgspec.structs.replace(found, start=found.start + start, end=found.end + start)
        split = next((split for split in self._state.splits if split.model == model), None)
        held = [token.id for token in split.tokens if found.start <= token.start < found.end] if split else []
        return found if held == found.ids else None

    async def look_up(self, limit: int, offset: int | None = None) -> None:
        """What was typed: `#123` is an id, `0xe280` are bytes, the rest is text. Nothing: the cursor's neighbours."""
        state = self._state
        split, query = state.split, state.query
        model = split.model if split else next(iter(state.names), "")
        if not model:
            return
        call = _look_up_call(model, query, limit, self._start(limit) if offset is None else offset)
        try:
            found = await self._link.ask(call)
        except LocalLLMError as error:
            found = told.VocabularyPage(model=model, vocab_size=0, total=0, offset=0, entries=[])
            state.problem = _sentence(error) if error.code == "daemon_unreachable" else state.problem
        if query == state.query:
            state.page = found

    def _start(self, limit: int) -> int:
        """Of a page without a question: it has the cursor's token in its upper third."""
        token = self._state.current
        return 0 if self._state.query or token is None else max(0, token.id - limit // 3)

    async def show_template(self) -> None:
        """The text as a message, behind a system message where the template takes one."""
        state = self._state
        split = state.split
        model = split.model if split else next(iter(state.names), "")
        text = state.text[:SAMPLE_CHARS]
        if not model or not text:
            state.template, state.template_problem = None, ""
            return
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        for chat in (messages, messages[1:]):
            try:
                state.template = await self._link.ask(_template_call(model, chat))
                state.template_problem = ""
                return
            except LocalLLMError as error:
                state.template, state.template_problem = None, _sentence(error)
                if error.code == "daemon_unreachable":
                    return


def _look_up_call(model: str, query: str, limit: int, offset: int) -> Callable[[Client], told.VocabularyPage]:
    token_id = int(query[1:]) if query[:1] == "#" and query[1:].isdecimal() and len(query) < 11 else None
    raw = _bytes_in(query)
    text = query[:256] if query and token_id is None and raw is None else None
    return lambda client: client.tokens.vocabulary(
        model, text=text, token_id=token_id, raw=raw, offset=0 if token_id is not None else offset, limit=limit
    )


def _template_call(model: str, chat: Sequence[Mapping[str, str]]) -> Callable[[Client], told.TemplateView]:
    return lambda client: client.tokens.template(model, chat)


def _bytes_in(query: str) -> bytes | None:
    """`0xe2 80` as bytes; None for anything else."""
    if not query.lower().startswith("0x") or len(query) > 256:
        return None
    try:
        return bytes.fromhex(query[2:]) or None
    except ValueError:
        return None


def first_names(rows: list[told.TokenizerRow], wanted: str) -> list[str]:
    """Which tokenizers stand there at first: the model that is wanted, then those that came alone, then other models.
    Opening one costs memory, so that not all models of a long list are."""
    here = [row for row in rows if row.is_here and not row.note]
    ordered = sorted((row for row in here if row.is_model), key=lambda row: row.name != wanted)
    alone = [row.name for row in here if not row.is_model]
    models = [row.name for row in ordered][:MAX_MODELS_AT_FIRST]
    return [*models[:1], *alone, *models[1:]][:MAX_PANELS]


def _sentence(error: LocalLLMError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message
