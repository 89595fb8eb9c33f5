"""Tokenizers for people who ask: those of installed models and those that come alone, open as long as they are used.

Weights are never read and no worker is started. Everything but `forget` takes long: not for the event loop.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from localllm import told
from localllm.daemon.shelf import OpenShelf, Shelf
from localllm.errors import LocalLLMError, ModelNotFound, UnsupportedModel
from localllm.store.catalog import TokenizerEntry
from localllm.store.entry import Entry
from localllm.store.tokenizers import CAPABILITY

if TYPE_CHECKING:
    from localllm.tokens.explainer import Explainer
    from localllm.tokens.tokenizer import Tokenizer

MAX_KEPT = 4
"""As many as can be compared; a large vocabulary takes hundreds of megabytes."""
_KINDS = {"gpt2": "BPE", "gemma4": "BPE", "llama": "BPE", "bert": "WordPiece", "t5": "Unigram"}
_NO_TEMPLATE = "this tokenizer comes without a chat template"


class Models(Protocol):
    def find(self, name: str) -> Entry: ...


def load_tokenizer(entry: Entry) -> "Tokenizer":
    """Only the tokenizer of a model's file or folder."""
    # deferred: numpy and tokenizers come with the first one
    from localllm.runtime.place import place_of
    from localllm.tokens.tokenizer import Tokenizer

    place = place_of(Path(entry.path))
    return Tokenizer.from_folder(place.folder) if place.kind == "safetensors" else Tokenizer.from_path(place.path)


class Tokenizers:
    """At most MAX_KEPT are open at a time; the least recently used one goes first."""

    def __init__(self, models: Models, load: Callable[[Entry], "Tokenizer"], open_shelf: OpenShelf) -> None:
        self._models = models
        self._load = load
        self._open_shelf = open_shelf
        self._kept: OrderedDict[tuple[str, str], Explainer] = OrderedDict()
        self._kinds: dict[str, str] = {}
        self._lock = threading.Lock()

    def rows(self, entries: Sequence[Entry]) -> list[told.TokenizerRow]:
        """Those of these models, then those that the catalog knows besides."""
        rows = [self._row_of(entry) for entry in entries]
        return rows + [self._row_alone(entry) for entry in self._alone()]

    def explainer(self, name: str) -> "Explainer":
        """The tokenizer of a model or one that comes alone. ModelNotFound says how to get it."""
        entry, title = self._entry_of(name)
        key = (entry.name, entry.digest or entry.path)
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                found = self._kept[key] = self._opened(entry, title)
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found

    def template(
        self, name: str, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
    ) -> told.TemplateView:
        """A conversation as the model of this name reads it. Raises as rendering a chat template does."""
        from localllm.tokens.chat import made_up  # deferred: jinja2 comes with it
        from localllm.tokens.template_view import template_view

        explainer, (entry, _) = self.explainer(name), self._entry_of(name)
        tokenizer = explainer.tokenizer
        source = entry.jinja_template
        note = "" if source or tokenizer.built.chat_templates else made_up(tokenizer.built.texts)[1]
        if note and CAPABILITY in entry.capabilities:
            note = f"{_NO_TEMPLATE}; {note.partition('; ')[2]}"

        def render(chat: Sequence[Mapping[str, Any]], opening: bool) -> str:
            return tokenizer.apply_chat_template(chat, chat_template=source, add_generation_prompt=opening)

        return template_view(
            tokenizer, explainer.name, messages, render, add_generation_prompt=add_generation_prompt, note=note
        )

    def forget(self) -> None:
        """Close all that are open; what is in use stays as long as it is."""
        self._kept.clear()

    def _opened(self, entry: Entry, title: str) -> "Explainer":
        from localllm.tokens.explainer import Explainer  # deferred: see load_tokenizer
        from localllm.tokens.tokenizer import Tokenizer

        is_alone = CAPABILITY in entry.capabilities
        opened = Explainer(Tokenizer.from_folder(entry.path) if is_alone else self._load(entry), entry.name, title)
        self._kinds[entry.digest or entry.path] = opened.tokenizer.kind
        return opened

    def _entry_of(self, name: str) -> tuple[Entry, str]:
        """The model of a name, else a tokenizer alone, as an entry that has nothing but a name and a folder."""
        try:
            entry = self._models.find(name)
            return entry, entry.name
        except ModelNotFound:
            known = next((each for each in self._alone() if each.name == name.lower()), None)
            if known is None:
                raise
            folder = self._shelf.tokenizers.find(known.name)
            return Entry(name=known.name, path=str(folder), source="path", capabilities=(CAPABILITY,)), known.title

    @cached_property
    def _shelf(self) -> Shelf:
        return self._open_shelf()

    def _alone(self) -> Sequence[TokenizerEntry]:
        try:
            return self._shelf.tokenizers.entries()
        except UnsupportedModel:  # the models of this daemon are given to it, and nothing else is there
            return ()

    def _row_of(self, entry: Entry) -> told.TokenizerRow:
        key, note = entry.digest or entry.path, ""
        if key not in self._kinds:
            try:
                self._kinds[key] = _kind_of(entry)
            except (LocalLLMError, OSError) as error:
                self._kinds[key], note = "", str(error)
        return told.TokenizerRow(
            name=entry.name,
            title=entry.name,
            kind=self._kinds[key],
            vocab_size=self._size_of(key),
            is_model=True,
            is_here=True,
            license=entry.license.partition("\n")[0][:80],
            note=note,
        )

    def _row_alone(self, entry: TokenizerEntry) -> told.TokenizerRow:
        path = self._shelf.tokenizers.path_of(entry.name)
        return told.TokenizerRow(
            name=entry.name,
            title=entry.title,
            kind=entry.kind,
            vocab_size=self._size_of(str(path)),
            is_here=path is not None,
            license=entry.license,
        )

    def _size_of(self, key: str) -> int:
        """0 for one that is not open."""
        kept = next((each for (_, other), each in list(self._kept.items()) if other == key), None)
        return kept.tokenizer.vocab_size if kept else 0


def _kind_of(entry: Entry) -> str:
    """BPE, Unigram or WordPiece without building it; "" where only its code would say."""
    from localllm.formats.gguf_read import GGUFFile  # deferred: see load_tokenizer
    from localllm.formats.json_file import read_json_object
    from localllm.runtime.place import place_of

    place = place_of(Path(entry.path))
    if place.kind != "safetensors":
        with GGUFFile.open(place.path) as file:
            return _KINDS.get(str(file.metadata.get("tokenizer.ggml.model")), "")
    path = place.folder / "tokenizer.json"
    model = read_json_object(path).get("model") if path.is_file() else None
    kind = model.get("type", "BPE") if isinstance(model, Mapping) else ""
    return kind if kind in told.KINDS else ""
