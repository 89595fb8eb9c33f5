"""What is looked at in full above the models screen: metadata, tensors, template, and in a compact window the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container

from localllm.client import InspectedModel
from localllm.safe_text import one_line, sanitize
from localllm.tui import words
from localllm.tui.frame import FrameScreen
from localllm.tui.help import Overlay, Rows, Title
from localllm.tui.lines import Line, cell, heading, shortened, wrapped
from localllm.tui.models.detail import ModelDetail
from localllm.tui.palette import Ink

if TYPE_CHECKING:
    from localllm.daemon.feed import Frame
    from localllm.tui.models.screen import ModelsScreen

MakeLines = Callable[[Ink, int], list[Line]]


class TablePage(Overlay):
    """Rows to scroll through, made for the width of the window."""

    def __init__(self, title: str, make: MakeLines) -> None:
        super().__init__()
        self._title, self._make = title, make

    def compose(self) -> ComposeResult:
        with Container():
            yield Title(self._title)
            yield Rows()

    def on_mount(self) -> None:
        self._fill()
        self.query_one(Rows).focus()

    def on_resize(self) -> None:
        self._fill()

    def _fill(self) -> None:
        ink: Ink = self.app.ink  # type: ignore[attr-defined]  # LocalApp
        self.query_one(Rows).fill(self._make(ink, max(20, self.app.size.width - 5)))


def metadata_lines(inside: InspectedModel) -> MakeLines:
    """A key and its value a row; what was left out of long ones is said."""

    def make(ink: Ink, width: int) -> list[Line]:
        keys = [one_line(item.key) for item in inside.metadata]
        room = min(max(map(len, keys), default=0) + 2, width // 2)
        lines = []
        for key, item in zip(keys, inside.metadata, strict=True):
            more = f"  … {words.count(item.left_out)} more" if item.left_out else ""
            value = shortened(one_line(item.value) or words.UNKNOWN, width - room - len(more))
            line = Line((cell(shortened(key, room - 2), room), ink("muted"))).put(value, ink())
            lines.append(line.put(more, ink("faint")))
        return lines or [Line(("The file says nothing about itself.", ink("muted")))]

    return make


def tensor_lines(inside: InspectedModel) -> MakeLines:
    """Types with their bytes, then every tensor."""

    def make(ink: Ink, width: int) -> list[Line]:
        total = sum(inside.types.values())
        head = Line((words.plural(len(inside.tensors), "tensor"), ink())).put("   ")
        head.put(words.size(total), ink())
        for kind, size in inside.types.items():
            head.put("   ").put(f"{one_line(kind).lower()} ", ink("muted")).put(words.size(size), ink())
        name = max(20, width - 18 - 10 - 12)
        columns = Line((cell("name", name), ink("faint"))).put(cell("shape", 18, "right"), ink("faint"))
        columns.put(cell("type", 10, "right"), ink("faint")).put(cell("size", 12, "right"), ink("faint"))
        lines = [head, Line(), columns]
        for tensor in inside.tensors:
            shape = " × ".join(words.count(side) for side in tensor.shape) or "1"
            line = Line((cell(shortened(one_line(tensor.name), name - 2, "middle"), name), ink()))
            line.put(cell(shape, 18, "right"), ink("muted"))
            line.put(cell(one_line(tensor.type).lower(), 10, "right"), ink("muted"))
            lines.append(line.put(cell(words.size(tensor.size_bytes), 12, "right"), ink()))
        return lines

    return make


def template_lines(inside: InspectedModel) -> MakeLines:
    """The chat template, the system prompt that comes with the model, and its licence."""

    def make(ink: Ink, width: int) -> list[Line]:
        lines: list[Line] = []
        texts = (("Chat template", inside.template), ("System prompt", inside.system), ("Licence", inside.license))
        for title, text in texts:
            if not text:
                continue
            lines += [Line()] if lines else []
            lines.append(heading(ink, width, title, Line((f"{words.count(len(text))} characters", ink("muted")))))
            for line in sanitize(text).expandtabs(4).splitlines():
                indent = len(line) - len(line.lstrip(" "))
                parts = wrapped(line, max(20, width - indent)) or [""]
                lines += [Line((" " * indent + part, ink())) for part in parts]
        return lines or [Line(("The model brings no chat template: its text is taken as it is.", ink("muted")))]

    return make


def _key(key: str, what: str, name: str, tooltip: str) -> Binding:
    return Binding(key, f"below('{what}')", name, id=f"model.{what}", tooltip=tooltip)


class ModelPage(FrameScreen):
    """One model in a window that has no room for it beside the list. Its keys are those of the list."""

    TAB = "models"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "back", "back", id="model.back", tooltip="Back to the list"),
        _key("enter", "load", "load", "Load the model, or pull it"),
        _key("u", "unload", "unload", "Unload the model"),
        _key("p", "pull", "pull", "Pull the model, pause its pull, or go on"),
        _key("d", "remove", "remove", "Remove the model from the disk"),
        _key("t", "template", "template", "Show its chat template and licence"),
        _key("i", "tensors", "tensors", "Show its tensors"),
        _key("m", "metadata", "metadata", "Show its metadata"),
        Binding("left", "quant(-1)", "quant", show=False, id="model.quant_left", tooltip="The quantization above"),
        Binding("right", "quant(1)", "quant", show=False, id="model.quant_right", tooltip="The quantization below"),
    ]
    DEFAULT_CSS = "ModelPage ModelDetail { width: 1fr; }"

    def __init__(self, below: ModelsScreen) -> None:
        super().__init__()
        self._below = below

    def compose_body(self) -> ComposeResult:
        detail = ModelDetail(self._below.state, shows_keys=False)
        yield detail

    def on_mount(self) -> None:
        self.refill()

    def refill(self) -> None:
        """What is known has changed."""
        model = self._below.list.model
        self.query_one(ModelDetail).show(model)
        self.bindings_changed()

    def is_offered(self, action: str) -> bool:
        return self._below.can(action[len("below('") : -2]) if action.startswith("below(") else True

    def frame_arrived(self, frame: Frame) -> None:
        self._below.frame_arrived(frame)

    def link_changed(self) -> None:
        self._below.link_changed()

    def action_back(self) -> None:
        self.dismiss()

    async def action_below(self, what: str) -> None:
        """What the key means on the list; what is asked there is asked there."""
        if what in ("load", "pull", "remove"):
            self._below.detail.chosen = self.query_one(ModelDetail).chosen
            self.dismiss()
        await self._below.act(what)

    def action_quant(self, by: int) -> None:
        self.query_one(ModelDetail).step_quant(by)
