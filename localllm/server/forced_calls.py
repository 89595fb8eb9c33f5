"""Calls that a model must make, as a grammar: written in its own manner, arguments as their schemas want them."""

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from localllm.daemon.formats import Format
from localllm.daemon.grammars import Draft, embedded_schema, lark_grammar
from localllm.errors import InvalidRequest
from localllm.server.chat_checks import ToolUse

if TYPE_CHECKING:
    from localllm.tokens.markup import MarkupSpec
    from localllm.tokens.markup.forcing import Lead


def strict_calls(
    use: ToolUse, markup: "MarkupSpec", say: Callable[[str], str], controls: Collection[str], lead: "Lead"
) -> Format | None:
    """Calls need not come, but the arguments of `strict` functions fit where they do. None without such functions."""
    from localllm.tokens.markup.forcing import NO_CALL, Lead, call_form, call_grammar, trigger_of  # deferred

    if not any(tool["function"].get("strict") for tool in use.tools):
        return None
    form = call_form(markup, controls)
    trigger = trigger_of(markup, form)
    functions = [(tool["function"]["name"], _loose_schema(tool["function"])) for tool in use.tools]
    grammar = call_grammar(form, functions, say, is_parallel=use.is_parallel, begun=trigger)
    calls = lark_grammar(grammar, param="tools")
    if trigger:
        return Format(None, "tools", Lead(after=trigger), calls, is_lazy=True)
    return Format(lark_grammar(NO_CALL), "tools", lead, calls)


def _loose_schema(function: Mapping[str, Any]) -> str:
    return _schema(function) if function.get("strict") else embedded_schema({"type": "object"}, param="tools")


def calls_draft(use: ToolUse, markup: "MarkupSpec", say: Callable[[str], str], controls: Collection[str]) -> Draft:
    """InvalidRequest names `tools` where a schema cannot be kept to."""
    from localllm.tokens.markup.forcing import call_form, call_grammar  # deferred: models bring it

    functions = [(tool["function"]["name"], _schema(tool["function"])) for tool in use.tools]
    grammar = call_grammar(call_form(markup, controls), functions, say, is_parallel=use.is_parallel)
    return lark_grammar(grammar, param="tools")


def _schema(function: Mapping[str, Any]) -> str:
    """Of the arguments: an object with the properties that its schema names, if it does not say itself what else there
    may be. Without a schema there are no arguments."""
    schema = dict(function.get("parameters") or {"properties": {}})
    if schema.setdefault("type", "object") != "object":
        raise InvalidRequest(f"the parameters of {function['name']!r} must be those of an object", param="tools")
    schema.setdefault("additionalProperties", "properties" not in schema and "$ref" not in schema)
    return embedded_schema(schema, param="tools")
