"""What a chat request may say about tools, and which of its fields go together."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from localllm.errors import InvalidRequest

if TYPE_CHECKING:
    from localllm.server.fields import ChatRequest

MAX_TOOLS = 128
MAX_CONTINUED_IDS = 65_536
_NAME = re.compile(r"[\w.:/-]{1,256}", re.ASCII)
_EXAMPLE = 'for example {"type": "function", "function": {"name": "f", "parameters": {}}}'
Mode = Literal["none", "auto", "required"]


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that an answer may call, in OpenAI's form; the model is told of those that are `listed`. `required`:
    the answer consists of calls and nothing else. `is_parallel`: it may have more than one."""

    tools: Sequence[Mapping[str, Any]] = ()
    mode: Mode = "none"
    is_parallel: bool = True
    listed: Sequence[Mapping[str, Any]] = ()


def tool_use(request: "ChatRequest") -> ToolUse:
    """InvalidRequest where the choice names no tool, or is none."""
    tools, choice = request.tools or [], request.tool_choice
    is_parallel = request.parallel_tool_calls is not False
    if isinstance(choice, Mapping):
        return _chosen(tools, choice, is_parallel)
    if choice not in (None, "none", "auto", "required"):
        raise _wrong_choice(f"must be none, auto, required, or name a function, not {choice!r}")
    if choice == "required" and not tools:
        raise _wrong_choice("required needs `tools`")
    if not tools or choice == "none":
        return ToolUse()
    return ToolUse(tools, "required" if choice == "required" else "auto", is_parallel, tools)


def _chosen(tools: Sequence[Mapping[str, Any]], choice: Mapping[str, Any], is_parallel: bool) -> ToolUse:
    if choice.get("type") == "allowed_tools":
        return _allowed(tools, choice.get("allowed_tools"), is_parallel)
    name = _name_of(choice)
    if name is None:
        raise _wrong_choice('must be like {"type": "function", "function": {"name": "f"}}')
    return ToolUse([_tool(tools, name)], "required", False, tools)


def _allowed(tools: Sequence[Mapping[str, Any]], allowed: Any, is_parallel: bool) -> ToolUse:
    """OpenAI's newer form: some of the tools, and whether one has to be called."""
    listed = allowed.get("tools") if isinstance(allowed, Mapping) else None
    if not isinstance(listed, list) or not listed or allowed.get("mode") not in ("auto", "required"):
        raise _wrong_choice("allowed_tools needs a mode, auto or required, and a list of tools")
    names = [_name_of(each) if isinstance(each, Mapping) else None for each in listed]
    some = [_tool(tools, name) for name in names]
    return ToolUse(some, allowed["mode"], is_parallel, some)


def _tool(tools: Sequence[Mapping[str, Any]], name: str | None) -> Mapping[str, Any]:
    found = next((tool for tool in tools if name is not None and tool["function"]["name"] == name), None)
    if found is None:
        raise _wrong_choice(f"names {name!r}, which is none of the `tools`")
    return found


def _wrong_choice(what: str) -> InvalidRequest:
    return InvalidRequest(f"tool_choice {what}", param="tool_choice")


def _name_of(tool: Mapping[str, Any]) -> str | None:
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if tool.get("type") == "function" and isinstance(name, str) and name else None


def check_chat(request: "ChatRequest") -> None:
    """Raises InvalidRequest naming the field."""
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequest("top_logprobs needs `logprobs`: true", param="top_logprobs")
    if request.modalities not in (None, ["text"]):
        raise InvalidRequest('modalities may only be ["text"]', param="modalities")
    for name in ("return_progress", "timings_per_token"):
        if getattr(request, name) and not request.stream:
            raise InvalidRequest(f"{name} needs `stream`: true", param=name)
    for tool in _checked_tools(request.tools or []):
        _check_parameters(tool["function"])
    tool_use(request)
    _check_reasoning(request)
    _check_continued(request)


def _checked_tools(tools: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    if len(tools) > MAX_TOOLS:
        raise InvalidRequest(f"tools may hold at most {MAX_TOOLS} tools", param="tools")
    names = [_name_of(tool) for tool in tools]
    if any(name is None for name in names):
        raise InvalidRequest("tools must hold functions with a name", hint=_EXAMPLE, param="tools")
    odd = next((name for name in names if name is not None and not _NAME.fullmatch(name)), None)
    if odd is not None:
        raise InvalidRequest(
            f"{odd[:80]!r} is no name for a function",
            hint="use at most 256 letters, digits, dots, colons, slashes, dashes and underscores",
            param="tools",
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InvalidRequest(f"tools holds two functions called {twice!r}", param="tools")
    return tools


def _check_parameters(function: Mapping[str, Any]) -> None:
    if not isinstance(function.get("parameters", {}), Mapping | None):
        raise InvalidRequest(f"the parameters of {function['name']!r} must be a JSON schema", param="tools")
    if not isinstance(function.get("strict"), bool | None):
        raise InvalidRequest(f"strict of {function['name']!r} must be true or false", param="tools")
    if not isinstance(function.get("description", ""), str | None):
        raise InvalidRequest(f"the description of {function['name']!r} must be a string", param="tools")


def _check_reasoning(request: "ChatRequest") -> None:
    reasoning = request.reasoning
    if reasoning is None:
        return
    if reasoning.effort and request.reasoning_effort and reasoning.effort != request.reasoning_effort:
        raise InvalidRequest("reasoning.effort and reasoning_effort differ", hint="send one", param="reasoning")
    if reasoning.max_tokens is not None and not 0 <= reasoning.max_tokens <= 10_000_000:
        raise InvalidRequest("reasoning.max_tokens must be between 0 and 10000000", param="reasoning.max_tokens")


def _check_continued(request: "ChatRequest") -> None:
    """An answer that was begun goes on as one: what else could be asked of its beginning makes no sense."""
    ids = request.continue_token_ids
    if ids is None:
        return
    if not 0 < len(ids) <= MAX_CONTINUED_IDS:
        raise InvalidRequest(f"continue_token_ids must hold 1 to {MAX_CONTINUED_IDS} ids", param="continue_token_ids")
    others = {
        "continue_final_message": request.continue_final_message,
        "add_generation_prompt": request.add_generation_prompt is False,
        "truncate_prompt_tokens": request.truncate_prompt_tokens is not None,
        "prompt_logprobs": request.prompt_logprobs is not None,
    }
    for name, is_there in others.items():
        if is_there:
            raise InvalidRequest(
                f"continue_token_ids does not go with {name}", hint="leave one of them out", param="continue_token_ids"
            )
