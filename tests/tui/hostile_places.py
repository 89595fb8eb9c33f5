"""Every place of the application that draws what models, files, users, programs or the daemon wrote, as a function that
draws it once with texts of somebody's choice. Rows come with the width they were drawn for; None: they may be wider."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from textual.strip import Strip

from localllm import told
from localllm.client import InspectedModel, InstalledModels, MetadataItem, PullError, TensorItem
from localllm.daemon.feed import Frame, Machine, ModelRow, RequestEvent
from localllm.errors import DaemonUnreachable, LocalLLMError
from localllm.history import AnswerStats, Attachment
from localllm.history import Hit as FoundChat
from localllm.safe_text import one_line, sanitize
from localllm.tui.app import Glance, LocalApp
from localllm.tui.chat.base import ChatTitle
from localllm.tui.chat.composer import Chips
from localllm.tui.chat.context import Budget, ContextBar
from localllm.tui.chat.panel import BranchRow, ChatPanel, PanelState, answer_facts
from localllm.tui.chat.sheets import Option, Options, Sentence, SheetTitle
from localllm.tui.chat.side import ChatList, Entry
from localllm.tui.chat.turns import failure_trouble
from localllm.tui.chat.welcome import Offer, Welcome
from localllm.tui.conversation.turn import TurnView
from localllm.tui.conversation.turns import Live, Siblings, Trouble, Turn
from localllm.tui.dashboard.asking import PageText
from localllm.tui.dashboard.page_line import ChainLink, chain_line, page_line, token_line
from localllm.tui.dashboard.pages import PagesPanel
from localllm.tui.dashboard.request_page import Facts as RequestFacts
from localllm.tui.dashboard.request_page import event_lines
from localllm.tui.dashboard.requests import RequestTable
from localllm.tui.dashboard.side import DevicePanel, EventsPanel
from localllm.tui.dashboard.waterfall import WaterfallPanel
from localllm.tui.frame import Banner, TopLine
from localllm.tui.help import Title as PageTitle
from localllm.tui.help import text_lines
from localllm.tui.inspector.answer import AnswerPanel, SurprisePanel
from localllm.tui.inspector.inspected import Alternative, InspectedAnswer, InspectedToken, SamplerCuts
from localllm.tui.inspector.token import TokenPanel
from localllm.tui.lines import Line
from localllm.tui.live.state import LiveState
from localllm.tui.markdown.rows import Look
from localllm.tui.markdown.tree import parser
from localllm.tui.models.detail import ModelDetail
from localllm.tui.models.list import ModelList
from localllm.tui.models.pages import metadata_lines, template_lines, tensor_lines
from localllm.tui.models.pulls import PullList
from localllm.tui.models.sheet import Question
from localllm.tui.models.sheet import Sheet as ModelsSheet
from localllm.tui.models.state import ModelsState, Title, Words
from localllm.tui.palette import DARK, LIGHT, MONO, Ink
from localllm.tui.tokens.panel import TokenPanel as ChipPanel
from localllm.tui.tokens.parts import Facts, Steps, Template, VocabularyHead, VocabularyRows
from localllm.tui.tokens.sheet import TokenizerList
from localllm.tui.tokens.state import TokensState
from tests.tui.fakes import FakeClient
from tests.tui.hostile_texts import Texts
from tests.tui.live_frames import FakeEngine
from tests.tui.models_world import fit_for, installed, offer, pulling

Rows = Iterator[tuple[Line | Strip, int | None]]
Place = Callable[[Texts, Ink, int], Rows]
W = TypeVar("W")
INKS = (Ink(DARK), Ink(LIGHT), Ink(MONO, is_mono=True))
SCREEN = SimpleNamespace(focused=None, has_class=lambda name: False, query_one=lambda kind: None)


def loose(kind: type[W], app: Any = None) -> type[W]:
    """The widget outside of an application, to be asked for drawings only."""
    found = {"app": property(lambda self: app), "screen": property(lambda self: SCREEN), "has_focus": True}
    return type(kind.__name__, (kind,), found)


# ---- chat

READER = parser()
FORMS = (
    "{}", "{}", "{} {}\n{}", "# {}\n\n{}", "- {}\n- [x] {}\n  1. {}", "| a | {} |\n|---|--:|\n| {} | {} |",
    "> {}\n>\n> {}",
    "```{}\n{}\n{}\n```", "[{}]({})", "`{}` **{}** _{}_ ~~{}~~", "<{}>{}</{}>", "![{}]({} \"{}\")", "[{}]: {}\n[{}]",
    "    {}\n",
    "{}\n===\n{}", "```python\n{}\n```\n{}", "<https://{}> {}", "\\{}&{};",
)  # fmt: skip


def markdown(texts: Texts) -> str:
    """A document around some texts."""
    form = texts.dice.choice(FORMS)
    return form.format(*(texts() for _ in range(form.count("{}"))))


def answers(texts: Texts, ink: Ink, width: int) -> Rows:
    """As they are stored, and while they are written, in pieces."""
    text = markdown(texts)
    turn = Turn(1, "assistant", "", model=texts(), reasoning="", state="writing")
    view, look = TurnView(turn, READER), Look(ink, width, is_compact=width < 60)
    view.tell(Live(texts(), 3, 2.0, 0.1, texts()))
    for _ in range(texts.dice.randint(0, 2)):
        cut = texts.dice.randint(0, len(text))
        view.write(text[:cut])
        text = text[cut:]
        yield from _turn_rows(view, look)
    stats = AnswerStats(tokens=4, tokens_per_s=2.0, stop_reason=texts(), request_id=texts(), thought_s=1.0)
    view.become(Turn(1, "assistant", view.turn.text + text, texts(), texts(), stats=stats, siblings=Siblings(1, 2)))
    view.is_unfolded = texts.dice.random() < 0.5
    yield from _turn_rows(view, look)


def _turn_rows(view: TurnView, look: Look) -> Rows:
    for row in view.rows(look):
        yield Strip(row.segments, row.width), None if row.code else look.width if row.width == look.width else None
        assert row.code or row.width <= look.width, f"{row.width} for {look.width}: {row.text!r}"
        assert row.used <= row.width, f"{row.used} of {row.width}: {row.text!r}"
    for code in view.codes():
        assert isinstance(code, str)


def thoughts(texts: Texts, ink: Ink, width: int) -> Rows:
    view = TurnView(Turn(1, "assistant", "", markdown(texts), state="writing"), READER)
    view.is_unfolded = True
    yield from _turn_rows(view, Look(ink, width))


def said(texts: Texts, ink: Ink, width: int) -> Rows:
    """What users, systems and tools said, with the names of files."""
    files = tuple(Attachment(name=texts(), text=texts(), num_tokens=texts.dice.choice((0, 9))) for _ in range(2))
    role: Any = texts.dice.choice(("user", "system", "tool"))
    siblings = Siblings(1, texts.dice.choice((1, 3)))
    view = TurnView(Turn(1, role, texts(), attachments=files, siblings=siblings, created=1.7e9), READER)
    view.is_unfolded = texts.dice.random() < 0.5
    yield from _turn_rows(view, Look(ink, width))


def troubles(texts: Texts, ink: Ink, width: int) -> Rows:
    error = LocalLLMError(texts(), hint=texts())
    own = Trouble(texts(), texts(), texts(), texts(), texts())
    for trouble in (failure_trouble(error), own):
        state: Any = texts.dice.choice(("failed", "interrupted"))
        yield from _turn_rows(
            TurnView(Turn(1, "assistant", texts(), state=state, trouble=trouble), READER), Look(ink, width)
        )


def side_bar(texts: Texts, ink: Ink, width: int) -> Rows:
    """Titles by day, and what a search found."""
    shown = loose(ChatList)(lambda: 1.7e9)
    hits = [FoundChat(chat_id=2, title=texts(), updated=1.6e9, message_id=1, snippet=texts())]
    found = [Entry(hit.title, hit.chat_id, hit.updated, hit.message_id) for hit in hits]
    shown.entries = [Entry(texts()), Entry(texts(), 1, 1.7e9), *found, Entry(texts(), 3, 1.0)]
    shown.current, shown.writing = 1, frozenset([3])
    yield from ((shown.draw_row(row, ink, 30), 30) for row in range(len(shown.entries)))


def chat_lines(texts: Texts, ink: Ink, width: int) -> Rows:
    """Titles, the welcome, files to be sent, the context bar, sheets with suggestions."""
    title = loose(ChatTitle)()
    title._title, title._info, title._is_focused = texts(), texts(), True
    yield from ((strip, width) for strip in title.draw(ink, width, 1))
    welcome = loose(Welcome)()
    welcome._sentence, welcome._offers = (
        texts(),
        (Offer(texts(), texts(), "x"), Offer(f"Go on with “{texts()}”", "", "")),
    )
    yield from ((strip, width) for strip in welcome.draw(ink, width, 20))
    chips = loose(Chips)()
    chips.files, chips.note = (Attachment(name=texts(), text=texts()), Attachment(name=texts(), text="")), texts()
    yield from ((strip, width) for strip in chips.draw(ink, width, 1))
    bar = loose(ContextBar)()
    bar.budget, bar.note = texts.dice.choice((None, Budget(history=9, total=20))), texts()
    yield from ((strip, width) for strip in bar.draw(ink, width, 2))
    sheet = loose(SheetTitle)(texts(), ((texts(), texts()),))
    sheet.trouble = texts.dice.choice(("", texts()))
    yield from ((strip, width) for strip in sheet.draw(ink, width, 1))
    yield from ((strip, width) for strip in loose(Sentence)(texts()).draw(ink, width, 1))
    options = loose(Options)()
    options.options = [Option(texts(), texts(), texts()[:1], texts()), Option(texts())]
    yield from ((options.draw_row(row, ink, width), width) for row in range(2))


def parameters(texts: Texts, ink: Ink, width: int) -> Rows:
    """The panel: presets, values, system prompt, branches, facts of an answer."""
    panel = loose(ChatPanel, SimpleNamespace(ink=ink))()
    stats = AnswerStats(tokens=1, stop_reason=texts(), request_id=texts())
    branches = tuple(BranchRow(number, number, number, one_line(texts()), bool(number)) for number in range(3))
    facts = answer_facts(Turn(1, "assistant", stats=stats), texts())
    told: dict[str, Any] = {"stop": [texts(), texts()], "temperature": 0.5}
    panel.state = PanelState(told, texts(), texts(), 5, branches, 3, facts, {"stop": texts()})
    for row in panel._all(48):
        yield row.draw(ink, 48, True).fit(48).strip(48), 48


# ---- inspector


def inspector(texts: Texts, ink: Ink, width: int) -> Rows:
    """Tokens in the flow, the token in question, its alternatives, and what a branch would begin with."""
    tokens = []
    for number in range(6):
        others = tuple(Alternative(number * 9 + at, texts.raw(), math.log(0.4 / (at + 1))) for at in range(3))
        tokens.append(InspectedToken(number * 9, texts.raw(), -0.9, others, 1.0, texts.dice.random() < 0.2))
    answer = InspectedAnswer(texts(), tokens, SamplerCuts(0.7, 2, 0.9), 20, 16, 1000, False, texts())
    flow, token, surprise = loose(AnswerPanel)(answer), loose(TokenPanel)(answer), loose(SurprisePanel)(answer)
    cursor = texts.dice.randrange(6)
    flow.cursor = token.cursor = surprise.cursor = cursor
    token.chosen = texts.dice.randrange(4)
    for drawn, height in ((flow, 20), (token, 28), (token, 9), (surprise, 6)):
        yield from ((strip, width) for strip in drawn.draw(ink, width, height))


# ---- tokens


def chips(texts: Texts, ink: Ink, width: int) -> Rows:
    """Token chips of two tokenizers over one text."""
    state = _tokens_state(texts)
    state.shows_ids = texts.dice.random() < 0.5
    for number in range(2):
        yield from ((strip, width) for strip in loose(ChipPanel)(state, number).draw(ink, width, 14))
    for kind in (Facts, VocabularyHead, VocabularyRows):
        yield from ((strip, width) for strip in loose(kind)(state).draw(ink, width, 16))


def _tokens_state(texts: Texts) -> TokensState:
    kind = texts.dice.choice(("BPE", "WordPiece", texts()))
    tokens = [
        told.TextToken(id=at, bytes=texts.raw().hex(), start=at, end=at + 1, is_special=at == 2, agrees=at != 1)
        for at in range(5)
    ]
    splits = [
        told.SplitText(model=f"m{at}", title=texts(), kind=kind, count=5, tokens=tokens, num_agreed=2)
        for at in range(2)
    ]
    splits[1] = told.SplitText(model="m1", title=texts(), problem=texts()) if texts.dice.random() < 0.3 else splits[1]
    entry = told.VocabularyEntry(id=1, bytes=texts.raw().hex(), type=texts())
    return TokensState(
        names=[texts(), texts()], text=texts(), token=texts.dice.randrange(5), query=texts(),
        explanation=told.Explanation(num_chars=9, num_bytes=9, num_listed=5, tokenizers=splits),
        facts=told.TokenFacts(
            model="m0", id=2, bytes="00", type=texts(), merged_from=[texts.raw().hex()], also_in=[entry], num_also_in=2
        ),
        page=told.VocabularyPage(
            model="m0", vocab_size=9, total=4, offset=0, entries=[entry, entry], as_tokens=[1, 2]
        ),
    )  # fmt: skip


def steps(texts: Texts, ink: Ink, width: int) -> Rows:
    """Merges, a lattice and greedy matches of a word."""
    pieces = [texts.raw().hex() for _ in range(4)]
    merges = told.Merges(symbols=pieces, steps=[told.Merge(position=0, left=pieces[0], right=pieces[1], rank=1)])
    edges = [
        told.Edge(start=at, end=at + 2, id=at, bytes=piece, score=-1.0, best=-2.0, is_taken=at % 2 == 0)
        for at, piece in enumerate(pieces)
    ]
    matches = [told.Match(id=1, piece=texts(), rest=texts(), tried=[texts(), texts()], num_tried=4) for _ in range(2)]
    ways: tuple[dict[str, Any], ...] = (
        {"kind": "BPE", "merges": merges}, {"kind": "Unigram", "lattice": told.Lattice(edges=edges, score=-3.0)},
        {"kind": "WordPiece", "matches": matches}, {"kind": texts()},
    )  # fmt: skip
    state = _tokens_state(texts)
    for way in ways:
        note = texts.dice.choice(("", texts()))
        state.traces = {"m0": told.Trace(model="m0", word=texts(), start=0, end=9, ids=[1], note=note, **way)}
        state.step = texts.dice.randrange(3)
        yield from ((strip, width) for strip in loose(Steps)(state).draw(ink, width, 12))


def templates(texts: Texts, ink: Ink, width: int) -> Rows:
    """A chat template's parts, and names of tokenizers."""
    kinds: Any = ("special", "role", "content", "frame", "opening")
    parts = [told.TemplatePart(kind=kind, text=texts(), role=texts.dice.choice(("user", texts()))) for kind in kinds]
    view = told.TemplateView(model="m", parts=parts, num_tokens=1, num_special=1, is_exact=True, note=texts())
    for state in (TokensState(template=view), TokensState(template_problem=texts())):
        yield from ((strip, width) for strip in loose(Template)(state).draw(ink, width, 30))
    rows = [
        told.TokenizerRow(name="a", title=texts(), kind=texts(), note=texts()),
        told.TokenizerRow(name="b", title=texts()),
    ]
    shown = loose(TokenizerList)(rows, ["a"])
    error = PullError(message=texts(), hint=texts())
    shown.pulls = {"b": pulling("b", 1.0, 2.0, texts.dice.choice(("failed", "running")), error=error)}
    yield from ((shown.draw_row(row, ink, max(60, width)), max(60, width)) for row in range(2))


