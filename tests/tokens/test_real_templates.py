"""Published templates: the same text, or the same refusal, as transformers' own `apply_chat_template`."""

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from jinja2 import TemplateError as TheirRefusal

from localllm.errors import InvalidRequest, TemplateRefused
from localllm.tokens.chat import render_text
from tests.tokens.conversations import CONVERSATIONS, Conversation
from tests.tokens.published import TEMPLATES, source_of

TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
NOON = datetime(2024, 2, 29, 12, 30)
MIN_RENDERED = 10
Their = Callable[..., str]


class FrozenDatetime(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "FrozenDatetime":
        return cls(NOON.year, NOON.month, NOON.day, NOON.hour, NOON.minute)


@pytest.fixture(scope="module")
def their() -> Iterator[Their]:
    """transformers' method, with the clock at noon."""
    from tokenizers import Tokenizer as Core
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast
    from transformers.utils import chat_template_utils

    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=Core(BPE()), **TOKENS)  # type: ignore[no-untyped-call]  # it has no types
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_template_utils, "datetime", FrozenDatetime)
        yield lambda messages, **given: str(tokenizer.apply_chat_template(messages, tokenize=False, **given))


def ours(source: str, conversation: Conversation, **given: Any) -> str:
    own = ("tools", "documents", "add_generation_prompt", "continue_final_message")
    settled = {"add_generation_prompt": True, **conversation.given, **given}
    variables = {name: value for name, value in settled.items() if name not in own}
    arguments = {name: value for name, value in settled.items() if name in own}
    return render_text(
        source, conversation.messages, special_tokens=TOKENS, clock=lambda: NOON, variables=variables, **arguments
    )


def as_text_or_refusal(render: Callable[[], str]) -> str | Exception:
    try:
        return render()
    except (InvalidRequest, TheirRefusal, ValueError, TypeError, AttributeError, KeyError) as error:
        return error


def check_same(source: str, conversation: Conversation, their: Their) -> bool:
    """Whether there is a text; either way both must agree."""
    settled = {"add_generation_prompt": True, **conversation.given}
    expected = as_text_or_refusal(lambda: their(conversation.messages, chat_template=source, **settled))
    got = as_text_or_refusal(lambda: ours(source, conversation))
    if isinstance(expected, str):
        assert got == expected
        return True
    assert isinstance(got, InvalidRequest), f"transformers refuses: {expected!r}"
    if type(expected) is TheirRefusal:
        assert isinstance(got, TemplateRefused)
        assert " ".join(str(expected).split())[:300] in str(got)
    return False


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_published_template_reads_as_with_transformers(name: str, their: Their) -> None:
    source = source_of(name)
    rendered = [title for title, one in CONVERSATIONS.items() if check_same(source, one, their)]
    assert len(rendered) >= MIN_RENDERED
