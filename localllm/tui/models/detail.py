"""One model in full: what it is, what it takes of this machine, and the quantizations there are of it."""

from __future__ import annotations

from dataclasses import dataclass

from textual.strip import Strip

from localllm.client import CatalogQuant, ModelFit
from localllm.safe_text import one_line
from localllm.tui import words
from localllm.tui.colour import mix
from localllm.tui.drawn import Drawn
from localllm.tui.lines import Line, cell, heading, joined, shortened, wrapped
from localllm.tui.models.list import fit_words, gigabytes, quant_text, speed_text
from localllm.tui.models.state import Model, ModelsState
from localllm.tui.palette import Ink

LABEL = 13
SOURCES = {
    "hub": "the hub", "package": "the Python package index", "url": "its address", "path": "this machine",
    "ollama": "Ollama's store", "lmstudio": "LM Studio's store", "huggingface": "the Hugging Face cache",
}  # fmt: skip
CAN_DO = {"completion": "chat", "embedding": "embeddings", "insert": "fill in"}


@dataclass(frozen=True, slots=True)
class Quant:
    """A quantization to choose; `model` is the name that pulls it."""

    tag: str
    model: str
    size_bytes: int
    fit: ModelFit | None
    speed: float
    is_guess: bool
    is_here: bool


def quants_of(model: Model, state: ModelsState) -> list[Quant]:
    """Those the catalog knows, with what each would take."""
    if model.offer is None:
        return []
    here = {installed.name: installed for installed in state.here.models}
    return [
        Quant(
            quant.tag,
            quant.model,
            here[quant.model].size_bytes if quant.model in here else quant.size_bytes,
            state.fits.get(quant.model),
            *_speed_of(quant, model, state),
            quant.model in here,
        )
        for quant in model.offer.quants
    ]


def _speed_of(quant: CatalogQuant, model: Model, state: ModelsState) -> tuple[float, bool]:
    """Tokens a second, and whether nobody measured them."""
    measured = next((here.tokens_per_s for here in state.here.models if here.name == quant.model), 0.0)
    fit = state.fits.get(quant.model)
    if measured or model.offer is None or (fit is not None and fit.verdict == "too large"):
        return measured, False
    return state.guess(quant.model, quant.size_bytes, model.offer.architecture, model.capabilities), True


class ModelDetail(Drawn):
    """The model under the cursor. `chosen` is the quantization that a pull would bring."""

    DEFAULT_CSS = "ModelDetail { width: 42; }"

    def __init__(self, state: ModelsState, *, shows_keys: bool = True) -> None:
        super().__init__()
        self._state = state
        self._shows_keys = shows_keys
        self.model: Model | None = None
        self.chosen = 0

    def show(self, model: Model | None) -> None:
        if model is None or self.model is None or model.name != self.model.name:
            quants = quants_of(model, self._state) if model else []
            default = next((at for at, quant in enumerate(quants) if model and quant.model == model.name), 0)
            self.chosen = default
        self.model = model
        self.redraw()

    @property
    def quants(self) -> list[Quant]:
        return quants_of(self.model, self._state) if self.model else []

    def step_quant(self, by: int) -> None:
        quants = self.quants
        if quants:
            self.chosen = max(0, min(len(quants) - 1, self.chosen + by))
            self.redraw()

    def draw(self, ink: Ink, width: int, height: int) -> list[Strip]:
        if self.model is None:
            return []
        return [line.strip(width) for line in self.lines(self.model, ink, width, height)]

    def lines(self, model: Model, ink: Ink, width: int, height: int) -> list[Line]:
        """What does not fit is left out in whole parts: keys first, then quantizations."""
        title = shortened(one_line(model.name), width - 14, "middle")
        facts = [heading(ink, width, title, Line((_where(model), ink("muted")))), *_facts(model, ink, width)]
        parts = [facts, _memory(model, ink, width), self._quantizations(ink, width)]
        if self._shows_keys:
            parts.append([_keys(model, ink, width)])
        made: list[Line] = []
        for part in parts:
            blank = [Line()] if made and part else []
            if part and len(made) + len(blank) + len(part) <= height:
                made += [*blank, *part]
        return made or facts[:height]

    def _quantizations(self, ink: Ink, width: int) -> list[Line]:
        quants = self.quants
        if not quants:
            return []
        note = Line(("← → choose", ink("faint"))) if len(quants) > 1 else None
        head = Line((cell("  quant", 12), ink("faint"))).put(cell("GB", 6, "right"), ink("faint"))
        head.put("  this machine", ink("faint")).pad_to(width - 6).put(cell("tok/s", 6, "right"), ink("faint"))
        rows = [self._quantization(quant, at, ink, width) for at, quant in enumerate(quants)]
        return [heading(ink, width, "Quantizations", note), head, *rows]

    def _quantization(self, quant: Quant, at: int, ink: Ink, width: int) -> Line:
        is_chosen = at == self.chosen and len(self.quants) > 1
        assert self.model is not None
        as_row = Model(quant.tag, "catalog", fit=quant.fit, offer=self.model.offer)
        sign, said, sign_role, said_role = fit_words(as_row)
        line = Line(("✓ " if quant.is_here else "▸ " if is_chosen else "  ", ink("accent")))
        line.put(cell(quant_text(quant.tag), 10), ink("bright", bold=True) if is_chosen or quant.is_here else ink())
        line.put(cell(gigabytes(quant.size_bytes), 6, "right"), ink())
        line.put(f"  {sign} ", ink(sign_role)).put(said, ink(said_role))
        speed = speed_text(quant.speed, quant.is_guess)
        return line.pad_to(width - 6).put(cell(speed, 6, "right"), ink("text" if quant.speed else "faint"))