# ---- dashboard


def dashboard(texts: Texts, ink: Ink, width: int) -> Rows:
    """Requests with their sources, events, the device, the line of a page, one request, its waterfall."""
    state, engine = LiveState(), FakeEngine(texts.sendable(), num_pages=64)
    engine.sources = {number: texts.sendable() for number in (1, 2)}
    engine.admit(1, 40)
    engine.wait(2, 30)
    state.apply(engine.frame(), 1.0)
    engine.write(1, 3)
    engine.tell(2, "failed", code=texts.sendable())
    engine.tell(1, texts.sendable() or "x", **{texts.sendable(): texts.sendable(), "n": [texts.sendable()]})
    engine.finish(1)
    other = RequestEvent(
        id=texts.sendable() or "x", model=texts.sendable(), route=texts.sendable(), name="queued", at=engine.at,
        time=engine.at, source=texts.sendable(),
    )  # fmt: skip
    engine.events.append(other)
    row = ModelRow(name=texts.sendable(), state="failed", error=texts.sendable())
    state.apply(_with_models(engine, texts, row), 1.2)
    yield from _panels(state, texts, ink, width)


def _with_models(engine: FakeEngine, texts: Texts, row: ModelRow) -> Frame:
    frame = engine.frame()
    notes, device = (texts.sendable(),), texts.sendable()
    main = ModelRow(
        name=engine.name, state="ready", device=device, notes=notes, page_size=16, pages_total=64, pages_used=4, pid=1,
        size_bytes=10**9, memory_bytes=2 * 10**9,
    )  # fmt: skip
    return Frame(
        at=frame.at, time=frame.time, models=[main, row], snapshots=frame.snapshots, events=frame.events,
        machine=Machine(10**9, 2 * 10**9, 10**8),
    )  # fmt: skip


