"""Hostile text on a real terminal, from everywhere a model or a file can put some: only allowed bytes arrive.

Names, answers, thinking, errors, tables of the daemon, records of models, the log; typed by verbs and by the chat.
"""

import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localllm.settings import load_settings
from localllm.store.entry import Entry, ModelFile
from localllm.store.library import Library
from localllm.store.names import parse_ref
from tests.cli.fake_daemon import FakeDaemon, fake_daemon
from tests.cli.terminal import Terminal
from tests.server.parrot import parrots
from tests.server.world import daemon
from tests.test_safe_text import FORBIDDEN

ROOT = Path(__file__).parents[2]
DRIVER = """
import sys
import localllm.cli.connect as connect
from localllm.client import Client
if url := sys.argv.pop():
    connect.started_client = connect.running_client = lambda settings: Client(url)
from localllm.cli.app import main
main()
"""
OURS = re.compile(rb"\x1b\[(?:0|1|2|22|90)?m|\x1b\[\d+D|\x1b\[K|\x1b\[\?(?:2004|2026)[hl]|\r\r?\n|\r")
"""What we write ourselves: grey and plain, a word taken back at the edge, ends of lines, pasting, drawing."""
HOSTILE = {
    "title": "\x1b]0;owned\x07",
    "title by ST": "\x1b]2;owned\x1b\\",
    "icon name": "\x1b]1;owned\x07",
    "clipboard written": "\x1b]52;c;aGk=\x1b\\",
    "clipboard written, BEL": "\x1b]52;p;aGk=\x07",
    "clipboard asked for": "\x1b]52;c;?\x07",
    "link": "\x1b]8;;http://evil.example\x1b\\safe\x1b]8;;\x1b\\",
    "link of a file": "\x1b]8;;file:///etc/passwd\x07x\x1b]8;;\x07",
    "palette": "\x1b]4;1;#000000\x07",
    "background": "\x1b]11;?\x07",
    "working folder": "\x1b]7;file://h/x\x07",
    "notification": "\x1b]9;owned\x07",
    "notification of urxvt": "\x1b]777;notify;a;b\x07",
    "iTerm file": "\x1b]1337;File=inline=1:aGk=\x07",
    "iTerm clipboard": "\x1b]50;CopyToClipboard=\x07",
    "shell integration": "\x1b]133;A\x07",
    "never ended OSC": "\x1b]0;owned",
    "never ended DCS": "\x1bPowned",
    "cleared": "\x1b[2J\x1b[H",
    "scrollback cleared": "\x1b[3J",
    "cursor up": "\x1b[10A",
    "cursor placed": "\x1b[1;1H",
    "colours": "\x1b[31;45m",
    "hidden": "\x1b[8m",
    "colours of 24 bits": "\x1b[38;2;1;2;3m",
    "other screen": "\x1b[?1049h",
    "mouse": "\x1b[?1000h",
    "cursor hidden": "\x1b[?25l",
    "pasting": "\x1b[200~rm -rf\x1b[201~",
    "status asked for": "\x1b[6n",
    "attributes asked for": "\x1b[c",
    "title asked for": "\x1b[21t",
    "window moved": "\x1b[3;0;0t",
    "margins": "\x1b[1;2r",
    "keys mapped": "\x1b[0;59;\x22x\x22p",
    "printed": "\x1b[5i",
    "reset": "\x1bc",
    "character set": "\x1b(0",
    "line drawing": "\x1b#8",
    "shift out": "\x0e\x0f",
    "keypad": "\x1b=",
    "saved cursor": "\x1b7\x1b8",
    "DCS": "\x1bP$q m\x1b\\",
    "sixel": "\x1bPq#0;2;0;0;0\x1b\\",
    "keys defined": "\x1bP0;1|17/6c73\x1b\\",
    "tmux passed through": "\x1bPtmux;\x1b\x1b]0;x\x07\x1b\\",
    "APC": "\x1b_Gf=24;AAAA\x1b\\",
    "PM": "\x1b^owned\x1b\\",
    "SOS": "\x1bXowned\x1b\\",
    "an escape in an escape": "\x1b\x1b[2J[2J",
    "an escape split by a control": "\x1b\x00[2J",
    "an escape split by a letter": "\x1b[\x1b[2J2J",
    "C1 CSI": "\x9b2J",
    "C1 OSC": "\x9d0;owned\x9c",
    "C1 DCS": "\x90q\x9c",
    "C1 alone": "\x80\x85\x8d\x9f",
    "overwritten": "good\b\b\b\bevil",
    "returned": "good\revil",
    "bell": "\x07\x07",
    "deleted": "\x7f\x05",
    "form feed": "\x0b\x0c",
    "right to left": "\u202egnp.exe\u202c",
    "isolated": "\u2066a\u2069",
    "marks of direction": "\u200f\u200e\u061c",
    "half a pair": "\ud800x",
    "markup": "[bold red]x[/bold red][/nothing]",
    "markup of a link": "[link=http://evil.example]x[/link]",
    "empty brackets": "[][/][TODO][0]",
}
SENT = {case: payload.replace("\ud800", "") for case, payload in HOSTILE.items()}
"""As they can be sent: JSON and arguments hold no half pairs."""
ALL = "".join(f"<{payload}>" for payload in SENT.values())
ARGUMENT = ALL.replace("\x00", "")


