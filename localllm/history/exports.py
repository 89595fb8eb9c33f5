"""A chat's active branch for people: as Markdown, or as one HTML page that needs nothing else and runs nothing."""

import html
import re
import time
from collections.abc import Callable, Iterable, Mapping

from localllm.errors import UsageError
from localllm.history.chats import History
from localllm.history.document import document_of, to_json
from localllm.history.records import AnswerStats, Chat, Message
from localllm.safe_text import one_line, sanitize

_FENCE = re.compile(r"^ {0,3}(```+|~~~+)[ \t]*([^\n`]*)\n(.*?)(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_STYLE = """
:root { color-scheme: light dark; --bg: #fbfaf7; --panel: #f4f2ed; --text: #2b2e32; --bright: #08090a; --muted: #65635b;
  --line: #dad6cb; --accent: #0b7a66 }
@media (prefers-color-scheme: dark) { :root { --bg: #0f1318; --panel: #141a21; --text: #ccd4df; --bright: #f3f6fa;
  --muted: #8e9aab; --line: #28323e; --accent: #6fd6b8 } }
body { background: var(--bg); color: var(--text); font: 16px/1.55 system-ui, sans-serif; max-width: 46rem;
  margin: 3rem auto; padding: 0 1.25rem }
h1 { color: var(--bright); font-size: 1.3rem; border-bottom: 1px solid var(--line); padding-bottom: .5rem }
h2 { color: var(--bright); font-size: 1rem; margin: 2rem 0 .4rem } h2 small, .stats, summary { color: var(--muted);
  font-weight: normal; font-size: .85rem } .stats { margin-top: .6rem }
.user, .system { background: var(--panel); border-left: 3px solid var(--muted); padding: .1rem 1rem .8rem }
.system { border-color: var(--accent) } .text { white-space: pre-wrap; overflow-wrap: anywhere }
pre { background: var(--panel); padding: .8rem 1rem; overflow-x: auto; font: 14px/1.45 ui-monospace, monospace }
"""


def as_json(history: History, chat_id: int) -> str:
    """All branches and every figure; `document.from_json` reads it."""
    return to_json(document_of(history, chat_id))


def as_markdown(history: History, chat_id: int) -> str:
    """The active branch. Answers are Markdown already, and stand as they are."""
    chat = history.chat(chat_id)
    parts = [f"# {_escaped_heading(chat.title or 'Chat')}", f"{chat.model}, {_day(chat.created)}".lstrip(", ")]
    if chat.system:
        parts += ["## System", _quoted(chat.system)]
    for message in history.branch(chat_id):
        parts += _markdown_parts(message, chat)
    return sanitize("\n\n".join(parts).rstrip()) + "\n"


def _markdown_parts(message: Message, chat: Chat) -> Iterable[str]:
    yield f"## {_escaped_heading(_who(message, chat))}"
    for file in message.attachments:
        fence = _fence_for(file.text)
        yield f"{_escaped_heading(file.name)}:\n\n{fence}\n{file.text.rstrip()}\n{fence}"
    if message.reasoning:
        yield _quoted(message.reasoning)
    if message.content:
        yield message.content.strip("\n")
    if message.stats and (line := stats_line(message.stats)):
        yield f"*{line}*"


def as_html(history: History, chat_id: int) -> str:
    """The active branch as one page: everything that somebody wrote is escaped, and there are no scripts."""
    chat = history.chat(chat_id)
    title = html.escape(one_line(chat.title or "Chat"))
    sections = [_section("system", "System", "", _blocks(chat.system))] if chat.system else []
    sections += [_html_section(message, chat) for message in history.branch(chat_id)]
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        f"</head>\n<body>\n<h1>{title}</h1>\n{''.join(sections)}</body>\n</html>\n"
    )


def _html_section(message: Message, chat: Chat) -> str:
    body = "".join(_folded(file.name, file.text) for file in message.attachments)
    body += _folded("Thoughts", message.reasoning) if message.reasoning else ""
    body += _blocks(message.content)
    if message.stats and (line := stats_line(message.stats)):
        body += f'<p class="stats">{html.escape(line)}</p>\n'
    kind = "user" if message.role == "user" else "answer"
    return _section(kind, _who(message, chat), _day(message.created), body)


def _section(kind: str, name: str, note: str, body: str) -> str:
    heading = f"{html.escape(one_line(name))} <small>{html.escape(note)}</small>"
    return f'<section class="{kind}">\n<h2>{heading}</h2>\n{body}</section>\n'


def _folded(name: str, text: str) -> str:
    shown = html.escape(sanitize(text))
    return f"<details><summary>{html.escape(one_line(name))}</summary><pre>{shown}</pre></details>\n"


def _blocks(text: str) -> str:
    """Text as it was written; what stands in fences is set as code."""
    out, at = "", 0
    text = sanitize(text)
    for fence in _FENCE.finditer(text):
        out += _plain(text[at : fence.start()]) + f"<pre><code>{html.escape(fence[3])}</code></pre>\n"
        at = fence.end()
    return out + _plain(text[at:])


def _plain(text: str) -> str:
    return f'<div class="text">{html.escape(text.strip(chr(10)))}</div>\n' if text.strip() else ""


def stats_line(stats: AnswerStats) -> str:
    """What is known of how an answer was made, in one line."""
    parts = [
        f"{stats.tokens:,} tokens" if stats.tokens else "",
        f"{stats.tokens_per_s:.1f} tok/s" if stats.tokens_per_s else "",
        f"{stats.first_token_s * 1000:.0f} ms first token" if stats.first_token_s else "",
        f"{stats.cached_tokens:,} of {stats.prompt_tokens:,} cached" if stats.prompt_tokens else "",
        stats.stop_reason or "interrupted",
    ]
    return "   ".join(part for part in parts if part)


FORMATS: Mapping[str, Callable[[History, int], str]] = {"md": as_markdown, "json": as_json, "html": as_html}


def exported(history: History, chat_id: int, kind: str) -> str:
    """The chat as `md`, `json` or `html`; UsageError for another kind."""
    if kind not in FORMATS:
        raise UsageError(f"a chat cannot be written as {kind!r}", hint=f"there are {', '.join(FORMATS)}")
    return FORMATS[kind](history, chat_id)


def file_name(chat: Chat, kind: str) -> str:
    """A name that every file system takes, from the chat's title."""
    words = re.findall(r"\w+", chat.title.lower())
    stem = "-".join(words)[:60].strip("-") or f"chat-{chat.id}"
    return f"{stem}.{kind}"


def _who(message: Message, chat: Chat) -> str:
    names = {"user": "You", "assistant": message.model or chat.model or "Assistant"}
    return names.get(message.role, message.role)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _quoted(text: str) -> str:
    return "\n".join(f"> {line}".rstrip() for line in text.splitlines())


def _fence_for(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)


def _escaped_heading(text: str) -> str:
    return re.sub(r"([\\`*_<\[\]#])", r"\\\1", one_line(text))