def _panels(state: LiveState, texts: Texts, ink: Ink, width: int) -> Rows:
    table, device = loose(RequestTable)(state), loose(DevicePanel)(state)
    pages = loose(PagesPanel, SimpleNamespace(ink=ink, is_ascii=False))(state)
    table.filter, table.ask = "", texts.dice.choice(("", texts()))
    model = next(iter(state.models.values()))
    device.model = pages.model = model
    for drawn in (table, device, loose(EventsPanel)(state), pages):
        yield from ((strip, width) for strip in drawn.draw(ink, width, 14))
    table.filter = texts()
    yield from ((strip, width) for strip in table.draw(ink, width, 6))
    chain = (ChainLink(texts(), 2, ("r1", "r2")), ChainLink(texts(), 1, (texts(),)))
    page = PageText(model.row.name, 60, tuple(texts() for _ in range(4)), 3, chain, 9)
    yield page_line(ink, width, state, model, texts.dice.randrange(64), page), width
    yield token_line(ink, width, page), width
    yield chain_line(ink, width, state, page), width
    for request in state.requests.rows.values():
        waterfall = loose(WaterfallPanel)(state)
        waterfall.request = request
        for drawn in (loose(RequestFacts)(state, request), waterfall):
            yield from ((strip, width) for strip in drawn.draw(ink, width, 12))
        yield from ((line.strip(width), width) for line in event_lines(ink, request))


