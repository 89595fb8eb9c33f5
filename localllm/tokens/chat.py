"""Chat templates: messages to the text a model wants to read, letter for letter as transformers writes it.

Templates come with models and are not trusted: they run in a sandbox, in a child process with limits on time, memory
and output. `isolated=False` renders in this process, with a gauge instead of a child.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from localllm.errors import InvalidRequest, TemplateError, TemplateLimit, TemplateRefused
from localllm.tokens.continuing import cut_open, left_open
from localllm.tokens.renderers import Child, Inside, Renderer, shared_child
from localllm.tokens.sandbox import TemplateFailure

ALLOWED_VARIABLES = frozenset(
    {
        *("enable_thinking", "thinking", "thinking_budget", "reasoning_effort", "preserve_thinking", "clear_thinking"),
        *("documents", "date_string", "controls", "citation_mode", "available_tools", "custom_tools", "builtin_tools"),
        *("tools_in_user_message", "python_tools", "xml_tools", "model_identity", "add_vision_id", "enable_citations"),
        *("keep_past_thinking", "truncate_history_thinking", "low_effort", "system_prompt", "safety_mode"),
        *("tool_choice",),
    }
)
"""Template variables a request may set; anything else could reach into what a template takes for granted."""

CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '')"
    " + '<|im_end|>\\n' }}{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
PLAIN = (
    "{{ bos_token }}{%- for message in messages -%}{{ message['role'] + ': ' + (message['content'] or '') + '\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ 'assistant:' }}{%- endif -%}"
)
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_OWN_NAMES = ("raise_exception", "strftime_now", "namespace", "dict", "range", "cycler", "joiner")
_ERRORS = {"refused": TemplateRefused, "limit": TemplateLimit, "error": TemplateError}


class ChatTemplate:
    """One model's template. Safe to call from several threads; renderings take turns.

    `note` says what a person should know about the template (empty for a model's own). `special_tokens` are variables
    such as `unk_token`. `clock` is what the template takes for now. Close it to end its child early.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        special_tokens: Mapping[str, str] | None = None,
        note: str = "",
        isolated: bool = True,
        clock: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self.note = note
        self._clock = clock
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token, **(special_tokens or {})}
        self._renderer: Renderer = Child() if isolated else Inside()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """The prompt. Further `variables` are those of ALLOWED_VARIABLES.

        `continue_final_message` leaves the last message open for the model to go on (a string names its field).
        Raises TemplateRefused with the author's own words where the template refuses the messages, TemplateLimit where
        it breaks a limit, TemplateError where it fails; all are InvalidRequest.
        """
        check_allowed(variables)
        given = {
            **self._tokens,
            **variables,
            "tools": list(tools) if tools else None,
            "documents": variables.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        return render_with(self._renderer, self.source, messages, given, continue_final_message, self._clock())

    def close(self) -> None:
        """End the child process, if one runs. The next rendering starts another."""
        self._renderer.close()


def default_template(
    vocabulary: Sequence[str], *, bos_token: str = "", eos_token: str = "", isolated: bool = True
) -> ChatTemplate:
    """For a model that has none: ChatML if the vocabulary has its marks, else lines of "role: content"."""
    source, note = made_up(vocabulary)
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token, note=note, isolated=isolated)


def made_up(vocabulary: Sequence[str]) -> tuple[str, str]:
    """A template for a model that has none, and the note that says so."""
    is_chatml = "<|im_start|>" in vocabulary and "<|im_end|>" in vocabulary
    note = "the model has no chat template; " + ("ChatML is used" if is_chatml else "plain lines of text are used")
    return CHATML if is_chatml else PLAIN, note


