"""A path becomes a ready engine (for the worker, the lab and scripts) or a text side (for whoever tokenizes).

Never resolves names and never starts a process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localllm import wire
from localllm.backends.select import BackendOptions, has_to_measure, open_backend
from localllm.engine.adapters import ReadAdapter
from localllm.engine.engine import Engine
from localllm.engine.speculative import drafter_for
from localllm.engine.step import Backend, CacheLayout
from localllm.errors import NotEnoughMemory
from localllm.formats.gguf_read import GGUFFile
from localllm.formats.json_file import read_json_object
from localllm.models.config import ModelConfig
from localllm.models.facts import checked, whole
from localllm.models.families import is_encoder_architecture
from localllm.models.heads import Head, head_from_gguf
from localllm.models.judges import is_judge
from localllm.models.open_adapter import open_adapter
from localllm.models.source import WeightSource
from localllm.runtime.constraints import Constraints
from localllm.runtime.folder_facts import (
    context_length_of,
    folder_pooling,
    folder_sampling,
    gguf_pooling,
    gguf_sampling,
)
from localllm.runtime.machine_memory import available_memory_bytes
from localllm.runtime.open_model import open_model
from localllm.runtime.place import place_of
from localllm.runtime.sentence_files import Prompts, judging_words, longest_text, prompts
from localllm.runtime.watched import WatchedSource

if TYPE_CHECKING:
    from localllm.tokens.chat import ChatTemplate
    from localllm.tokens.pairs import PairForm
    from localllm.tokens.specials import FillIn
    from localllm.tokens.tokenizer import Tokenizer

MEMORY_SHARE = 0.5
"""The part of the free memory that KV pages and states may take; pages that are never used cost nothing."""
STATE_SHARE = 0.3
LEAST_KEPT_STATES, MOST_KEPT_STATES = 4, 128

ProgressCallback = Callable[[str, int, int], None]


def ignore_progress(stage: str, done_bytes: int, total_bytes: int) -> None:
    """For callers that show nothing."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A backend with weights, not yet given any pages. `notes`: what is to be said of its weights. `head`: layers over
    pooled vectors, which no backend has. `read_adapter` opens adapters of it."""

    config: ModelConfig
    backend: Backend
    notes: tuple[str, ...] = ()
    head: Head | None = None
    read_adapter: ReadAdapter | None = None


def load_backend(
    path: Path, name: str, options: BackendOptions, progress: ProgressCallback = ignore_progress, *, quantize: str = ""
) -> LoadedModel:
    """Open the model and load its weights into the named backend."""
    opened = open_model(path, quantize)
    config, total = opened.config, opened.size_bytes
    if options.context_length:  # some ropes depend on how long sequences may become
        config = replace(config, context_length=min(options.context_length, config.context_length))
    if config.is_encoder:  # a text is computed in one step
        options = replace(options, max_tokens_per_step=max(options.max_tokens_per_step, config.context_length))
    head = opened.read_head()
    is_first = has_to_measure(name, opened.source, options)
    progress("measuring the backends, this once" if is_first else "loading weights", 0, 0 if is_first else total)
    source = WatchedSource(opened.source, lambda share: progress("loading weights", int(share * total), total))
    backend = open_backend(name, config, source, options)
    progress("loading weights", total, total)
    return LoadedModel(config, backend, opened.notes, head, adapter_reader(config, opened.source))


def adapter_reader(config: ModelConfig, source: WeightSource) -> ReadAdapter:
    """Opens adapters of a model by their paths; of the weights it keeps the shapes only."""
    infos = {name: source.info(name) for name in source.names()}
    return lambda path: open_adapter(Path(path), config, infos.get)


def backend_options(load: wire.Load) -> BackendOptions:
    return BackendOptions(
        page_size=load.page_size,
        threads=load.threads,
        max_tokens_per_step=load.token_budget,
        context_length=load.context_length,
        kv_type=load.kv_type,
        device=load.device,
        cache_dir=load.cache_dir,
    )


def load_engine(load: wire.Load, progress: ProgressCallback = ignore_progress) -> tuple[Engine, wire.Ready]:
    """Everything a worker needs: weights, pages, scheduler. Raises typed errors for bad files and missing memory."""
    started = time.monotonic()
    model = load_backend(Path(load.path), load.backend, backend_options(load), progress, quantize=load.quantize)
    context_length = model.config.context_length
    layout = model.backend.layout
    room = room_for_sequences(model.backend.info.free_bytes)
    states = states_that_fit(layout, load.max_sequences, room)
    num_pages = load.kv_pages or pages_that_fit(
        layout, context_length, states.num_slots or load.max_sequences, room - states.num_bytes(layout)
    )
    engine = Engine(
        model.backend,
        context_length=context_length,
        num_pages=num_pages,
        page_size=load.page_size,
        token_budget=load.token_budget,
        max_sequences=load.max_sequences,
        num_slots=states.num_slots,
        num_checkpoints=states.num_kept,
        drafter=drafter_for(load.speculation, model.backend.info),
        is_encoder=model.config.is_encoder,
        head=model.head,
        read_adapter=model.read_adapter,
        guides=Constraints(Path(load.path), model.backend.vocab_size),
    )
    return engine, _ready(load, model, num_pages, states, time.monotonic() - started)


def _ready(load: wire.Load, model: LoadedModel, num_pages: int, states: StatePlan, load_s: float) -> wire.Ready:
    info, layout = model.backend.info, model.backend.layout
    return wire.Ready(
        backend=info.name,
        device=info.device,
        native=info.native,
        context_length=model.config.context_length,
        vocab_size=model.backend.vocab_size,
        num_pages=num_pages,
        page_size=load.page_size,
        weight_bytes=info.weight_bytes,
        kv_bytes=num_pages * layout.page_bytes,
        state_bytes=states.num_bytes(layout),
        load_s=load_s,
        threads=info.threads,
        notes=[*info.notes, *model.notes],
    )


def room_for_sequences(device_bytes: int | None = None) -> int:
    """Bytes that pages and states may take: a share of what is free, here or on a device with memory of its own."""
    return int((available_memory_bytes() if device_bytes is None else device_bytes) * MEMORY_SHARE)


@dataclass(frozen=True, slots=True)
class StatePlan:
    """How many sequences may have a recurrent state at a time, and how many states are kept for others; zeros for a
    model without."""

    num_slots: int = 0
    num_kept: int = 0

    def num_bytes(self, layout: CacheLayout) -> int:
        return (self.num_slots + self.num_kept) * layout.state_bytes


def states_that_fit(layout: CacheLayout, max_sequences: int, room_bytes: int) -> StatePlan:
    """A part of the room, as states are large and every running sequence has one: half for the running, half for kept
    ones, but no more of either than are of use. At least one runs, and what one prompt needs is kept."""
    if not layout.has_state:
        return StatePlan()
    affordable = int(room_bytes * STATE_SHARE) // layout.state_bytes
    num_slots = max(1, min(max_sequences, affordable // 2))
    return StatePlan(num_slots, max(LEAST_KEPT_STATES, min(MOST_KEPT_STATES, affordable - num_slots)))


def pages_that_fit(layout: CacheLayout, context_length: int, max_sequences: int, room_bytes: int) -> int:
    """Pages for so many bytes, but no more than all sequences could ever fill."""
    per_sequence = -(-context_length // layout.page_size) * len(layout.groups)
    num_pages = min(max(0, room_bytes) // max(layout.page_bytes, 1), per_sequence * max_sequences)
    if num_pages < 2 * len(layout.groups):
        raise NotEnoughMemory(
            f"there is no room for KV pages: {room_bytes // 2**20} MiB may be used", hint="close other programs"
        )
    return num_pages


@dataclass(frozen=True, slots=True)
class TextSide:
    """What turns messages into ids and ids into text, with the model's own defaults. Holds no weights. `pooling` makes
    one vector of a text: as the file says, else the last token's, which has seen all others. `fill_in`: what is around
    a gap that the model fills; None where it cannot. `pair_form`: how pairs of texts are put to a model that judges
    them and does nothing else; None for all others. `prompts`: what it wants before texts. `context_length` is that of
    a text: models of embeddings may be for shorter ones than they have positions."""

    tokenizer: Tokenizer
    template: ChatTemplate
    default_sampling: Mapping[str, float]
    context_length: int
    architecture: str
    pooling: wire.Pooling = "last"
    fill_in: FillIn | None = None
    pair_form: PairForm | None = None
    prompts: Prompts = field(default_factory=Prompts)


def load_text(path: Path, *, template: str | None = None, isolated: bool = True) -> TextSide:
    """Tokenizer, chat template and defaults of a model file; the file is closed again before this returns.

    `template` stands in for the file's own. `isolated`: templates are rendered in a child process with limits, else in
    this one under a gauge.
    """
    # deferred: the worker imports this module and must not carry tokenizers and jinja2
    from localllm.tokens.pairs import PairForm
    from localllm.tokens.tokenizer import Tokenizer

    place = place_of(path)
    if place.kind == "safetensors":
        return _text_of_folder(place.folder, template, isolated)
    with GGUFFile.open(place.path) as file:
        metadata = file.metadata
        tokenizer = Tokenizer.from_gguf(metadata)
        is_encoder = is_encoder_architecture(file.architecture)
        head = head_from_gguf(metadata, file.tensors, is_encoder=is_encoder)
        form = PairForm(_pair_template(metadata, file.architecture, is_encoder)) if head and head.judges else None
        return TextSide(
            tokenizer=tokenizer,
            template=tokenizer.chat_template(source=template, isolated=isolated),
            default_sampling=gguf_sampling(metadata),
            context_length=_context_length(metadata, file.architecture),
            architecture=file.architecture,
            pooling=gguf_pooling(metadata, file.architecture),
            fill_in=_fill_in(tokenizer, metadata),
            pair_form=form,
        )


def _text_of_folder(folder: Path, template: str | None, isolated: bool) -> TextSide:
    from localllm.tokens.tokenizer import Tokenizer  # deferred: see load_text

    config = read_json_object(folder / "config.json")
    tokenizer = Tokenizer.from_folder(folder)
    longest = [size for size in (context_length_of(config), longest_text(folder)) if size]
    return TextSide(
        tokenizer=tokenizer,
        template=tokenizer.chat_template(source=template, isolated=isolated),
        default_sampling=folder_sampling(folder),
        context_length=min(longest, default=0),
        architecture=str(config.get("model_type", "")),
        pooling=folder_pooling(folder),
        fill_in=_fill_in(tokenizer, {}),
        pair_form=_pair_form(folder, config),
        prompts=prompts(folder),
    )


def _pair_form(folder: Path, config: Mapping[str, Any]) -> PairForm | None:
    from localllm.tokens.pairs import QWEN3, PairForm  # deferred: see load_text

    if not is_judge(config) and judging_words(folder, config) is None:
        return None
    return PairForm(QWEN3 if config.get("model_type") == "qwen3" else "")


def _pair_template(metadata: Mapping[str, Any], architecture: str, is_encoder: bool) -> str:
    """The file's own, as llama.cpp's converter writes it."""
    from localllm.tokens.pairs import QWEN3  # deferred: see load_text

    said = metadata.get("tokenizer.chat_template.rerank")
    if isinstance(said, str) and not is_encoder:
        return said
    return QWEN3 if architecture == "qwen3" else ""


def _fill_in(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> FillIn | None:
    from localllm.tokens.specials import fill_in_of  # deferred: see load_text

    texts = tokenizer.built.texts
    return fill_in_of(metadata, {texts[token_id]: token_id for token_id in tokenizer.special_ids}, tokenizer.vocab_size)


def _context_length(metadata: Mapping[str, Any], architecture: str) -> int:
    """In tokens; 0 where a vocabulary-only file does not say."""
    name = f"{architecture}.context_length"
    return int(checked(name, whole, metadata.get(name, 0)))
