"""A model of one's own: another model's weights with parameters, system text, template or adapters from a Modelfile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from localllm.errors import ModelNotFound, UnsupportedModel, UsageError
from localllm.store.details import describe, refuse_unsafe
from localllm.store.entry import Entry, ModelFile, PullEvent
from localllm.store.folder import capabilities_of
from localllm.store.modelfile import Modelfile, template_kind
from localllm.store.names import looks_like_path
from localllm.store.plan import Say
from localllm.wire import SamplingParams

if TYPE_CHECKING:
    from localllm.store.library import Library

GO_TEMPLATE = (
    "its TEMPLATE is in Ollama's Go language, which does not run here; the template inside the model file is used"
)
# what an answer here can depend on; other parameters are kept for Ollama
_EFFECTIVE = frozenset(
    {
        "temperature", "top_k", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n",
        "presence_penalty", "frequency_penalty", "seed", "num_predict", "num_ctx", "stop",
    }
)  # fmt: skip
_SAMPLING_NAMES = {"repeat_penalty": "repetition_penalty"}  # Ollama's to ours, where they differ


def derived_entry(library: Library, name: str, modelfile: Modelfile, folder: Path, say: Say) -> Entry:
    """The entry a Modelfile describes. What it does not set comes from the model it starts from."""
    adapters = tuple(str(_adapter(text, folder)) for text in modelfile.adapters)
    if len(adapters) > 1:
        raise UnsupportedModel("a model can have one adapter, and this Modelfile has several ADAPTER lines")
    base = _base(library, modelfile, folder, say)
    _refuse_absurd(modelfile)
    notes = modelfile.warnings + tuple(_without_effect(modelfile))
    for note in notes:
        say(PullEvent(kind="warning", message=note))
    kind = template_kind(modelfile.template)
    marks = {key: getattr(modelfile, key) for key in ("renderer", "parser", "requires") if getattr(modelfile, key)}
    return msgspec.structs.replace(
        base,
        name=name,
        source=base.source if base.source in ("hub", "package", "url") else "path",
        modified=time.time(),
        params={**base.params, **modelfile.params},
        template=modelfile.template or base.template,
        template_kind=(("go" if kind == "go" else "jinja") if kind else base.template_kind),
        system=modelfile.system or base.system,
        license=modelfile.license or base.license,
        messages=modelfile.messages or base.messages,
        adapters=adapters or base.adapters,
        draft=modelfile.draft or base.draft,
        parent=base.name,
        origin={**base.origin, **marks},
        notes=notes,
        capabilities=_capabilities(base, modelfile),
    )


def _capabilities(base: Entry, modelfile: Modelfile) -> tuple[str, ...]:
    """A template of its own says what a model that talks is able to do."""
    has_own = template_kind(modelfile.template) == "jinja" and "completion" in base.capabilities
    return capabilities_of(modelfile.template) if has_own else base.capabilities


def _refuse_absurd(modelfile: Modelfile) -> None:
    """InvalidRequest for sampling that no request could use: said here, not at the first answer."""
    names = {_SAMPLING_NAMES.get(name, name): value for name, value in modelfile.params.items()}
    known = SamplingParams.__struct_fields__
    SamplingParams(**{name: value for name, value in names.items() if name in known}).checked()


def _without_effect(modelfile: Modelfile) -> Iterator[str]:
    if template_kind(modelfile.template) == "go":
        yield GO_TEMPLATE
    for name in modelfile.params:
        if name not in _EFFECTIVE:
            yield f"the parameter {name} is kept but has no effect here"
    for directive in ("draft", "renderer", "parser", "requires"):
        if getattr(modelfile, directive):
            yield f"{directive.upper()} is kept but has no effect here"


def _base(library: Library, modelfile: Modelfile, folder: Path, say: Say) -> Entry:
    starts = modelfile.from_
    paths = [_local(text, folder) for text in starts]
    if len(starts) > 1:
        return _shards([path for path in paths if path is not None], starts)
    if paths[0] is not None:
        return library.find(str(paths[0]))
    try:
        return library.find(starts[0])
    except ModelNotFound:
        return library.pull(starts[0], say)


def _local(text: str, folder: Path) -> Path | None:
    """The path a FROM or ADAPTER line means, when it means one."""
    expanded = Path(text).expanduser()
    inside = expanded if expanded.is_absolute() else folder / expanded
    return inside.absolute() if looks_like_path(text) or inside.exists() else None


def _shards(paths: list[Path], starts: tuple[str, ...]) -> Entry:
    if len(paths) != len(starts):
        raise UsageError(
            "several FROM lines must name the GGUF shards of one model", hint="give the path of every shard"
        )
    paths = sorted(paths)
    for path in paths:
        if not path.is_file():
            raise ModelNotFound(f"{path} does not exist", hint="check the FROM lines")
    files = tuple(ModelFile(path=str(path), size_bytes=path.stat().st_size) for path in paths)
    return describe(Entry(name=str(paths[0]), path=str(paths[0]), source="path", files=files))


def _adapter(text: str, folder: Path) -> Path:
    """An adapter that is one: what is wrong with it is said here, not at the first answer."""
    from localllm.models.open_adapter import adapter_facts  # deferred: few models have one

    path = _local(text, folder)
    if path is None or not path.exists():
        raise ModelNotFound(f"the adapter {text} does not exist", hint="check the ADAPTER line")
    refuse_unsafe(path)
    adapter_facts(path)
    return path
