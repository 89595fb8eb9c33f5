"""Grammars for answers: drawn up from what requests ask for, and checked before any of them comes near an engine.

A draft is cheap to make and refused at once where it is out of measure. `Grammars.checked` does the rest in a child
process with limits on time and memory: whatever is sent, the answer is there within a second. The grammar engine is
llguidance (https://github.com/guidance-ai/llguidance); its code runs in the child and in the worker, never here.
"""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from localllm.daemon.bounds import readable
from localllm.daemon.expressions import ascii_classes, shortest
from localllm.errors import InvalidGrammar, InvalidSchema, LocalLLMError, Overloaded
from localllm.tokens.confined import Confined, DidNotStart

CHECK_S = 0.9
"""By the clock. The process has a limit of its own on the CPU's time, which comes first unless the machine is busy."""
TOO_MUCH = "it takes too much time or memory to follow"
MAX_DEPTH = 32
MAX_NODES = 2000
MAX_REGEX_CHARS = 1024
MAX_SHORTEST = 1 << 15
"""Characters of the shortest match of an expression: an answer that must be longer never comes to its end."""
MAX_GRAMMAR_CHARS = 1 << 16
MAX_CHOICES = 1000
MAX_KEPT = 256
MAX_WAITING = 32

_WHITESPACE = r"[ \t]|\r?\n( {0,64}|\t{0,16})"
"""Between the tokens of JSON. llguidance allows any amount, and a small model may go on with it for ever."""

Kind = Literal["json_schema", "regex", "choice", "lark", "gbnf", "composed"]


@dataclass(frozen=True, slots=True)
class Draft:
    """A grammar as it was asked for; `Grammars.checked` makes of it what `wire.Constraint.grammar` takes."""

    kind: Kind
    text: str


def json_object_grammar() -> Draft:
    """Any JSON object."""
    return json_schema_grammar({"type": "object"})


def json_schema_grammar(schema: object, *, param: str = "response_format") -> Draft:
    """JSON that validates against the schema, a mapping or a boolean. InvalidSchema for what is out of measure."""
    return Draft("json_schema", embedded_schema(schema, param=param))


