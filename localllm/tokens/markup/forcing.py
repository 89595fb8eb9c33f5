# ruff: noqa: RUF001 (some tags are spelled with full-width bars)
"""Grammars of calls as each family writes them, for answers that must be calls; and what may stand before an answer.

Lark in llguidance's dialect. Arguments are JSON inside of the family's own tags, also where it usually writes them in
another notation: every reader here takes both.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from localllm.tokens.markup.families import GRAMMARS, ToolFormat
from localllm.tokens.markup.spec import MarkupSpec

Say = Callable[[str], str]
"""A text as a Lark expression, in which control tokens are not spelled out."""

ANYTHING = "/(?s:.*)/"
SPACE = r"/[ \t\r\n]{0,8}/"


@dataclass(frozen=True, slots=True)
class CallForm:
    """What stands before the name, between name and arguments, and behind them; around all calls, and between two."""

    before_name: str
    before_arguments: str
    behind: str
    between: str | None = "\n"
    opener: str = ""
    closer: str = ""


_NAME = '{"name": "'
_ARGUMENTS = '", "arguments": '
_HERMES = CallForm(f"<tool_call>\n{_NAME}", _ARGUMENTS, "}\n</tool_call>")


def _listed(opener: str, closer: str) -> CallForm:
    return CallForm(_NAME, _ARGUMENTS, "}", ", ", opener, closer)


_FORMS: Mapping[ToolFormat, CallForm] = {
    "hermes": _HERMES,
    "glm": _HERMES,
    "xml": CallForm("<tool_call>\n<function=", ">\n", "\n</function>\n</tool_call>"),
    "mistral": _listed("[TOOL_CALLS][", "]"),
    "llama3": CallForm(_NAME, '", "parameters": ', "}", "; "),
    "pythonic": CallForm(_NAME, '", "parameters": ', "}", ", ", "[", "]"),
    "deepseek": CallForm(
        "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "",
        "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>",
    ),
    "kimi": CallForm(
        "<|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>", "<|tool_call_end|>", "",
        "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>",
    ),
    "gemma4": CallForm("<|tool_call>call:", "", "<tool_call|>", ""),
    "tool_code": _listed("```tool_code\n[", "]\n```"),
    "granite": _listed("<|tool_call|>[", "]"),
    "phi": _listed("functools[", "]"),
    "lfm2": _listed("<|tool_call_start|>[", "]<|tool_call_end|>"),
    "command": CallForm(
        '{"tool_call_id": "0", "tool_name": "', '", "parameters": ', "}", ", ", "<|START_ACTION|>[", "]<|END_ACTION|>"
    ),
    "minimax": CallForm('<minimax:tool_call>\n<invoke name="', '">\n', "\n</invoke>\n</minimax:tool_call>"),
}  # fmt: skip
_HARMONY = CallForm("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "", None)
_HARMONY_THOUGHTS = ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant")
_HARMONY_ANSWER = "<|channel|>final<|message|>"


def call_form(spec: MarkupSpec, controls: Collection[str]) -> CallForm:
    """How the model writes calls. Some families have changed their manner: their control tokens tell which it is."""
    if spec.is_harmony:
        return _HARMONY
    if spec.tools == "mistral" and "[ARGS]" in controls:
        return CallForm("[TOOL_CALLS]", "[ARGS]", "", "")
    if spec.tools == "phi" and "<|/tool_call|>" in controls:
        return _listed("<|tool_call|>[", "]<|/tool_call|>")
    return _FORMS[spec.tools] if spec.tools else _HERMES


def call_grammar(
    form: CallForm, functions: Sequence[tuple[str, str]], say: Say, *, is_parallel: bool, begun: str = ""
) -> str:
    """At least one call of one of the functions, each a name and the JSON schema of its arguments in one line. `begun`
    is what stands there already, see `trigger_of`."""
    several = is_parallel and form.between is not None
    more = f" ({_said(form.between or '', say)} call)*" if several else ""
    numbers = range(len(functions))
    first = (form.opener + form.before_name).rpartition(begun)[2] if begun else form.opener + form.before_name
    rules = [
        f"start: first{more} {_said(form.closer, say)}",
        f"first: {' | '.join(f'first_{number}' for number in numbers)}",
    ]
    rules += [f"call: {' | '.join(f'call_{number}' for number in numbers)}"] if several else []
    for number, (name, schema) in zip(numbers, functions, strict=True):
        for rule, before in (("first", first), ("call", form.before_name))[: 2 if several else 1]:
            opened = say(f"{before}{name}{form.before_arguments}")
            rules.append(f"{rule}_{number}: {opened} arguments_{number} {_said(form.behind, say)}")
        rules.append(f"arguments_{number}: %json {schema}")
    return "\n".join(rules) + "\n"


def trigger_of(spec: MarkupSpec, form: CallForm) -> str:
    """The tag behind which a call goes on, whatever stands before; empty for a family whose calls have no tag and are
    only to be found at an answer's beginning."""
    if spec.is_harmony:
        return form.before_name
    start = form.opener + form.before_name
    marks = GRAMMARS[spec.tools].marks if spec.tools else ()
    return next((mark.opener for mark in marks if mark.opener and mark.opener in start), "")


NO_CALL = r"start: /[^{\[\s](?s:.*)/"
"""What is no call, for families whose calls have no tags."""


def _said(text: str, say: Say) -> str:
    return say(text) if text else ""


@dataclass(frozen=True, slots=True)
class Lead:
    """What may stand around a constrained answer, as Lark expressions: `before` all of it, `opener` and `closer` around
    what is no call; `rules` are what they need besides. `after`: a text that ends the reasoning which the prompt has
    opened; nothing is constrained before it."""

    after: str = ""
    before: str = ""
    opener: str = ""
    closer: str = ""
    rules: str = ""


def lead_of(spec: MarkupSpec | None, prompt: str, say: Say) -> Lead:
    """For an answer to this prompt."""
    if spec is None:
        return Lead()
    if spec.is_harmony:
        return _harmony_lead(spec, say)
    opener = f"({say(spec.answer[0])} {SPACE})?" if spec.answer else ""
    closer = f"({SPACE} {say(spec.answer[1])})?" if spec.answer else ""
    if spec.reasoning is None or prompt.rstrip().endswith(spec.reasoning[1].strip()):
        return Lead("", "", opener, closer)
    if spec.starts_in_reasoning:
        return Lead(spec.reasoning[1], SPACE, opener, closer)
    rules = f"thoughts: {say(spec.reasoning[0].rstrip())} until {SPACE}\n{_until(spec.reasoning[1], say)}\n"
    return Lead("", "thoughts?", opener, closer, rules)


def _harmony_lead(spec: MarkupSpec, say: Say) -> Lead:
    final = say(_HARMONY_ANSWER)
    opener, closer = _HARMONY_THOUGHTS
    if "<|message|>" in spec.opening:
        is_thinking = "analysis" in spec.opening
        return Lead("", "until", final, "", f"{_until(closer, say)}\n") if is_thinking else Lead()
    return Lead("", "thoughts?", final, "", f"thoughts: {say(opener)} until\n{_until(closer, say)}\n")


def _until(closer: str, say: Say) -> str:
    """The rule `until`: anything, and the closing tag at its end."""
    said = say(closer)
    if said.startswith("<["):
        return f"until: {ANYTHING} {said}"
    return f"until: rest\nrest[suffix={said}]: {ANYTHING}"