def chosen_template(templates: Mapping[str, str], wanted: str | None, *, has_tools: bool) -> str | None:
    """The template by its name, or `wanted` itself if it is one; None for a model without any.

    Raises InvalidRequest for a name that the model does not have, and where it has several and none by default.
    """
    if wanted is None:
        tool_use = templates.get("tool_use") if has_tools else None
        if tool_use is None and templates and "default" not in templates:
            raise InvalidRequest(
                f"the model has the chat templates {', '.join(sorted(templates))}, none of them its default",
                hint="name one of them",
                param="chat_template",
            )
        return tool_use or templates.get("default")
    if wanted not in templates and not any(mark in wanted for mark in ("{{", "{%", "{#")):
        names = ", ".join(sorted(templates)) or "none"
        raise InvalidRequest(f"no chat template {wanted[:80]!r}; the model has: {names}", param="chat_template")
    return templates.get(wanted, wanted)


def render_text(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool | str = False,
    isolated: bool = True,
    clock: Callable[[], datetime] = datetime.now,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """Any template's text for these messages, in a child that all such calls share. Raises as `ChatTemplate.render`.

    `variables` may have any name that is not the sandbox's own; who lets strangers set them checks the names first
    (`check_allowed`).
    """
    variables = variables or {}
    _check_names(variables)
    given = {
        **(special_tokens or {}),
        **variables,
        "tools": None if tools is None else list(tools),
        "documents": None if documents is None else list(documents),
        "add_generation_prompt": add_generation_prompt,
    }
    renderer = shared_child() if isolated else Inside()
    return render_with(renderer, source, messages, given, continue_final_message, clock())


def render_with(
    renderer: Renderer,
    source: str,
    messages: Sequence[Mapping[str, Any]],
    given: Mapping[str, Any],
    continue_final_message: bool | str,
    now: datetime,
) -> str:
    """The text of a template, given all its variables but the messages."""
    _check_mappings(messages, "messages")
    _check_mappings(given["tools"] or (), "tools")
    _check_mappings(given["documents"] or (), "documents")
    if not messages:
        raise InvalidRequest("there are no messages to render", param="messages")
    chat = [_as_templates_read(message) for message in messages]
    if not continue_final_message:
        return _rendered(renderer, source, {**given, "messages": chat}, now)
    if given["add_generation_prompt"]:
        raise InvalidRequest(
            "a final message to continue and a prompt for a new one exclude each other",
            hint="set add_generation_prompt to false",
            param="continue_final_message",
        )
    field = continue_final_message if isinstance(continue_final_message, str) else "content"
    chat, last_words = left_open(chat, field, source)
    return cut_open(_rendered(renderer, source, {**given, "messages": chat}, now), last_words)


def check_allowed(variables: Iterable[str]) -> None:
    """Raises InvalidRequest for a name that is not of ALLOWED_VARIABLES."""
    for name in variables:
        if name not in ALLOWED_VARIABLES:
            raise InvalidRequest(
                f"{name!r} is no template variable that a request may set", param="chat_template_kwargs"
            )


def _check_names(variables: Iterable[str]) -> None:
    for name in variables:
        if name.startswith("_") or name in (*_OWN_NAMES, "messages", "self", "loop"):
            raise InvalidRequest(f"{name!r} belongs to the templates themselves", param="chat_template_kwargs")


def _check_mappings(entries: Iterable[object], param: str) -> None:
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise InvalidRequest(f"each of the {param} must be an object, not {type(entry).__name__}", param=param)


def _rendered(renderer: Renderer, source: str, given: Mapping[str, Any], now: datetime) -> str:
    try:
        return renderer.render(source, given, now)
    except TemplateFailure as failure:
        raise _ERRORS[failure.kind](str(failure), param="messages") from failure


def _as_templates_read(message: Mapping[str, Any]) -> dict[str, Any]:
    """Without the fields that are null, which many templates would print as None; reasoning under both its names.

    Templates disagree about what a message's reasoning is called; transformers does the same for both.
    """
    told = {name: value for name, value in message.items() if value is not None}
    said = next((told[name] for name in _REASONING_FIELDS if name in told), None)
    return told if said is None else {"thinking": said, **told, "reasoning_content": said}