def embedded_schema(schema: object, *, param: str = "response_format") -> str:
    """The schema as one line to stand behind `%json ` in a Lark grammar. InvalidSchema for what is out of measure."""
    if schema is True:
        schema = {}
    if not isinstance(schema, Mapping):
        raise InvalidSchema("a JSON schema is an object", param=param)
    _check_measure(schema, param)
    try:
        return json.dumps({**readable(schema), "x-guidance": {"whitespace_pattern": _WHITESPACE}}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidSchema(f"the schema is no JSON: {error}", param=param) from error


def regex_grammar(pattern: str, *, param: str = "regex") -> Draft:
    """Text that the whole expression matches (syntax of Rust's regex crate: no look-around, no back-references)."""
    if len(pattern) > MAX_REGEX_CHARS:
        raise InvalidGrammar(_too_long("a regular expression", len(pattern), MAX_REGEX_CHARS), param=param)
    if (least := shortest(pattern)) > MAX_SHORTEST:
        raise InvalidGrammar(_endless("the regular expression", least), param=param)
    return Draft("regex", ascii_classes(pattern))


def choice_grammar(choices: Sequence[str], *, param: str = "choice") -> Draft:
    """Exactly one of the texts."""
    if not choices or not all(isinstance(choice, str) for choice in choices):
        raise InvalidGrammar("choices are a list of at least one text", param=param)
    if len(choices) > MAX_CHOICES:
        raise InvalidGrammar(f"{len(choices)} choices are more than {MAX_CHOICES}", param=param)
    return _measured("choice", json.dumps(list(dict.fromkeys(choices))), param)


def lark_grammar(text: str, *, param: str = "grammar") -> Draft:
    """Lark in llguidance's dialect; rule `start` is the answer. Control tokens are `<[id]>`, see `lark_text`."""
    return _measured("lark", text, param)


def gbnf_grammar(text: str, *, param: str = "grammar") -> Draft:
    """GBNF as llama.cpp has it; rule `root` is the answer."""
    return _measured("gbnf", text, param)


def composed_grammar(grammar: str) -> Draft:
    """Several that were checked, as `wire.Constraint` takes them."""
    return Draft("composed", grammar)


def lark_text(text: str, control_ids: Mapping[str, int]) -> str:
    """A text as a Lark expression. Of `control_ids` (spelling to id) those that occur in it stand for their tokens,
    which no quoted text can ever mean; all else is quoted."""
    found = min(((text.index(name), -len(name), name) for name in control_ids if name and name in text), default=None)
    if found is None:
        return json.dumps(text, ensure_ascii=False)
    place, _, name = found
    before, after = text[:place], text[place + len(name) :]
    parts = [json.dumps(before, ensure_ascii=False)] if before else []
    parts.append(f"<[{control_ids[name]}]>")
    return " ".join([*parts, lark_text(after, control_ids)] if after else parts)


class Grammars:
    """Checks drafts, a few at a time, and remembers what it found. Belongs to one event loop; `close` ends the
    processes."""

    def __init__(self, *, num_processes: int = 2) -> None:
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="grammars")
        self._idle = [Confined("localllm.daemon.grammar_child") for _ in range(num_processes)]
        self._found: OrderedDict[Draft, dict[str, str]] = OrderedDict()
        self._num_waiting = 0
        self._is_warm = False

    async def checked(self, draft: Draft, *, param: str = "response_format") -> str:
        """The grammar as `wire.Constraint` takes it. InvalidSchema or InvalidGrammar naming `param` for one that
        cannot be kept to; Overloaded when too many wait for their answer already, or the machine has no time."""
        found = self._found.get(draft) or await self._find(draft)
        if found is None:  # not the grammar's fault, as the limit on the time of the CPU was not met
            raise Overloaded("the machine is too busy to check the grammar", hint="try again in a moment")
        self._remember(draft, found)
        if "grammar" in found:
            return found["grammar"]
        refusal = InvalidSchema if draft.kind == "json_schema" else InvalidGrammar
        raise refusal(f"this {_NAMES[draft.kind]} cannot be kept to: {found['failure']}", param=param)

    def warm(self) -> None:
        """Start a process in the background, so that the first grammar need not wait for it; only once."""
        if not self._is_warm:
            self._is_warm = True
            self._threads.submit(self._ask, json_object_grammar())

    def close(self) -> None:
        """End the processes; no call follows."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._idle:
            process.close()

    def _remember(self, draft: Draft, found: dict[str, str]) -> None:
        self._found[draft] = found
        self._found.move_to_end(draft)
        while len(self._found) > MAX_KEPT:
            self._found.popitem(last=False)

    async def _find(self, draft: Draft) -> dict[str, str] | None:
        if self._num_waiting >= MAX_WAITING:
            raise Overloaded("too many grammars are being checked at once", hint="try again in a second")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._ask, draft)
        finally:
            self._num_waiting -= 1

    def _ask(self, draft: Draft) -> dict[str, str] | None:
        """In a thread: there are as many processes as threads, so one is idle. None: there was no answer in time."""
        process = self._idle.pop()
        try:
            found: dict[str, str] | None = process.ask({"kind": draft.kind, "text": draft.text}, CHECK_S)
        except TimeoutError:
            return None
        except DidNotStart:
            raise LocalLLMError("the process that checks grammars did not start") from None
        finally:
            self._idle.append(process)
        return {"failure": TOO_MUCH} if found is None else found


_NAMES: Mapping[Kind, str] = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "choice": "list of choices",
    "lark": "grammar",
    "gbnf": "grammar",
    "composed": "form of an answer",
}


def _measured(kind: Kind, text: str, param: str) -> Draft:
    if len(text) > MAX_GRAMMAR_CHARS:
        raise InvalidGrammar(_too_long(f"a {_NAMES[kind]}", len(text), MAX_GRAMMAR_CHARS), param=param)
    return Draft(kind, text)


def _check_measure(schema: Mapping[str, Any], param: str) -> None:
    """Depth, parts and expressions of a schema, without recursion: it comes from strangers."""
    if "x-guidance" in schema:
        raise InvalidSchema("x-guidance is not for requests", param=param)
    num_nodes, level = 0, [schema]
    for _ in range(2 * MAX_DEPTH):  # a schema lies under a keyword of the one around it
        num_nodes += len(level)
        if num_nodes > MAX_NODES:
            raise InvalidSchema(f"the schema has more than {MAX_NODES} parts", param=param)
        level = [child for node in level for child in _children(node, param)]
        if not level:
            return
    raise InvalidSchema(f"the schema is nested more than {MAX_DEPTH} deep", param=param)


def _children(node: object, param: str) -> list[Any]:
    """What counts as a part of its own: all of a list, but no plain value of a keyword."""
    if isinstance(node, Mapping):
        _check_expressions(node, param)
        return [value for value in node.values() if isinstance(value, Mapping | list | tuple)]
    return list(node) if isinstance(node, list | tuple) else []


def _check_expressions(node: Mapping[str, Any], param: str) -> None:
    keyed = node.get("patternProperties")
    patterns = [node.get("pattern"), *(keyed if isinstance(keyed, Mapping) else ())]
    for pattern in patterns:
        if isinstance(pattern, str) and len(pattern) > MAX_REGEX_CHARS:
            raise InvalidSchema(_too_long("a pattern", len(pattern), MAX_REGEX_CHARS), param=param)
        if isinstance(pattern, str) and (least := shortest(pattern)) > MAX_SHORTEST:
            raise InvalidSchema(_endless("a pattern", least), param=param)


def _endless(what: str, least: int) -> str:
    return f"{what} matches nothing shorter than {least} characters; it may ask for {MAX_SHORTEST} at most"


def _too_long(what: str, length: int, most: int) -> str:
    return f"{what} may have {most} characters, not {length}"
