"""A conversation alone on a screen, with turns to show."""

from collections.abc import Sequence

from textual.app import App, ComposeResult
from textual.pilot import Pilot

from localllm.history import AnswerStats, Attachment
from localllm.tui.conversation.turns import Siblings, Turn
from localllm.tui.conversation.widget import Conversation
from localllm.tui.frame import size_class
from localllm.tui.palette import DARK, THEMES, Ink, Roles

NOON = 1_700_000_000.0
STATS = AnswerStats(
    tokens=412, tokens_per_s=62.4, first_token_s=0.184, cached_tokens=2048, prompt_tokens=2311, thought_tokens=214,
    thought_s=3.4, stop_reason="stop",
)  # fmt: skip
CODE = "def plan(self):\n    return step"
QUESTION = Turn(
    1, "user", "Why does one long prompt stall everyone else?", created=NOON,
    attachments=(Attachment("scheduler.py", "x", 2104),),
)  # fmt: skip
ANSWER = Turn(
    2, "assistant", f"Your loop gives a **whole prompt** to one step:\n\n```python\n{CODE}\n```\n", "Let me *think*.",
    model="qwen3-4b", siblings=Siblings(2, 3), stats=STATS,
)  # fmt: skip


def writing(number: int = 9) -> Turn:
    return Turn(number, "assistant", model="qwen3-4b", state="writing")


def many(count: int) -> list[Turn]:
    """Of different heights."""
    return [
        Turn(
            index,
            "assistant",
            "\n\n".join(f"turn {index} line {line}" for line in range(1 + index * 7 % 23)),
            model="m",
        )
        if index % 2
        else Turn(index, "user", f"question {index}")
        for index in range(count)
    ]


class World(App[None]):
    """Keeps what the conversation wished."""

    CSS = """
    Screen { background: $role-bg; color: $role-text; }
    Conversation { margin: 0 1; background: $role-bg; }
    .compact Conversation { margin: 0; }
    """

    def __init__(self, turns: Sequence[Turn] = (), roles: Roles = DARK) -> None:
        self.ink = Ink(roles)
        self.conversation = Conversation(turns, clock=lambda: NOON)
        self.wishes: list[Conversation.Wish] = []
        super().__init__()
        for each in THEMES:
            self.register_theme(each.theme())
        self.theme = f"localllm-{roles.name}"

    def compose(self) -> ComposeResult:
        yield self.conversation

    def on_mount(self) -> None:
        self.screen.set_class(size_class(*self.size) == "compact", "compact")
        self.conversation.focus()

    def on_conversation_wish(self, wish: Conversation.Wish) -> None:
        self.wishes.append(wish)

    on_conversation_edit = on_conversation_again = on_conversation_inspect = on_conversation_wish
    on_conversation_sibling = on_conversation_copied = on_conversation_moved = on_conversation_wish

    async def drawn(self, pilot: Pilot[None]) -> None:
        """What was streamed stands on the screen, without waiting for the next thirtieth of a second."""
        assert self.conversation.turns is not None
        await pilot.pause()

    @property
    def rows(self) -> list[str]:
        """What the conversation shows."""
        height = self.conversation.size.height
        return [self.conversation.render_line(y).text.rstrip() for y in range(height)]