def _where(model: Model) -> str:
    row = model.loaded
    if row is not None and row.state == "loading":
        progress = row.progress
        share = progress.done_bytes / progress.total_bytes if progress and progress.total_bytes else None
        stage = one_line(progress.stage) if progress and progress.stage else "loading"
        return f"{stage} {words.percent(share)}" if share is not None else stage
    if row is not None and row.state in ("failed", "stopping"):
        return "failed" if row.state == "failed" else "unloading"
    return {"running": "running", "installed": "installed", "catalog": "in the catalog", "hub": "on the hub"}[
        model.section
    ]


def _facts(model: Model, ink: Ink, width: int) -> list[Line]:
    rows = [(name, one_line(value)) for name, value in _values(model) if value]
    room = width - LABEL
    return [
        Line((cell(name, LABEL), ink("muted"))).put(
            shortened(value, room, "middle" if name == "file" else "end"), ink()
        )
        for name, value in rows
    ]


def _values(model: Model) -> list[tuple[str, str]]:
    installed, offer, fit = model.installed, model.offer, model.fit
    parameters = (installed.parameters if installed else "") or (offer.parameters if offer else "")
    layers = f"{fit.num_layers} layers" if fit and fit.num_layers else ""
    context = (installed.context_length if installed else 0) or (offer.context_length if offer else 0)
    return [
        ("parameters", ", ".join(filter(None, (_parameters(parameters), layers)))),
        ("context", words.count(context) if context else ""),
        ("page", _page(fit)),
        ("can do", "  ".join(CAN_DO.get(item, item) for item in model.capabilities)),
        ("licence", model.license + (", use terms apply" if offer and offer.gated else "")),
        ("file", installed.file if installed else ""),
        ("source", _source(model)),
    ]


def _parameters(text: str) -> str:
    """`12.2B` as `12.2 B`."""
    return f"{text[:-1]} {text[-1]}" if text[-1:] in ("B", "M", "K", "T") else text


def _page(fit: ModelFit | None) -> str:
    if fit is None or not fit.page_bytes or fit.is_estimate:
        return ""
    return f"{fit.page_size} tokens, {fit.page_bytes / 1e6:.1f} MB"


def _source(model: Model) -> str:
    if model.installed is not None:
        return SOURCES.get(model.installed.source, model.installed.source)
    return model.offer.repo if model.offer else ""


def _memory(model: Model, ink: Ink, width: int) -> list[Line]:
    """How the memory of the machine would be used, and the verdict in a sentence."""
    fit = model.fit
    failed = model.loaded.error if model.loaded is not None and model.loaded.state == "failed" else ""
    said = failed or model.refusal or (fit.sentence if fit else "")
    sentences = [Line((text, ink("err" if failed else "text"))) for text in wrapped(one_line(said), width)]
    total = fit.memory_bytes if fit else 0
    info = Line((f"{words.gigabytes(total)} GB", ink("muted"))) if total else None
    title = heading(ink, width, "Memory on this machine", info)
    if fit is None or not fit.weight_bytes or model.refusal:
        return [title, *sentences] if sentences else []
    weights = mix(ink.colour("accent"), ink.colour("bg"), 0.45)
    sizes = (fit.weight_bytes, fit.kv_bytes, fit.work_bytes)
    parts = list(zip(("weights", "pages", "work"), sizes, (weights, "accent", "muted"), strict=True))
    bar = Line()
    for _, size, role in parts:
        share = min(size / max(total, 1), 1.0)
        room = width - bar.width
        bar.put("━" * min(room, max(1 if size else 0, round(share * width))), ink(role))
    bar.put("━" * (width - bar.width), ink("line"))
    legend = joined(
        [Line(("━ ", ink(role))).put(f"{name} {gigabytes(size)}", ink("muted")) for name, size, role in parts],
        3,
    )
    return [title, bar, legend.fit(width), *sentences]


def _keys(model: Model, ink: Ink, width: int) -> Line:
    """As many as fit."""
    keys = [("enter", "load"), ("t", "template"), ("i", "tensors"), ("m", "metadata")]
    if not model.is_here:
        keys = [("p", "pull")]
    elif model.is_loaded:
        keys[0] = ("u", "unload")
    shown = [_key(ink, key, name) for key, name in keys]
    while joined(shown, 3).width > width:
        shown.pop()
    return joined(shown, 3)


def _key(ink: Ink, key: str, name: str) -> Line:
    return Line((key, ink("text", bold=True))).put(f" {name}", ink("muted"))
