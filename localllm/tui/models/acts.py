"""What the keys of the models screen do: load, unload, pull, remove, look into. What has consequences is asked."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from localllm.client import InspectedModel, PullJob
from localllm.errors import DaemonUnreachable, LocalLLMError
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.models.pages import MakeLines, TablePage, metadata_lines, template_lines, tensor_lines
from localllm.tui.models.sheet import Question
from localllm.tui.models.state import LOADED, Model
from localllm.tui.models.types import TypesPage

if TYPE_CHECKING:
    from localllm.client import Client
    from localllm.tui.app import LocalApp
    from localllm.tui.models.screen import ModelsScreen
    from localllm.tui.models.state import ModelsState

MAKERS: dict[str, tuple[str, Callable[[InspectedModel], MakeLines]]] = {
    "template": ("Template", template_lines),
    "tensors": ("Tensors", tensor_lines),
    "metadata": ("Metadata", metadata_lines),
}


class ModelActs:
    """Acts on the model, or the pull, under the cursor of a screen."""

    def __init__(self, screen: ModelsScreen) -> None:
        self._screen = screen
        self._given_up: set[str] = set()

    @property
    def _state(self) -> ModelsState:
        return self._screen.state

    @property
    def _local(self) -> LocalApp:
        return self._screen.local

    async def act(self, what: str) -> None:
        """What a key means for the model, or the pull, under the cursor."""
        model, job = self._screen.list.model, self._job()
        if what == "cancel" or (what == "pull" and job is not None):
            await self._act_on_pull(what, job)
        elif model is not None:
            acts = {
                "load": self._load, "unload": self._unload, "pull": self._pull, "remove": self._ask_to_remove,
                "quantize": self._quantize,
            }  # fmt: skip
            await (acts[what](model) if what in acts else self._inspect(model, what))

    def can(self, what: str) -> bool:
        """Whether it would do something to the model, or the pull, under the cursor."""
        model, job = self._screen.list.model, self._job()
        if what == "cancel" or (what == "pull" and job is not None):
            return job is not None
        if model is None:
            return False
        if what == "pull":
            return all(here.name != self._wanted_name() for here in self._state.here.models)
        if what == "remove":
            return model.installed is not None
        if what == "unload":
            return model.loaded is not None and model.loaded.state in (*LOADED, "failed")
        return model.is_here and not (what == "load" and model.is_loaded)

    def _job(self) -> PullJob | None:
        """The pull that is meant: the one under its own cursor, else that of the model."""
        if self._screen.pull_list.has_focus:
            return self._screen.pull_list.job
        return self._state.pull_of(self._wanted_name()) if self._screen.list.model else None

    def _wanted_name(self) -> str:
        """The model as it would be pulled: in the quantization that was chosen."""
        model, quants = self._screen.list.model, self._screen.detail.quants
        if model is None:
            return ""
        return quants[min(self._screen.detail.chosen, len(quants) - 1)].model if quants else model.name

    async def _load(self, model: Model) -> None:
        if not model.is_here:
            await self._pull(model)
        elif model.is_loaded and model.loaded is not None and model.loaded.state == "ready":
            self._local.say(f"{model.name} is loaded")
        else:
            self._screen.begin(partial(self._loading, model.name), f"load {model.name}")

    async def _loading(self, name: str) -> None:
        """Progress comes with the live feed."""
        self._given_up.discard(name)
        try:
            await self._local.link.ask(lambda client: list(client.load(name)))
        except LocalLLMError as error:
            if name not in self._given_up:
                self._tell(error)
            return
        self._local.say(f"{name} is loaded")

    async def _unload(self, model: Model) -> None:
        if model.loaded is not None and model.loaded.state in (*LOADED, "failed"):
            self._given_up.add(model.name)  # a load that ends by this is no failure
            self._screen.begin(partial(self._do, lambda client: client.stop(model.name)), f"unload {model.name}")
        else:
            self._local.say(f"{model.name} is not loaded")

    async def _do(self, call: Callable[[Client], object]) -> bool:
        """Whether it went well; else the reason is shown."""
        try:
            await self._local.link.ask(call)
        except LocalLLMError as error:
            self._tell(error)
            return False
        return True

    def _tell(self, error: LocalLLMError) -> None:
        """Where it has to be acted on, in the sheet; the banner speaks for a daemon that is gone."""
        if isinstance(error, DaemonUnreachable):
            return
        if not self._screen.is_current:
            self._local.complain(error)
            return
        hint = one_line(error.hint)
        self._screen.ask(Question(_sentence(error.message), _sentence(hint[:1].upper() + hint[1:]), "", "close", "err"))

    async def _pull(self, model: Model) -> None:
        name, offer = self._wanted_name(), model.offer
        fit = self._state.fits.get(name)
        if any(here.name == name for here in self._state.here.models):
            self._local.say(f"{name} is here")
        elif model.refusal:
            self._screen.ask(
                Question(f"{one_line(name)} would not run here.", one_line(model.refusal) + ".", "", "back")
            )
        elif offer is not None and offer.gated:
            where = f" at huggingface.co/{one_line(offer.original)}" if offer.original else ""
            self._screen.ask(
                Question(
                    f"{one_line(name)} comes under the licence {one_line(offer.license) or 'of its owner'}.",
                    f"Using it means agreeing to its terms{where}.",
                    "agree and pull",
                ),
                partial(self._start_pull, name),
            )
        elif fit is not None and fit.verdict == "too large":
            self._screen.ask(
                Question(f"{one_line(name)} is too large for this machine.", fit.sentence, "pull it anyway"),
                partial(self._start_pull, name),
            )
        else:
            await self._start_pull(name)

    async def _start_pull(self, name: str) -> None:
        if await self._do(lambda client: client.library.pull(name)):
            await self._screen.ask_for_pulls()

    async def _act_on_pull(self, what: str, job: PullJob | None) -> None:
        if job is None:
            self._local.say("nothing is being pulled here")
        elif what == "cancel" and job.state in ("paused", "running", "queued", "checking") and job.done_bytes:
            fetched = words.size(job.done_bytes)
            self._screen.ask(
                Question(
                    f"Cancel the pull of {one_line(job.model)}?", f"{fetched} are deleted.", "cancel it", kind="err"
                ),
                partial(self._do_with_pull, job, "cancel"),
            )
        elif what == "cancel":
            await self._do_with_pull(job, "cancel")
        elif job.error is not None:
            hint = one_line(job.error.hint) or "the partial file is kept; it goes on from there"
            self._screen.ask(
                Question(_sentence(job.error.message), _sentence(hint[:1].upper() + hint[1:]), "try again"),
                partial(self._do_with_pull, job, "resume"),
            )
        elif job.state != "done":
            await self._do_with_pull(job, "resume" if job.state == "paused" else "pause")

    async def _do_with_pull(self, job: PullJob, what: str) -> None:
        if await self._do(lambda client: getattr(client.library, what)(job.id)):
            await self._screen.ask_for_pulls()

    async def _ask_to_remove(self, model: Model) -> None:
        installed = model.installed
        if installed is None:
            self._local.say(f"{model.name} is not here")
            return
        if not installed.is_ours:
            owner = {"ollama": "Ollama", "lmstudio": "LM Studio"}.get(installed.source, "another program")
            self._screen.ask(
                Question(f"{one_line(model.name)} belongs to {owner}.", "Remove it with its own tools.", "", "back")
            )
            return
        loaded = "It is loaded, and is unloaded first. " if model.is_loaded else ""
        size = words.size(installed.size_bytes)
        self._screen.ask(
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
        beside = self._screen.list.beside()
        try:
            gone = await self._local.link.ask(lambda client: client.library.remove(name))
        except LocalLLMError as error:
            self._tell(error)
            return
        self._screen.list.select(beside)  # not the same model in the catalog, far below
        freed = f", {words.size(gone.freed_bytes)} came free" if gone.freed_bytes else "; its files stay"
        self._local.say(f"{gone.removed} is removed{freed}")
        self._screen.reload()

    async def _quantize(self, model: Model) -> None:
        if not model.is_here:
            self._local.say(f"{model.name} can be quantized when it is here")
            return
        self._screen.begin(partial(self._ask_for_type, model.name), "inspect")

    async def _ask_for_type(self, name: str) -> None:
        try:
            sizes = await self._local.link.ask(lambda client: client.library.quantized_sizes(name))
        except LocalLLMError as error:
            self._tell(error)
            return

        def take(chosen: str) -> None:
            self._screen.begin(partial(self._start_quantizing, name, chosen), "quantize")

        self._local.push_screen(TypesPage(sizes, take))

    async def _start_quantizing(self, name: str, chosen: str) -> None:
        if await self._do(lambda client: client.library.quantize(name, chosen)):
            await self._screen.ask_for_pulls()

    async def _inspect(self, model: Model, what: str) -> None:
        if not model.is_here:
            self._local.say(f"{model.name} can be looked into when it is here")
            return
        self._screen.begin(partial(self._looked_into, model.name, what), "inspect")

    async def _looked_into(self, name: str, what: str) -> None:
        title, make = MAKERS[what]
        try:
            inside = await self._local.link.ask(lambda client: client.library.inspect(name))
        except LocalLLMError as error:
            self._tell(error)
            return
        self._local.push_screen(TablePage(f"{title} of {one_line(name)}", make(inside)))


def _sentence(text: str) -> str:
    """With one full stop."""
    return f"{one_line(text).rstrip('.')}." if text else ""
