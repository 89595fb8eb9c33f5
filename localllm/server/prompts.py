"""A conversation as its model wants to read it.

Where the model's template knows nothing of tools, they are told in its system message, in the manner of Hermes; calls
and their results, which such a template would leave out, are told in words as well.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import msgspec

from localllm.errors import InvalidRequest, TemplateError, TemplateLimit, TemplateRefused
from localllm.runtime.presets import behind_opening
from localllm.server.messages import PassOver, place_of_texts, plain_messages, refuse
from localllm.store.entry import Entry

if TYPE_CHECKING:
    from localllm.runtime.load import TextSide

Messages = Sequence[Mapping[str, Any]]

_RENDER_ARGUMENTS = frozenset(("self", "messages", "tools", "add_generation_prompt", "continue_final_message"))
_TOLD = """You can call functions. These are their JSON schemas:
<tools>
{tools}
</tools>
To call one, answer with its name and its arguments in these tags, one pair of tags for each call:
<tool_call>
{{"name": "the name", "arguments": {{"an argument": "its value"}}}}
</tool_call>"""


def knows_tools(source: str) -> bool:
    """Whether a chat template tells the model of tools."""
    return "tools" in source


def chat_prompt(
    messages: Messages,
    tools: Messages | None,
    entry: Entry,
    text: "TextSide",
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    variables: Mapping[str, Any] = MappingProxyType({}),
    pass_over: PassOver = refuse,
) -> str:
    """With the entry's own system prompt and opening messages. InvalidRequest says which message is wrong and how, or
    what the template refuses; `pass_over` as in `plain_messages`."""
    for name in _RENDER_ARGUMENTS.intersection(variables):
        raise InvalidRequest(f"chat_template_kwargs may not set {name!r}", param="chat_template_kwargs")

    asked = plain_messages(messages, pass_over)

    def rendered(conversation: Messages, known_tools: Messages | None) -> str:
        try:
            return text.template.render(
                conversation,
                tools=known_tools or None,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
        except (TemplateRefused, TemplateLimit):
            raise
        except TemplateError:
            place = place_of_texts(asked)
            if place is None:
                raise
            raise InvalidRequest(f"{place} must be a JSON object for this model's template", param=place) from None

    plain = behind_opening(entry, asked)
    if knows_tools(text.template.source):
        return rendered(plain, tools)
    told = in_words(plain)
    if not tools:
        return rendered(told, None)
    lines = "\n".join(msgspec.json.encode(tool["function"]).decode() for tool in tools)
    try:
        return rendered(_with_system(told, _TOLD.format(tools=lines)), None)
    except TemplateRefused:  # some have no place for a system message
        return rendered(_before_first(told, _TOLD.format(tools=lines)), None)


def in_words(messages: Messages) -> list[Mapping[str, Any]]:
    """Calls as text of the assistant, results as text of the user."""
    told: list[Mapping[str, Any]] = []
    is_result = False
    for message in messages:
        was_result, is_result = is_result, message["role"] == "tool"
        if is_result:
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            before = f"{told.pop()['content']}\n" if was_result else ""
            told.append({"role": "user", "content": before + result})
        elif message.get("tool_calls"):
            told.append(_with_calls(message))
        else:
            told.append(message)
    return told


def _with_calls(message: Mapping[str, Any]) -> Mapping[str, Any]:
    calls = []
    for call in message["tool_calls"]:
        said = {name: call["function"][name] for name in ("name", "arguments")}
        calls.append(f"<tool_call>\n{msgspec.json.encode(said).decode()}\n</tool_call>")
    kept = {name: value for name, value in message.items() if name != "tool_calls"}
    return {**kept, "content": "\n".join(filter(None, (message["content"], *calls)))}


def _with_system(messages: Messages, words: str) -> Messages:
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [{**first, "content": f"{first['content']}\n\n{words}"}, *messages[1:]]
    return [{"role": "system", "content": words}, *messages]


def _before_first(messages: Messages, words: str) -> Messages:
    place = next((place for place, message in enumerate(messages) if message["role"] == "user"), None)
    if place is None:
        return [{"role": "user", "content": words}, *messages]
    first = messages[place]
    return [*messages[:place], {**first, "content": f"{words}\n\n{first['content']}"}, *messages[place + 1 :]]