# ---- models


def models(texts: Texts, ink: Ink, width: int) -> Rows:
    """The list, the model beside it, pulls and questions."""
    width = max(58, width)
    here = installed(
        texts() or "x", 2.0, texts(), license=texts(), file=texts(), parameters=texts(), architecture=texts(),
        source=texts(), capabilities=(texts(), texts()),
    )  # fmt: skip
    offers = (
        offer(texts() or "y", 3.0, texts() or "Q", license=texts(), refusal=texts(), repo=texts(), parameters=texts()),
    )
    state = ModelsState(here=InstalledModels(models=(here,), damaged=(texts(), texts())), is_told=True)
    state.catalog = type(state.catalog)(models=offers)
    state.found = type(state.catalog)(models=(), notice=texts())
    state.fits = {here.name: fit_for(here.name, here.size_bytes)}
    shown, detail = loose(ModelList)(state), loose(ModelDetail)(state)
    shown._rows = state.rows()
    for row, each in enumerate(shown._rows):
        yield shown.draw_row(row, ink, width), width
        if each is not None and not isinstance(each, Title | Words):
            detail.model = each
            yield from ((line, 60) for line in detail.lines(each, ink, 60, 60))
    for kind in ("running", "failed"):
        error = PullError(message=texts(), hint=texts()) if kind == "failed" else None
        pulls = ModelsState(pulls=(pulling(texts(), 1.0, 2.0, kind, 38, error=error),))
        yield loose(PullList)(pulls).draw_row(0, ink, width), width
    sheet = loose(ModelsSheet)()
    sheet.question = Question(texts(), texts(), texts(), texts())
    yield from ((strip, width) for strip in sheet.draw(ink, width, 3))


