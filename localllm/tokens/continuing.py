"""A last message that the model is to go on with: rendered with a mark behind its text, and cut off at the mark.

The mark's spelling is transformers', because some templates look for it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from localllm.errors import InvalidRequest

MARK = "CONTINUE_FINAL_MESSAGE_TAG "
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


def left_open(chat: Sequence[Mapping[str, Any]], field: str, source: str) -> tuple[list[dict[str, Any]], str]:
    """The chat with the mark behind the last message's `field`, and the text of that field.

    Raises InvalidRequest where there is no such text, or where the template never reads the field.
    """
    *before, last = [dict(message) for message in chat]
    said = last.get(field)
    if said is None:
        _refuse(f"the last message has no {field!r} to continue")
    fields = [field]
    if field in _REASONING_FIELDS:  # the reasoning stands under several names, and a template reads one of them
        fields = [name for name in _REASONING_FIELDS if last.get(name) == said]
    if not any(name in source for name in fields):
        _refuse(f"the chat template does not read {field!r}, so that the model cannot continue it")
    if isinstance(said, str):
        return [*before, {**last, **{name: said + MARK for name in fields}}], said
    if not isinstance(said, list | tuple):
        _refuse(f"{field!r} of the last message is no text to continue")
    parts, text = _with_open_part(said)
    return [*before, {**last, field: parts}], text


def cut_open(rendered: str, last_words: str) -> str:
    """The rendered text up to where the model goes on. Raises InvalidRequest if the template left the text out."""
    mark = MARK.strip()
    if last_words.strip() not in rendered or mark not in rendered:
        _refuse("the chat template changes the last message, so that the model cannot continue it")
    place = rendered.rindex(mark)
    # a template that trims the message has taken the mark's last space, and would have taken the text's, too
    return rendered[:place] if rendered.startswith(MARK, place) else rendered[:place].rstrip()


def _with_open_part(parts: Sequence[Any]) -> tuple[list[Any], str]:
    """Content in parts, the last text of which gets the mark."""
    for place in reversed(range(len(parts))):
        part = parts[place]
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            return [*parts[:place], {**part, "text": part["text"] + MARK}, *parts[place + 1 :]], part["text"]
    _refuse("the last message has no text to continue")


def _refuse(sentence: str) -> NoReturn:
    raise InvalidRequest(sentence, param="continue_final_message")