def on_terminal(home: Path, *arguments: str, url: str = "") -> bytes:
    """Everything a command writes to its terminal, byte by byte."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LOCALLLM_HOME": str(home), "TERM": "xterm-256color"}
    command = [sys.executable, "-c", DRIVER, *arguments, url]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # the other side is closed: Linux says so with an error
        pass
    finally:
        os.close(ours)
        process.wait(20)
    return shown


def check_harmless(shown: bytes) -> str:
    """The text that is left when what we wrote ourselves is taken out."""
    for payload in SENT.values():
        if FORBIDDEN.search(payload):
            assert payload.encode() not in shown, repr(payload)
    text = OURS.sub(lambda found: b"\n" if b"\n" in found[0] else b"", shown).decode()
    left = FORBIDDEN.search(text)
    assert left is None, repr(text[max(0, left.start() - 40) : left.start() + 40])
    return text


@pytest.fixture(scope="module")
def server() -> Iterator[FakeDaemon]:
    with fake_daemon() as running:
        yield running


def delta(field: str, text: str) -> list[dict[str, Any]]:
    """An answer that comes as a whole, then in halves, then character by character."""
    half = len(text) // 2
    return [{field: part} for part in (text, "\n", text[:half], text[half:], "\n", *text)]


def test_there_are_forty_payloads_and_more() -> None:
    assert len(set(HOSTILE.values())) >= 40


VERBS = (
    ("show",), ("rm",), ("where",), ("cp", "x"), ("verify",), ("pull",), ("update",), ("tokenize",),
    ("config", "get"), ("keys", "revoke"), ("convert",), ("create",), ("run",),
)  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_hostile_name_reaches_the_terminal_as_text_only(tmp_path: Path, verb: tuple[str, ...]) -> None:
    text = check_harmless(on_terminal(tmp_path, "--offline", *verb, f"model{ARGUMENT}", url="http://x"))
    assert text.strip(), "the verb says something about it"
    assert "Traceback" not in text and "fault of localllm" not in text


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_run_prints_the_text_of_an_answer_and_nothing_else(tmp_path: Path, server: FakeDaemon, field: str) -> None:
    server.answers.append(delta(field, ALL))
    shown = on_terminal(tmp_path, "run", "tiny", "Hi", url=server.url)
    text = check_harmless(shown)
    assert "[bold red]x[/bold red][/nothing]" in text.replace("\n", "") and "[][/][TODO][0]" in text.replace("\n", "")


class Recorded(Terminal):
    """Keeps the bytes as they came."""

    def __init__(self, url: str, *arguments: str, **environment: str) -> None:
        self.shown = b""
        super().__init__(url, *arguments, **environment)

    def _read(self) -> str:
        raw = os.read(self._ours, 65536)
        self.shown += raw
        return raw.decode("utf-8", "replace")


def test_a_chat_shows_each_answer_thought_and_error_as_text(tmp_path: Path, server: FakeDaemon) -> None:
    for payload in SENT.values():
        server.answers.append([{"reasoning_content": payload}, {"content": payload}, {"content": "done."}])
    broken = {"message": ALL, "code": "internal_error", "hint": ALL}
    server.answers.append([{"content": "\x1b[2"}, {"error": broken}])
    with Recorded(server.url, "run", "tiny", LOCALLLM_HOME=str(tmp_path)) as terminal:
        terminal.wait_for(">>> ")
        for _ in SENT:
            terminal.line("x")
            terminal.wait_for("done.")
            terminal.wait_for(">>> ")
        terminal.line("x")
        terminal.wait_for("rror: ")
        terminal.wait_for(">>> ")
        terminal.line("/bye")
        assert terminal.finish() == 0
        check_harmless(terminal.shown)


@pytest.mark.parametrize("arguments", [("ps",), ("ps", "--requests"), ("ps", "--json")], ids=" ".join)
def test_tables_of_the_daemon_hold_names_as_text(
    tmp_path: Path, server: FakeDaemon, arguments: tuple[str, ...]
) -> None:
    names = [f"m{payload}" for payload in SENT.values()]
    base = {"digest": "0" * 64, "size_bytes": 1, "context_length": 1, "state": "ready", "expires_at": None}
    server.loaded = [{**base, "name": name, "processor": name, "backend": name, "device": name} for name in names]
    numbers = {"age_s": 1.0, "prompt_tokens": 1, "completion_tokens": 1}
    server.under_way = [
        {"id": name, "model": name, "state": name, "verdict": name, "endpoint": name, **numbers} for name in names
    ]
    text = check_harmless(on_terminal(tmp_path, *arguments, url=server.url))
    assert text.count("\n") > len(names)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose one model was described by an enemy, and a log that he wrote to."""
    home = tmp_path_factory.mktemp("home")
    settings = load_settings({"LOCALLLM_HOME": str(home)})
    text, path = ALL, home / "store" / "files" / "x.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    files = (ModelFile(path=str(path), size_bytes=4, is_ours=True),)
    told = dict.fromkeys(("architecture", "parameters", "quantization", "license", "system", "template"), text)
    entry = Entry(
        name=f"x{text}", path=str(path), source="url", files=files, params={text: text, "stop": [text]}, **told
    )
    Library(settings).manifests.put(parse_ref("x"), entry)
    settings.log_file.parent.mkdir(parents=True, exist_ok=True)
    lines = [payload.encode("utf-8", "replace") for payload in HOSTILE.values()]
    settings.log_file.write_bytes(b"\n".join([*lines, b"\x9b2J \xff\xfe \x1b]0;x", b"the end"]) + b"\n")
    return home


