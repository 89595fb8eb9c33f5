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

from localllm.client import CatalogModels, ModelFit
from localllm.errors import DaemonUnreachable, LocalLLMError
from localllm.tui.drawn import DrawnList
from localllm.tui.frame import FrameScreen
from localllm.tui.models.acts import ModelActs
from localllm.tui.models.detail import ModelDetail
from localllm.tui.models.list import ListHead, ModelList
from localllm.tui.models.pages import ModelPage
from localllm.tui.models.pulls import SHOWN, PullList, PullsHead
from localllm.tui.models.sheet import Question, Sheet
from localllm.tui.models.state import SORTS, ModelsState
from localllm.tui.models.top import DiskLine, SearchField, Slash

if TYPE_CHECKING:
    from localllm.client import Client
    from localllm.daemon.feed import Frame

T = TypeVar("T")
PULLS_EVERY_S, IDLE_PULLS_EVERY_S = 0.5, 5.0
FITS_AT_ONCE = 512


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
        Binding("q", "act('quantize')", "quantize", id="models.quantize", tooltip="Make a model of it in fewer bits"),
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
        self.pull_list = PullList(self.state)
        self._pulls_head = PullsHead(self.state)
        self._list_head, self._disk = ListHead(), DiskLine(self.state)
        self._slash, self._field = Slash(), SearchField(placeholder="search installed, catalog and hub")
        self._sheet = Sheet()
        self._pulls_asked_at = 0.0
        self._shown: tuple[object, ...] = ()
        self._acts = ModelActs(self)

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
            yield self.pull_list
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
        self.begin(self._reload, "models")

    def begin(self, work: Callable[[], Coroutine[Any, Any, object]], group: str) -> None:
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
            await self.ask_for_pulls()
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
            self.begin(self.ask_for_pulls, "pulls")

    async def ask_for_pulls(self) -> None:
        """What ended becomes a model of the list."""
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
        self.pull_list.styles.height = rows
        self.pull_list.refill()
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
        self.bindings_changed()

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
        self._pulls_head.is_focused_below = self.pull_list.has_focus
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
            self.begin(partial(self._look_on_the_hub, self.state.query), "search")

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
        self.bindings_changed()

    def is_offered(self, action: str) -> bool:
        if action == "choose":
            return self.focused is not self.list or self.size_class == "compact" or self.can("load")
        return self.can(action[len("act('") : -2]) if action.startswith("act(") else True

    def name_here(self, binding: Binding) -> str:
        opens = binding.action == "choose" and self.focused is self.list and self.size_class == "compact"
        return "open" if opens else binding.description

    def can(self, what: str) -> bool:
        """Whether it would do something to the model, or the pull, under the cursor."""
        return self._acts.can(what)

    # ---- doing something with a model

    async def action_act(self, what: str) -> None:
        await self.act(what)

    async def act(self, what: str) -> None:
        """What a key means for the model, or the pull, under the cursor."""
        await self._acts.act(what)

    # ---- asking first

    def ask(self, question: Question, act: Callable[[], Awaitable[None]] | None = None) -> None:
        """In the sheet above the footer; `act` is done when the answer is yes."""

        async def nothing() -> None: ...

        self._sheet.ask(question, act or nothing)

    @on(Sheet.Closed)
    def _asked_and_answered(self) -> None:
        (self.pull_list if self.state.pulls and self.pull_list.has_focus else self.list).focus()


def _fit(names: Sequence[str], client: Client) -> tuple[ModelFit, ...]:
    return client.library.fit(names)