def model_files(texts: Texts, ink: Ink, width: int) -> Rows:
    """Metadata, tensors, template, licence and system prompt of a file."""
    inside = InspectedModel(
        name=texts(), metadata=tuple(MetadataItem(key=texts(), value=texts(), left_out=3) for _ in range(3)),
        tensors=(TensorItem(name=texts(), shape=(1, 2), type=texts(), size_bytes=5),), types={texts(): 5},
        template=f"{texts()}\n{texts()}", license=texts(), system=texts(),
    )  # fmt: skip
    for make in (metadata_lines, tensor_lines, template_lines):
        yield from ((line.strip(width), width) for line in make(inside)(ink, width))


# ---- around the screens


class QuietApp(LocalApp):
    """Keeps what is said instead of showing it."""

    said = ""

    def notify(self, message: str, **given: Any) -> None:  # type: ignore[override]  # less than Textual's
        assert given.get("markup") is False, "notices hold no markup"
        self.said = message


def frame_lines(texts: Texts, ink: Ink, width: int) -> Rows:
    """Header, banner, notices, pages of text such as the log."""
    app = APPS.setdefault("one", QuietApp(FakeClient(), home=Path("nowhere")))
    app.glance = Glance(texts(), 3.0, 0.5)
    state: Any = texts.dice.choice(("up", "down"))
    app.link.state, app.link.client = state, SimpleNamespace(url=f"http://{texts()}:1")  # type: ignore[assignment]
    app.link.error = texts.dice.choice((DaemonUnreachable(texts()), LocalLLMError(texts())))
    for drawn in (loose(TopLine, app)("chat"), loose(Banner, app)()):
        yield from ((strip, width) for strip in drawn.draw(ink, width, 2))
    app.say(texts())
    notices = [app.said]
    app.complain(LocalLLMError(texts(), hint=texts()))
    for notice in (*notices, *app.said.split("\n", 1)):
        yield Strip(Line((notice, ink())).segments), None
        assert one_line(notice) == notice, f"not plain: {notice!r}"
    yield from ((strip, width) for strip in loose(PageTitle)(texts()).draw(ink, width, 2))
    page = sanitize("\n".join(texts() for _ in range(4))).expandtabs(4)
    yield from ((line.strip(width), width) for line in text_lines(ink, page, width))


APPS: dict[str, QuietApp] = {}

PLACES: dict[str, Place] = {
    "answers": answers, "thoughts": thoughts, "said": said, "troubles": troubles, "side_bar": side_bar,
    "chat_lines": chat_lines, "parameters": parameters, "inspector": inspector, "chips": chips, "steps": steps,
    "templates": templates, "dashboard": dashboard, "models": models, "model_files": model_files,
    "frame_lines": frame_lines,
}  # fmt: skip
WIDTHS = (36, 50, 76, 96, 116, 196)
