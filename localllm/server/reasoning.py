"""How much a model is to think before it answers: what requests say, as template variables and a bound on tokens.

A template's own variable is used where it has one. Where it only has a switch, or none, the effort becomes a budget:
so many tokens, then the end of the reasoning is forced. A model that does not reason cannot be asked to.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from localllm import wire
from localllm.errors import InvalidRequest
from localllm.server.fields import ChatRequest, Effort
from localllm.server.notes import Notes

if TYPE_CHECKING:
    from localllm.tokens.markup import MarkupSpec
    from localllm.tokens.tokenizer import Tokenizer

BUDGETS: Mapping[Effort, int | None] = {
    "none": 0, "minimal": 256, "low": 1024, "medium": 4096, "high": None, "xhigh": None, "max": None,
}  # fmt: skip
"""Tokens of reasoning by effort, for templates that know no efforts; None: as many as it likes."""
LEVELS: Mapping[Effort, str] = {
    "none": "low", "minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high",
}  # fmt: skip
"""Efforts as templates know them."""
SWITCHES = ("enable_thinking", "thinking")
LEVEL = "reasoning_effort"
_HARMONY = ("<|channel|>analysis<|message|>", "<|end|>")
_CODE = re.compile(r"\{[{%](.*?)[%}]\}", re.DOTALL)
_STRINGS = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Thinking:
    """`variables` for the template; at most `max_tokens` of reasoning, None: no bound."""

    variables: Mapping[str, Any]
    max_tokens: int | None = None


def thinking_of(
    request: ChatRequest, source: str, *, can_reason: bool, notes: Notes, name: str = "the model"
) -> Thinking:
    """What a request wants of a model with this template. InvalidRequest names the field of a wish that is none."""
    effort, budget, param = _wanted(request)
    given = request.chat_template_kwargs or {}
    if not can_reason:
        if effort not in (None, "none") or budget:
            notes.pass_over(InvalidRequest(f"{name} does not reason", hint=f"leave `{param}` out", param=param))
        return Thinking(given)
    if effort is None and budget is None:
        return Thinking(given)
    variables, knows_levels = _variables(source, "none" if budget == 0 else effort)
    if budget is None and effort is not None and (effort == "none" or not knows_levels):
        budget = BUDGETS[effort]
    return Thinking({**variables, **given}, budget)


def _wanted(request: ChatRequest) -> tuple[Effort | None, int | None, str]:
    """Effort and budget, and the field that says so."""
    own = request.reasoning
    effort, param = request.reasoning_effort, "reasoning_effort"
    if own is not None and effort is None:
        effort, param = own.effort or ("none" if own.enabled is False else None), "reasoning"
        if own.enabled and effort is None and own.max_tokens is None:
            effort = "medium"
    budgets = (
        ("thinking_token_budget", request.thinking_token_budget),
        ("reasoning_budget", request.reasoning_budget),
        ("reasoning", own.max_tokens if own else None),
    )
    named = next(((name, budget) for name, budget in budgets if budget is not None and budget >= 0), None)
    return (effort, named[1], named[0]) if named else (effort, None, param)


def _variables(source: str, effort: Effort | None) -> tuple[dict[str, Any], bool]:
    """The template's own variables for this effort, and whether it knows more than on and off."""
    if effort is None:
        return {}, False
    known = known_variables(source)
    variables: dict[str, Any] = {switch: effort != "none" for switch in SWITCHES if switch in known}
    if LEVEL in known:
        variables[LEVEL] = LEVELS[effort]
    return variables, LEVEL in known


@lru_cache(maxsize=32)
def known_variables(source: str) -> frozenset[str]:
    """Which variables about reasoning a template reads; not fields of messages that are called the same."""
    code = " ".join(_STRINGS.sub("''", part) for part in _CODE.findall(source))
    return frozenset(
        name for name in (*SWITCHES, LEVEL) if re.search(rf"(?<![\w.'\"\[]){name}(?![\w'\"(=]|\s*=[^=])", code)
    )


def budget_of(
    max_tokens: int | None, markup: "MarkupSpec | None", prompt: str, tokenizer: "Tokenizer"
) -> wire.ThinkingBudget | None:
    """The bound as the engine keeps it; None without a bound, or where the prompt has the reasoning behind it."""
    if max_tokens is None or markup is None:
        return None
    if markup.reasoning is not None and prompt.rstrip().endswith(markup.reasoning[1].strip()):
        return None
    if markup.is_harmony:
        start, end = _HARMONY
        start = "" if "analysis" in markup.opening else start
        forced = end
    elif markup.reasoning is not None:
        start, end = markup.reasoning
        start = "" if markup.starts_in_reasoning else start
        forced = f"\n{end}\n\n" if end.startswith("</") else end
    else:
        return None
    ids = tokenizer.encode(forced, add_special=False, parse_special=True)
    return wire.ThinkingBudget(max_tokens=max_tokens, start=start.rstrip("\n"), end=end, end_ids=ids)
