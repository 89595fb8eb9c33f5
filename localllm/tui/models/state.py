"""What the models screen knows, and the rows that its list makes of it. Knows no widgets.

Running and installed are the daemon's; the catalog is filtered here; hits of the hub come from the last search.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from localllm.client import (
    CatalogModel,
    CatalogModels,
    InstalledModel,
    InstalledModels,
    LoadedModel,
    ModelFit,
    PullJob,
)
from localllm.daemon.feed import Frame, ModelRow, Progress
from localllm.safe_text import one_line

Section = Literal["running", "installed", "catalog", "hub"]
Sort = Literal["name", "size", "used", "speed"]
SORTS: tuple[Sort, ...] = ("name", "size", "used", "speed")
TITLES: Mapping[Section, str] = {
    "running": "Running", "installed": "Installed", "catalog": "Catalog", "hub": "Hub",
}  # fmt: skip
LOADED = ("loading", "ready", "stopping")
ACTIVE = ("queued", "running", "checking")
_EXPERTS = re.compile(r"moe|gpt-oss|mixtral|next|a\d+(\.\d+)?b|\d+x\d+", re.IGNORECASE)
"""Of a model of experts only some weights are read for a token: its speed does not follow from its size."""
FAR = 16.0
"""Beyond so many times the size of what was measured, nothing is predicted."""


@dataclass(frozen=True, slots=True)
class Model:
    """One model as a row of the list shows it. Times since the epoch; `speed` is tokens a second, `is_guess` where it
    was not measured."""

    name: str
    section: Section
    quant: str = ""
    size_bytes: int = 0
    used: float = 0.0
    speed: float = 0.0
    is_guess: bool = False
    fit: ModelFit | None = None
    installed: InstalledModel | None = None
    offer: CatalogModel | None = None
    loaded: ModelRow | None = None

    @property
    def is_loaded(self) -> bool:
        return self.section == "running"

    @property
    def is_here(self) -> bool:
        return self.section in ("running", "installed")

    @property
    def refusal(self) -> str:
        return self.offer.refusal if self.offer and not self.is_here else ""

    @property
    def is_hopeless(self) -> bool:
        """Nobody would want to pull it to this machine."""
        return bool(self.refusal) or (self.fit is not None and self.fit.verdict == "too large")

    @property
    def license(self) -> str:
        of_file = self.installed.license if self.installed else ""
        return of_file or (self.offer.license if self.offer else "")

    @property
    def capabilities(self) -> tuple[str, ...]:
        return (self.installed.capabilities if self.installed else ()) or (
            self.offer.capabilities if self.offer else ()
        )


@dataclass(frozen=True, slots=True)
class Title:
    """The rule above a section; `note` after its name, `words` where the section is empty or has something to say."""

    section: Section
    note: str


@dataclass(frozen=True, slots=True)
class Words:
    """A sentence that stands in for rows."""

    text: str
    is_warning: bool = False


Row = Model | Title | Words | None
"""None is a blank row."""


@dataclass
class ModelsState:
    """Everything that was told so far."""

    here: InstalledModels = field(default_factory=InstalledModels)
    catalog: CatalogModels = field(default_factory=CatalogModels)
    found: CatalogModels | None = None
    fits: dict[str, ModelFit] = field(default_factory=dict)
    loaded: dict[str, ModelRow] = field(default_factory=dict)
    pulls: tuple[PullJob, ...] = ()
    query: str = ""
    sort: Sort = "name"
    is_fit_only: bool = False
    is_told: bool = False
    """Whether the daemon has said anything yet."""
    is_looking: bool = False
    """Whether the hub is being asked."""

    def note_frame(self, frame: Frame) -> bool:
        """Whether other models are loaded than before, or in another state."""
        before = {name: row.state for name, row in self.loaded.items()}
        self.loaded = {row.name: row for row in frame.models}
        return before != {name: row.state for name, row in self.loaded.items()}

    def note_loaded(self, models: Iterable[LoadedModel]) -> None:
        """What `ps` said: before the first frame comes nobody knows what is loaded."""
        self.loaded = {model.name: _as_row(model) for model in models}

    # ---- rows

    def rows(self) -> list[Row]:
        """What the list shows, from the top."""
        rows: list[Row] = []
        by_section: dict[Section, list[Model]] = {"running": [], "installed": [], "catalog": [], "hub": []}
        for model in self.models():
            by_section[model.section].append(model)
        for section, every in by_section.items():
            made = list(self._section(section, every))
            if made:
                rows += [None, *made] if rows else made
        return rows

    def models(self) -> list[Model]:
        """All models that any section could show, unfiltered."""
        return [*self._here(), *self._offers(self.catalog.models, "catalog"), *self._hub()]

    def model(self, name: str) -> Model | None:
        return next((each for each in self.models() if each.name == name), None)

    def _section(self, section: Section, every: Sequence[Model]) -> Iterator[Row]:
        words_typed = self.query.lower().split()
        shown = self._sorted([model for model in every if self._is_wanted(model, words_typed)])
        words = self._words(section, every)
        if not shown and not words:
            return
        number = f"{len(shown)}" if len(shown) == len(every) else f"{len(shown)} of {len(every)}"
        is_counted = self.is_told and (section != "hub" or self.found is not None)
        yield Title(section, number if is_counted else "")
        yield from shown
        yield from words

    def _words(self, section: Section, every: Sequence[Model]) -> list[Words]:
        if section == "hub":
            return self._words_of_hub(every)
        if section == "installed" and self.is_told and not every:
            return [] if any(self._here()) else [Words("No model is here yet: choose one below, and p pulls it.")]
        if section == "installed" and not self.is_told:
            return [Words("–")]
        damaged = [Words(f"▪ {one_line(text)}", True) for text in self.here.damaged] if section == "installed" else []
        return damaged

    def _words_of_hub(self, every: Sequence[Model]) -> list[Words]:
        if self.is_looking:
            return [Words("looking on the hub …")]
        if self.found is None:
            return [Words("enter looks on the hub, too")] if self.query else []
        if self.found.notice:
            return [Words(one_line(self.found.notice).rstrip(".") + ".", True)]
        return [] if every else [Words(f"The hub has no GGUF repository that matches “{one_line(self.query)}”.")]

    def _is_wanted(self, model: Model, words: Sequence[str]) -> bool:
        if self.is_fit_only and model.is_hopeless:
            return False
        if model.section == "hub":
            return True  # the hub has searched already, in more than names
        if not words:
            return True
        text = " ".join((model.name, model.quant, model.license, *model.capabilities)).lower()
        return all(word in text for word in words)

    def _sorted(self, models: list[Model]) -> list[Model]:
        if not models or models[0].section == "hub":
            return models
        return sorted(models, key=lambda model: (_sort_key(model, self.sort), natural(model.name)))

    # ---- models

    def _here(self) -> Iterator[Model]:
        offers = {offer.name: offer for offer in self.catalog.models}
        listed = {model.name for model in self.here.models}
        for installed in self.here.models:
            yield self._installed(installed, offers.get(installed.name))
        for row in self.loaded.values():
            if row.name not in listed and row.state in LOADED:  # loaded by its path
                yield Model(row.name, "running", size_bytes=row.size_bytes, loaded=row, fit=self.fits.get(row.name))

    def _installed(self, installed: InstalledModel, offer: CatalogModel | None) -> Model:
        row = self.loaded.get(installed.name)
        is_loaded = row is not None and row.state in LOADED
        speed = installed.tokens_per_s or self.guess(
            installed.name, installed.size_bytes, installed.architecture, installed.capabilities
        )
        return Model(
            name=installed.name,
            section="running" if is_loaded else "installed",
            quant=installed.quantization,
            size_bytes=installed.size_bytes,
            used=installed.used,
            speed=speed,
            is_guess=not installed.tokens_per_s,
            fit=self.fits.get(installed.name),
            installed=installed,
            offer=offer,
            loaded=row,
        )

    def _offers(self, offers: Iterable[CatalogModel], section: Section) -> Iterator[Model]:
        here = {model.name for model in self.here.models}
        for offer in offers:
            if offer.name not in here:
                fit = self.fits.get(offer.name)
                is_hopeless = bool(offer.refusal) or (fit is not None and fit.verdict == "too large")
                speed = (
                    0.0
                    if is_hopeless
                    else self.guess(offer.name, offer.size_bytes, offer.architecture, offer.capabilities)
                )
                yield Model(
                    name=offer.name,
                    section=section,
                    quant=offer.default_quant,
                    size_bytes=offer.size_bytes,
                    speed=speed,
                    is_guess=True,
                    fit=fit,
                    offer=offer,
                )

    def _hub(self) -> Iterator[Model]:
        if self.found is not None:
            yield from self._offers([offer for offer in self.found.models if offer.source == "hub"], "hub")

    def guess(self, name: str, size_bytes: int, architecture: str = "", capabilities: Sequence[str] = ()) -> float:
        """Tokens a second of a dense model of this size: every token reads all weights once, and how fast this machine
        reads was measured with others. 0 where that says too little."""
        if not size_bytes or _EXPERTS.search(f"{name} {architecture}") or "embedding" in capabilities:
            return 0.0
        near = [bytes_per_s for bytes_per_s, size in self._measured() if 1 / FAR < size / size_bytes < FAR]
        return statistics.median(near) / size_bytes if near else 0.0

    def _measured(self) -> list[tuple[float, int]]:
        """Bytes a second that answers of dense models read, and the sizes of those."""
        if self._measured_of is not self.here:
            self._measured_of = self.here
            self._rates = [
                (model.tokens_per_s * model.size_bytes, model.size_bytes)
                for model in self.here.models
                if model.tokens_per_s and not _EXPERTS.search(f"{model.name} {model.architecture}")
            ]
        return self._rates

    _measured_of: InstalledModels | None = None
    _rates: list[tuple[float, int]] = field(default_factory=list)

    # ---- pulls

    def pull_of(self, name: str) -> PullJob | None:
        """The pull of a model, whichever of its names was used."""
        wanted = name.lower()
        named = (job for job in self.pulls if job.state != "done" and job.model.lower() == wanted)
        return next(named, None)

    @property
    def is_pulling(self) -> bool:
        return any(job.state in ACTIVE for job in self.pulls)


@lru_cache(4096)
def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """`qwen3:4b` stands before `qwen3:14b`."""
    parts = re.split(r"(\d{1,18})", name.lower())
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def _as_row(model: LoadedModel) -> ModelRow:
    stage = model.progress
    return ModelRow(
        name=model.name,
        state=model.state,
        size_bytes=model.size_bytes,
        running=model.running,
        waiting=model.waiting,
        tokens_per_s=model.tokens_per_s,
        progress=Progress(stage.stage, stage.done_bytes, stage.total_bytes) if stage else None,
        error=model.error,
    )


def _sort_key(model: Model, sort: Sort) -> float:
    if sort == "size":
        return -model.size_bytes
    if sort == "used":
        return -model.used
    return -model.speed if sort == "speed" else 0.0
