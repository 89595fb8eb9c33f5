"""Models: what runs, what is installed, what could be pulled, and whether this machine has room for it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Horizontal
from textual.widgets import Input
from textual.worker import WorkType

from localllm.client import CatalogModels, InspectedModel, ModelFit, PullJob
from localllm.errors import DaemonUnreachable, LocalLLMError
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.drawn import DrawnList
from localllm.tui.frame import FrameScreen
from localllm.tui.models_detail import ModelDetail
from localllm.tui.models_list import ListHead, ModelList
from localllm.tui.models_pages import MakeLines, ModelPage, TablePage, metadata_lines, template_lines, tensor_lines
from localllm.tui.models_pulls import SHOWN, PullList, PullsHead
from localllm.tui.models_sheet import Question, Sheet
from localllm.tui.models_state import LOADED, SORTS, Model, ModelsState
from localllm.tui.models_top import DiskLine, SearchField, Slash

if TYPE_CHECKING:
    from localllm.client import Client
    from localllm.daemon.feed import Frame

T = TypeVar("T")
PULLS_EVERY_S, IDLE_PULLS_EVERY_S = 0.5, 5.0
FITS_AT_ONCE = 512
MAKERS: dict[str, tuple[str, Callable[[InspectedModel], MakeLines]]] = {
    "template": ("Template", template_lines),
    "tensors": ("Tensors", tensor_lines),
    "metadata": ("Metadata", metadata_lines),
}


class ModelsScreen(FrameScreen):
    """One list with three sections, the model under the cursor beside it, pulls below."""

    TAB = "models"
    AUTO_FOCUS = "#models-list"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("u", "act('unload')", "unload", id="models.unload", tooltip="Unload the model"),
        Binding("p", "act('pull')", "pull", id="models.pull", tooltip="Pull the model, pause its pull, or go on"),
        Binding("d", "act('remove')", "remove", id="models.remove", tooltip="Remove the model from the disk"),
        Binding("f", "fit_only", "fit only", id="models.fit_only", tooltip="Show only what this machine has room for"),
        Binding("s", "sort", "sort", id="models.sort", tooltip="Sort by name, size, use or speed"),
        Binding("slash", "search", "search", id="models.search", tooltip="Search installed, catalog and hub"),
        Binding("x", "act('cancel')", "cancel pull", id="models.cancel", tooltip="Cancel the pull, or forget it"),
        Binding("t", "act('template')", "template", id="models.template", tooltip="Show its chat template and licence"),
        Binding("i", "act('tensors')", "tensors", id="models.tensors", tooltip="Show its tensors"),
        Binding("m", "act('metadata')", "metadata", id="models.metadata", tooltip="Show its metadata"),
        Binding("left", "quant(-1)", "quant", show=False, id="models.quant_left", tooltip="The quantization above"),
        Binding("right", "quant(1)", "quant", show=False, id="models.quant_right", tooltip="The quantization below"),
    ]
    DEFAULT_CSS = """
    ModelsScreen #models-top { height: 1; margin: 1 0 1 0; }
    ModelsScreen.compact #models-top { margin: 0 0 1 0; }
    ModelsScreen #models-field { height: 1; width: 1fr; margin-right: 4; background: $role-panel; }
    ModelsScreen.compact #models-field { background: $role-bg; margin-right: 2; }
    ModelsScreen.compact Slash { width: 2; }
    ModelsScreen #models-row { height: 1fr; }
    ModelsScreen #models-left { width: 1fr; margin-right: 4; }
    ModelsScreen.compact #models-left { margin-right: 0; }
    ModelsScreen.compact ModelDetail { display: none; }
    ModelsScreen.wide ModelDetail { width: 60; }
    ModelsScreen #models-below { height: auto; margin: 1 0; display: none; }
    ModelsScreen.compact #models-below { margin: 1 0 0 0; }
    ModelsScreen.-pulling #models-below { display: block; }
    ModelsScreen #models-gap { height: 1; }
    ModelsScreen.compact #models-gap, ModelsScreen.-pulling #models-gap { display: none; }
    """

    # not DEFAULT_CSS: the application's own style of fields would win over it
    CSS = """
    ModelsScreen SearchField, ModelsScreen SearchField:focus { width: 1fr; padding: 0; background: $role-panel; }
    ModelsScreen.compact SearchField, ModelsScreen.compact SearchField:focus { background: $role-bg; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.state = ModelsState()
        self.list = ModelList(self.state)
        self.detail = ModelDetail(self.state)
        self._pull_list = PullList(self.state)
        self._pulls_head = PullsHead(self.state)
        self._list_head, self._disk = ListHead(), DiskLine(self.state)
        self._slash, self._field = Slash(), SearchField(placeholder="search installed, catalog and hub")
        self._sheet = Sheet()
        self._pulls_asked_at = 0.0
        self._shown: tuple[object, ...] = ()
        self._given_up: set[str] = set()

    def compose_body(self) -> ComposeResult:
        with Horizontal(id="models-top"):
            with Horizontal(id="models-field"):
                yield self._slash
                yield self._field
            yield self._disk
        with Horizontal(id="models-row"):
            with Container(id="models-left"):
                yield self._list_head
                yield self.list
            yield self.detail
        with Container(id="models-below"):
            yield self._pulls_head
            yield self._pull_list
        yield Container(id="models-gap")
        yield self._sheet

    # ---- what is known

    def on_mount(self) -> None:
        self.set_interval(PULLS_EVERY_S, self._look_at_pulls)
        self._fill()

    def link_changed(self) -> None:
        is_up = self.local.link.state == "up"
        self.list.is_old = self.local.is_down
        if is_up:
            self.reload()
        self._fill()

    def frame_arrived(self, frame: Frame) -> None:
        if self.state.note_frame(frame):
            self.reload()
        shown = tuple((row.name, row.state, row.running, row.progress, row.error) for row in self.state.loaded.values())
        if shown != self._shown:
            self._shown = shown
            self._fill()

    def reload(self) -> None:
        """Asks for everything again."""
        self._begin(self._reload, "models")

    def _begin(self, work: Callable[[], Coroutine[Any, Any, object]], group: str) -> None:
        """In the background, in the place of what is under way in this group."""
        begun: WorkType[object] = work
        self.run_worker(begun, group=group, exclusive=True)

    async def _reload(self) -> None:
        try:
            self.state.here = await self.local.link.ask(lambda client: client.library.installed())
            self.state.note_loaded(await self.local.link.ask(lambda client: client.ps()))
            self.state.is_told = True
            self._fill()
            if not self.state.catalog.models:
                self.state.catalog = await self._asked(lambda client: client.library.catalog(), CatalogModels())
                self._fill()
            self.state.fits = await self._fits()
            await self._ask_for_pulls()
        except DaemonUnreachable:
            return  # the banner says so; what is known stays
        except LocalLLMError as error:
            self.local.complain(error)
        self._fill()

    async def _asked(self, call: Callable[[Client], T], otherwise: T) -> T:
        """What a daemon answers that may have no such thing to tell: one whose models are given has no catalog."""
        try:
            return await self.local.link.ask(call)
        except DaemonUnreachable:
            raise
        except LocalLLMError:
            return otherwise

    async def _fits(self) -> dict[str, ModelFit]:
        names = [model.name for model in self.state.models()]
        offers = [quant.model for offer in self.state.catalog.models for quant in offer.quants]
        wanted = list(dict.fromkeys((*names, *offers)))
        found: dict[str, ModelFit] = {}
        for start in range(0, len(wanted), FITS_AT_ONCE):
            part = wanted[start : start + FITS_AT_ONCE]
            fits = await self.local.link.ask(partial(_fit, part))
            found.update((fit.model, fit) for fit in fits)
        return found

    async def _look_at_pulls(self) -> None:
        """Now and then; often while something comes."""
        if not self.is_current or self.local.link.state != "up":
            return
        since = time.monotonic() - self._pulls_asked_at
        if since >= (PULLS_EVERY_S if self.state.is_pulling else IDLE_PULLS_EVERY_S):
            self._begin(self._ask_for_pulls, "pulls")

    async def _ask_for_pulls(self) -> None:
        self._pulls_asked_at = time.monotonic()
        before = self.state.pulls
        try:
            self.state.pulls = await self._asked(lambda client: client.library.pulls(), ())
        except LocalLLMError:
            return
        ended = {job.id for job in before if job.state != "done"} & {
            job.id for job in self.state.pulls if job.state == "done"
        }
        if ended:
            self.reload()
        if before != self.state.pulls:
            self._fill()

    def _fill(self) -> None:
        """Everything that is shown, from what is known."""
        if not self.is_mounted:
            return
        self.list.fill()
        self.detail.show(self.list.model)
        self.set_class(bool(self.state.pulls), "-pulling")
        rows = min(len(self.state.pulls), SHOWN.get(self.size_class, 4))
        self._pull_list.styles.height = rows
        self._pull_list.refill()
        self._pulls_head.refresh()
        self._disk.styles.width = self._disk.line(self.local.ink).width
        self._disk.redraw()
        self._list_head.sort = self.state.sort
        self._list_head.redraw()
        if isinstance(self.app.screen, ModelPage):
            self.app.screen.refill()
        self.bindings_changed()

    def resized(self, size_class: str) -> None:
        self._field.placeholder = "search" if size_class == "compact" else "search installed, catalog and hub"
        self._fill()

    # ---- moving about

    @on(DrawnList.Moved, "#models-list")
    def _moved(self) -> None:
        self.detail.show(self.list.model)

    @on(DrawnList.Chosen, "#models-list")
    async def _chosen(self) -> None:
        if self.size_class == "compact":
            self.app.push_screen(ModelPage(self))
        else:
            await self.act("load")

    @on(DrawnList.Chosen, "#models-pulls")
    async def _chosen_pull(self) -> None:
        await self.act("pull")

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        self._focus_moved()

    def on_descendant_blur(self, event: events.DescendantBlur) -> None:
        self._focus_moved()

    def _focus_moved(self) -> None:
        self._pulls_head.is_focused_below = self._pull_list.has_focus
        self._pulls_head.refresh()
        self._slash.redraw()
        self.call_after_refresh(self.bindings_changed)

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if event.value != self.state.query:
            self.state.query, self.state.found = event.value, None
            self._fill()

    @on(Input.Submitted)
    def _search_hub(self) -> None:
        self.list.focus()
        if self.state.query.strip():
            self.state.is_looking = True
            self._fill()
            self._begin(partial(self._look_on_the_hub, self.state.query), "search")

    async def _look_on_the_hub(self, query: str) -> None:
        found = None
        try:
            found = await self.local.link.ask(lambda client: client.library.search(query[:200]))
        except LocalLLMError as error:
            found = CatalogModels(notice=error.message)
        finally:
            self.state.is_looking = False
        if self.state.query == query:
            self.state.found = found
        self._fill()

    def action_search(self) -> None:
        self._field.focus()

    def action_fit_only(self) -> None:
        self.state.is_fit_only = not self.state.is_fit_only
        self.local.say("only what this machine has room for" if self.state.is_fit_only else "all models")
        self._fill()

    def action_sort(self) -> None:
        self.state.sort = SORTS[(SORTS.index(self.state.sort) + 1) % len(SORTS)]
        self.local.say(f"sorted by {self.state.sort}")
        self._fill()

    def action_quant(self, by: int) -> None:
        self.detail.step_quant(by)

    # ---- doing something with a model

    async def action_act(self, what: str) -> None:
        await self.act(what)

    async def act(self, what: str) -> None:
        """What a key means for the model, or the pull, under the cursor."""
        model, job = self.list.model, self._job()
        if what == "cancel" or (what == "pull" and job is not None):
            await self._act_on_pull(what, job)
        elif model is not None:
            acts = {"load": self._load, "unload": self._unload, "pull": self._pull, "remove": self._ask_to_remove}
            await (acts[what](model) if what in acts else self._inspect(model, what))

    def _job(self) -> PullJob | None:
        """The pull that is meant: the one under its own cursor, else that of the model."""
        if self._pull_list.has_focus:
            return self._pull_list.job
        return self.state.pull_of(self._wanted_name()) if self.list.model else None

    def _wanted_name(self) -> str:
        """The model as it would be pulled: in the quantization that was chosen."""
        model, quants = self.list.model, self.detail.quants
        if model is None:
            return ""
        return quants[min(self.detail.chosen, len(quants) - 1)].model if quants else model.name

    async def _load(self, model: Model) -> None:
        if not model.is_here:
            await self._pull(model)
        elif model.is_loaded and model.loaded is not None and model.loaded.state == "ready":
            self.local.say(f"{model.name} is loaded")
        else:
            self._begin(partial(self._loading, model.name), f"load {model.name}")

    async def _loading(self, name: str) -> None:
        """Progress comes with the live feed."""
        self._given_up.discard(name)
        try:
            await self.local.link.ask(lambda client: list(client.load(name)))
        except LocalLLMError as error:
            if name not in self._given_up:
                self._tell(error)
            return
        self.local.say(f"{name} is loaded")

    async def _unload(self, model: Model) -> None:
        if model.loaded is not None and model.loaded.state in (*LOADED, "failed"):
            self._given_up.add(model.name)  # a load that ends by this is no failure
            self._begin(partial(self._do, lambda client: client.stop(model.name)), f"unload {model.name}")
        else:
            self.local.say(f"{model.name} is not loaded")

    async def _do(self, call: Callable[[Client], object]) -> bool:
        """Whether it went well; else the reason is shown."""
        try:
            await self.local.link.ask(call)
        except LocalLLMError as error:
            self._tell(error)
            return False
        return True

    def _tell(self, error: LocalLLMError) -> None:
        """Where it has to be acted on, in the sheet; the banner speaks for a daemon that is gone."""
        if isinstance(error, DaemonUnreachable):
            return
        if not self.is_current:
            self.local.complain(error)
            return
        hint = one_line(error.hint)
        self._ask(Question(_sentence(error.message), _sentence(hint[:1].upper() + hint[1:]), "", "close", "err"))

    async def _pull(self, model: Model) -> None:
        name, offer = self._wanted_name(), model.offer
        fit = self.state.fits.get(name)
        if any(here.name == name for here in self.state.here.models):
            self.local.say(f"{name} is here")
        elif model.refusal:
            self._ask(Question(f"{one_line(name)} would not run here.", one_line(model.refusal) + ".", "", "back"))
        elif offer is not None and offer.gated:
            where = f" at huggingface.co/{one_line(offer.original)}" if offer.original else ""
            self._ask(
                Question(
                    f"{one_line(name)} comes under the licence {one_line(offer.license) or 'of its owner'}.",
                    f"Using it means agreeing to its terms{where}.",
                    "agree and pull",
                ),
                partial(self._start_pull, name),
            )
        elif fit is not None and fit.verdict == "too large":
            self._ask(
                Question(f"{one_line(name)} is too large for this machine.", fit.sentence, "pull it anyway"),
                partial(self._start_pull, name),
            )
        else:
            await self._start_pull(name)

    async def _start_pull(self, name: str) -> None:
        if await self._do(lambda client: client.library.pull(name)):
            await self._ask_for_pulls()

    async def _act_on_pull(self, what: str, job: PullJob | None) -> None:
        if job is None:
            self.local.say("nothing is being pulled here")
        elif what == "cancel" and job.state in ("paused", "running", "queued", "checking") and job.done_bytes:
            fetched = words.size(job.done_bytes)
            self._ask(
                Question(
                    f"Cancel the pull of {one_line(job.model)}?", f"{fetched} are deleted.", "cancel it", kind="err"
                ),
                partial(self._do_with_pull, job, "cancel"),
            )
        elif what == "cancel":
            await self._do_with_pull(job, "cancel")
        elif job.error is not None:
            hint = one_line(job.error.hint) or "the partial file is kept; it goes on from there"
            self._ask(
                Question(_sentence(job.error.message), _sentence(hint[:1].upper() + hint[1:]), "try again"),
                partial(self._do_with_pull, job, "resume"),
            )
        elif job.state != "done":
            await self._do_with_pull(job, "resume" if job.state == "paused" else "pause")

    async def _do_with_pull(self, job: PullJob, what: str) -> None:
        if await self._do(lambda client: getattr(client.library, what)(job.id)):
            await self._ask_for_pulls()

    async def _ask_to_remove(self, model: Model) -> None:
        installed = model.installed
        if installed is None:
            self.local.say(f"{model.name} is not here")
            return
        if not installed.is_ours:
            owner = {"ollama": "Ollama", "lmstudio": "LM Studio"}.get(installed.source, "another program")
            self._ask(
                Question(f"{one_line(model.name)} belongs to {owner}.", "Remove it with its own tools.", "", "back")
            )
            return
        loaded = "It is loaded, and is unloaded first. " if model.is_loaded else ""
        size = words.size(installed.size_bytes)
        self._ask(
            Question(
                f"Remove {one_line(model.name)}?",
                f"{loaded}Up to {size} come free; files that other models share stay.",
                "remove it",
                "keep it",
                "err",
            ),
            partial(self._remove, model.name),
        )

    async def _remove(self, name: str) -> None:
        beside = self.list.beside()
        try:
            gone = await self.local.link.ask(lambda client: client.library.remove(name))
        except LocalLLMError as error:
            self._tell(error)
            return
        self.list.select(beside)  # not the same model in the catalog, far below
        self.local.say(f"{gone.removed} is removed, {words.size(gone.freed_bytes)} came free")
        self.reload()

    async def _inspect(self, model: Model, what: str) -> None:
        if not model.is_here:
            self.local.say(f"{model.name} can be looked into when it is here")
            return
        self._begin(partial(self._looked_into, model.name, what), "inspect")

    async def _looked_into(self, name: str, what: str) -> None:
        title, make = MAKERS[what]
        try:
            inside = await self.local.link.ask(lambda client: client.library.inspect(name))
        except LocalLLMError as error:
            self._tell(error)
            return
        self.app.push_screen(TablePage(f"{title} of {one_line(name)}", make(inside)))

    # ---- asking first

    def _ask(self, question: Question, act: Callable[[], Awaitable[None]] | None = None) -> None:
        async def nothing() -> None: ...

        self._sheet.ask(question, act or nothing)

    @on(Sheet.Closed)
    def _asked_and_answered(self) -> None:
        (self._pull_list if self.state.pulls and self._pull_list.has_focus else self.list).focus()


def _sentence(text: str) -> str:
    """With one full stop."""
    return f"{one_line(text).rstrip('.')}." if text else ""


def _fit(names: Sequence[str], client: Client) -> tuple[ModelFit, ...]:
    return client.library.fit(names)
