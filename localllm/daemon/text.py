"""What the daemon needs of names and text: protocols that the store, the runtime and the tokens room meet."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from localllm.store.entry import Entry

Message = Mapping[str, Any]


class LibraryLike(Protocol):
    """The models there are."""

    def find(self, name: str) -> Entry: ...

    def entries(self) -> Iterable[Entry]: ...


class TokenizerLike(Protocol):
    @property
    def eog_ids(self) -> Collection[int]: ...

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]: ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str: ...

    def token_bytes(self, token_id: int) -> bytes: ...


class TemplateLike(Protocol):
    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
    ) -> str: ...


class TextSide(Protocol):
    """Everything about a model that is text; held by the daemon only."""

    @property
    def tokenizer(self) -> TokenizerLike: ...
    @property
    def template(self) -> TemplateLike: ...
    @property
    def default_sampling(self) -> Mapping[str, Any]: ...
    @property
    def context_length(self) -> int: ...