SHOWN = (
    ("list",), ("list", "--json"), ("show", "x"), ("show", "x", "--license"), ("show", "x", "--system"),
    ("show", "x", "--template"), ("show", "x", "--parameters"), ("show", "x", "--modelfile"), ("show", "x", "--json"),
    ("show", "x", "-v"), ("where", "x"), ("verify", "x"), ("tokenize", "x", "a"), ("daemon", "logs"),
    ("daemon", "logs", "-n", "5"),
)  # fmt: skip


@pytest.mark.parametrize("arguments", SHOWN, ids=" ".join)
def test_records_of_models_and_the_log_are_shown_as_text(home: Path, arguments: tuple[str, ...]) -> None:
    text = check_harmless(on_terminal(home, *arguments))
    assert text.strip() and "Traceback" not in text and "fault of localllm" not in text


def test_what_a_model_says_comes_through_the_whole_daemon_as_text(tmp_path: Path) -> None:
    said = ARGUMENT
    with daemon(tmp_path, sources=parrots()) as world:
        shown = on_terminal(tmp_path / "home", "run", "parrot:1b", f"say:{said}\n", url=world.url)
        text = check_harmless(shown)
    assert "[TODO]" in text and "evil" in text


def test_a_flood_of_beginnings_takes_no_time(tmp_path: Path) -> None:
    from localllm.safe_text import StreamSanitizer, sanitize

    for start in ("\x90", "\x9d", "\x9b", "\x1b]", "\x1b[", "\x1bP", "\x1b", "\x1b[1;", "\x1b "):
        for end in ("\n", "", "\x07"):
            text, started = start * 100_000 + end, time.process_time()
            assert not FORBIDDEN.search(sanitize(text) + StreamSanitizer().feed(text))
            assert time.process_time() - started < 2.0, (start, end)
