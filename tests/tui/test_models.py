"""The models screen: what it shows, what its keys do, and what it says when something is wrong."""

import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from localllm.client import CatalogModel, CatalogModels, InstalledModels, PullJob, QuantizedSizes
from localllm.daemon.feed import Frame, ModelRow
from localllm.errors import LocalLLMError, NotEnoughMemory, StoreError
from localllm.tui.app import LocalApp
from localllm.tui.lines import wrapped
from localllm.tui.models.list import quant_text, speed_text, titles
from localllm.tui.models.pages import ModelPage, TablePage
from localllm.tui.models.pulls import amount_text, left_text
from localllm.tui.models.screen import ModelsScreen
from localllm.tui.models.sheet import Sheet
from localllm.tui.models.state import Model, ModelsState, natural
from localllm.tui.models.types import TypesPage
from tests.tui.fakes import app_with
from tests.tui.models_world import (
    DISK_FULL,
    GB,
    HERE,
    PULLS,
    RUNNING,
    Library,
    ModelsClient,
    fit_for,
    installed,
    loading,
    offer,
    pulling,
)
from tests.tui.pictures import screen_text
from tests.tui.snapshots import held_against

SIZES = [(80, 24), (120, 40), (200, 60)]


class World:
    """The screen over a fake daemon."""

    def __init__(self, app: LocalApp, pilot: Pilot[None], client: Any) -> None:
        self.app, self.pilot, self.client = app, pilot, client
        self.library: Library = client.library

    @property
    def screen(self) -> ModelsScreen:
        found = next(screen for screen in self.app.screen_stack if isinstance(screen, ModelsScreen))
        return found

    @property
    def text(self) -> str:
        return screen_text(self.app)

    def row(self, name: str) -> str:
        """The line of the list that shows a model."""
        (line,) = [line for line in self.text.splitlines() if line[1:].strip(" ▌▶").startswith(name)][:1]
        return line

    async def at(self, name: str) -> None:
        """Moves the cursor to a model."""
        self.screen.list.select(name)
        await self.until(lambda: self.screen.list.model is not None and self.screen.list.model.name == name)
        self.screen.detail.show(self.screen.list.model)
        self.screen.bindings_changed()

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def until(self, is_so: Callable[[], bool]) -> None:
        for _ in range(300):
            if is_so():
                return
            await self.pilot.pause(0.01)
        raise AssertionError(f"it did not come to that:\n{self.text}")


@asynccontextmanager
async def models(
    home: Path,
    library: Library | None = None,
    size: tuple[int, int] = (120, 40),
    *,
    loaded: Any = (RUNNING,),
    **options: Any,
) -> AsyncIterator[World]:
    client = ModelsClient(library, loaded=loaded)
    app = app_with(client, home, first="models", **options)
    async with app.run_test(size=size, notifications=True) as pilot:
        world = World(app, pilot, client)
        await world.until(
            lambda: bool(world.screen.state.fits) or bool(client.library.fails) or not client.library.here
        )
        await world.until(lambda: bool(world.screen.state.loaded) or not loaded)
        await pilot.pause()
        yield world


# ---- what it shows


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_three_sections_the_model_and_the_pulls(tmp_path: Path, size: tuple[int, int]) -> None:
    async with models(tmp_path, Library(pulls=PULLS), size) as world:
        lines = world.text.splitlines()
        assert len(lines) == size[1] and all(cell_len(line) <= size[0] for line in lines)
        assert [title for title in ("Running  1", "Installed  5", "Catalog  10", "Pulls") if title in world.text] == [
            "Running  1", "Installed  5", "Catalog  10", "Pulls",
        ]  # fmt: skip
        (rule,) = [line for line in lines if line.strip().startswith("Pulls ─")]
        assert cell_len(rule) == size[0] - (1 if size[0] < 100 else 2), "it ends on the margin"
        assert "61 MB/s   2 at once" in world.text and "281 GB free" in world.text
        assert ("Memory on this machine" in world.text) == (size[0] >= 100)


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_the_screen_looks_as_it_did(tmp_path: Path, size: tuple[int, int]) -> None:
    async with models(tmp_path, Library(pulls=PULLS), size) as world:
        await world.until(lambda: "61 MB/s   2 at once" in world.text and "412 tok/s" in world.text)
        await world.at("gemma3:12b")
        await world.until(lambda: "▌ gemma3:12b" in world.text)
        await world.until(lambda: "u unload" not in world.text.rstrip().splitlines()[-1])  # keys follow the cursor
        held_against(world.app, f"models-{size[0]}x{size[1]}")


async def test_a_row_says_what_one_needs_to_choose(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        assert world.row("qwen3:4b").split()[:9] == [
            "▌",
            "qwen3:4b",
            "q4_K_M",
            "2.4",
            "●",
            "fits",
            "62",
            "8",
            "streams",
        ]
        assert "● fits" in world.row("gemma3:12b") and " 24 " in world.row("gemma3:12b")
        assert "~" in world.row("llama3.2:3b"), "nobody has measured it"
        assert "○ too large" in world.row("llama3.3:70b") and "pull" not in world.row("llama3.3:70b")
        assert "◐ tight" in world.row("phi4:14b")
        assert "○ cannot run" in world.row("qwen3-vl:2b")
        assert world.row("nomic-embed:137m").split()[-2:] == ["–", "–"], (
            "an embedder has no such speed; it was never used"
        )


async def test_the_model_under_the_cursor_is_shown_in_full(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("gemma3:12b")
        await world.pilot.pause()
        for said in (
            "gemma3:12b ─", "installed", "4.02 B, 36 layers", "131,072", "16 tokens, 2.4 MB", "chat  tools",
            "gemma, use terms apply", "15.6 GB", "━ weights 7.3", "It fits with", "✓ q4_K_M", "q8_0",
        ):  # fmt: skip
            assert said in world.text, said


async def test_a_model_that_loads_says_how_far_it_is(tmp_path: Path) -> None:
    async with models(tmp_path, loaded=(loading("gemma3:12b", 0.61),)) as world:
        await world.until(lambda: "◐ at 61 %" in world.text)
        assert "Running  1" in world.text
        await world.at("gemma3:12b")
        await world.until(lambda: "reading weights 61 %" in world.text)


async def test_a_model_that_failed_says_why(tmp_path: Path) -> None:
    failed = ModelRow(name="gemma3:12b", state="failed", error="its worker was killed by signal 9")
    async with models(tmp_path, loaded=(failed,)) as world:
        await world.at("gemma3:12b")
        await world.until(lambda: "▪ failed" in world.row("gemma3:12b") and "killed by signal 9" in world.text)


async def test_an_empty_store_says_what_to_do(tmp_path: Path) -> None:
    async with models(tmp_path, Library(here=()), loaded=()) as world:
        await world.until(lambda: "No model is here yet: choose one below, and p pulls it." in world.text)


async def test_damaged_models_are_said_aloud(tmp_path: Path) -> None:
    library = Library()
    library.installed = lambda: InstalledModels(models=HERE, damaged=("the manifest of x is damaged",))  # type: ignore[method-assign]
    async with models(tmp_path, library) as world:
        await world.until(lambda: "▪ the manifest of x is damaged" in world.text)


async def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    evil = "evil\x1b[31m[bold]\u202e:1b"
    library = Library(here=[installed(evil, 1.0, license="\x1b]0;x\x07mine", file="a\nb.gguf")])
    async with models(tmp_path, library, loaded=()) as world:
        await world.press("m")
        await world.until(lambda: isinstance(world.app.screen, TablePage))
        await world.until(lambda: "redtext" in world.text)
        assert "\x1b" not in world.text and "\u202e" not in world.text
        await world.press("escape")
        await world.until(lambda: "evil[bold]:1b" in world.text and "mine" in world.text)
        assert "\x1b" not in world.text and "\u202e" not in world.text


@pytest.mark.parametrize("size", SIZES, ids=str)
async def test_without_colours_everything_can_still_be_told(tmp_path: Path, size: tuple[int, int]) -> None:
    async with models(tmp_path, Library(pulls=PULLS), size, theme="mono") as world:
        assert all(sign in world.text for sign in ("● fits", "○ too large", "pulling", "checking"))


# ---- finding


async def test_typing_filters_and_the_hub_is_asked_with_enter(tmp_path: Path) -> None:
    library = Library()
    library.of_hub = (CatalogModel(name="hf.co/org/qwen-fork-GGUF", source="hub", repo="org/qwen-fork-GGUF"),)
    async with models(tmp_path, library) as world:
        await world.press("slash", *"qwen3:")
        await world.until(lambda: "enter looks on the hub, too" in world.text)
        assert "gemma3:12b" not in world.text and "qwen3:8b" in world.text
        assert "Catalog  2 of 10" in world.text
        await world.press("enter")
        await world.until(lambda: "org/qwen-fork-GGUF" in world.text and "Hub  1" in world.text)
        await world.press("slash", "escape")
        await world.until(lambda: "gemma3:12b" in world.text)
        assert "Hub" not in world.text and world.screen.list.has_focus


async def test_a_hub_that_is_not_reached_is_a_sentence_in_its_place(tmp_path: Path) -> None:
    library = Library()
    library.notice = "Hugging Face hub cannot be reached (no answer within 3 s); only the catalog was searched"
    async with models(tmp_path, library) as world:
        await world.press("slash", *"qwen", "enter")
        await world.until(lambda: "Hugging Face hub cannot be reached (no answer within 3 s)" in world.text)
        assert "Hub" in titles(world.screen.state.rows())


async def test_fit_only_leaves_out_what_has_no_room(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.press("f")
        await world.until(lambda: "llama3.3:70b" not in world.text)
        assert "qwen3-vl:2b" not in world.text and "Catalog  6 of 10" in world.text
        await world.press("f")
        await world.until(lambda: "llama3.3:70b" in world.text)


async def test_sorting_goes_through_name_size_use_and_speed(tmp_path: Path) -> None:
    async with models(tmp_path) as world:

        def order() -> list[str]:
            rows = world.screen.state.rows()
            return [row.name for row in rows if isinstance(row, Model) and row.section == "installed"]

        assert order() == ["deepseek-r1:14b", "gemma3:12b", "llama3.2:3b", "nomic-embed:137m", "smollm2:1.7b"]
        await world.press("s")
        assert order()[:2] == ["deepseek-r1:14b", "gemma3:12b"] and order()[-1] == "nomic-embed:137m"
        await world.press("s")
        assert order()[-2:] == ["deepseek-r1:14b", "nomic-embed:137m"]
        await world.press("s")
        assert order()[0] == "smollm2:1.7b"
        await world.press("s")
        assert world.screen.state.sort == "name"


async def test_the_cursor_stays_on_its_model_when_others_come(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("olmo2:7b")
        world.client.loaded.append(ModelRow(name="gemma3:12b", state="ready"))
        world.client.tell()
        await world.until(lambda: "Running  2" in world.text)
        assert world.screen.list.model is not None and world.screen.list.model.name == "olmo2:7b"


# ---- loading, unloading, removing


async def test_enter_loads_and_u_unloads(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("gemma3:12b")
        await world.press("enter")
        await world.until(lambda: "Running  2" in world.text)
        assert ("load", "gemma3:12b") in world.library.calls
        await world.press("u")
        await world.until(lambda: "Running  1" in world.text)
        assert ("unload", "gemma3:12b") in world.library.calls


async def test_what_does_not_load_says_why_and_what_to_do(tmp_path: Path) -> None:
    async with models(tmp_path) as world:

        def refuse(name: str) -> None:
            raise NotEnoughMemory("gemma3:12b needs 9.1 GB; 6.4 GB is free", hint="take a smaller model")

        world.client.on_load = refuse
        await world.at("gemma3:12b")
        await world.press("enter")
        await world.until(lambda: "needs 9.1 GB" in world.text and "Take a smaller model." in world.text)


async def test_removing_is_asked_in_three_lines_above_the_footer(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("gemma3:12b")
        await world.press("d")
        await world.until(lambda: "Remove gemma3:12b?" in world.text)
        lines = world.text.splitlines()
        assert lines[-4].strip() == "▌ Remove gemma3:12b?" and "7.3 GB come free" in lines[-3]
        assert lines[-2].strip() == "▌ enter remove it   esc keep it" and "f1 help" in lines[-1]
        await world.press("escape")
        await world.until(lambda: "Remove gemma3:12b?" not in world.text)
        assert world.library.calls == [] and world.screen.list.has_focus
        await world.press("d", "enter")
        await world.until(lambda: ("remove", "gemma3:12b") in world.library.calls)
        await world.until(lambda: "5 models" in world.text)


async def test_models_of_other_programs_are_left_to_them(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("smollm2:1.7b")
        await world.press("d")
        await world.until(lambda: "smollm2:1.7b belongs to Ollama." in world.text)
        await world.press("enter")
        await world.until(lambda: "belongs to Ollama" not in world.text)
        assert world.library.calls == []


async def test_a_removal_that_fails_is_told(tmp_path: Path) -> None:
    library = Library()
    library.fails["remove"] = StoreError("gemma3:12b is in use by another process", hint="try again")
    async with models(tmp_path, library) as world:
        await world.at("gemma3:12b")
        await world.press("d", "enter")
        await world.until(lambda: "in use by another process" in world.text)


# ---- pulling


async def test_p_pulls_pauses_and_goes_on_and_x_cancels(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("olmo2:7b")
        await world.press("p")
        await world.until(lambda: "Pulls" in world.text and "connecting" in world.text)
        assert world.row("olmo2:7b").rstrip().endswith("pulling") or "pulling" in world.text
        world.library.jobs[0] = pulling("olmo2:7b", 1.0, 4.5, rate=40)
        await world.until(lambda: "1.0 of 4.5 GB" in world.text and "1 min 28 s" in world.text)
        await world.press("p")
        await world.until(lambda: "paused" in world.text)
        await world.press("p")
        await world.until(lambda: ("resume", "id-olmo2:7b") in world.library.calls)
        await world.press("x")
        await world.until(lambda: "Cancel the pull of olmo2:7b?" in world.text and "1.0 GB are deleted." in world.text)
        await world.press("enter")
        await world.until(lambda: "Pulls" not in world.text)
        assert [what for what, _ in world.library.calls] == ["pull", "pause", "resume", "cancel"]


async def test_the_quantization_that_was_chosen_is_pulled(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("qwen3:8b")
        await world.press("right", "right", "left", "p")
        await world.until(lambda: ("pull", "qwen3:8b-q6_k") in world.library.calls)


async def test_another_quantization_of_what_is_here_can_be_pulled(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("gemma3:12b")
        await world.press("p")
        await world.until(lambda: "gemma3:12b is here" in world.text)
        await world.press("right", "p")
        await world.until(lambda: "gemma3:12b-q6_k comes under the licence" in world.text)
        await world.press("enter")
        await world.until(lambda: ("pull", "gemma3:12b-q6_k") in world.library.calls)


async def test_a_licence_is_agreed_to_first(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("llama3.1:8b")
        await world.press("p")
        await world.until(lambda: "llama3.1:8b comes under the licence llama3.1." in world.text)
        assert "huggingface.co/meta-llama/Llama-3.1-8B-Instruct" in world.text and world.library.calls == []
        await world.press("enter")
        await world.until(lambda: world.library.calls == [("pull", "llama3.1:8b")])


async def test_what_is_too_large_or_cannot_run_is_said_before_it_is_pulled(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("mistral-small:24b")
        await world.press("p")
        await world.until(lambda: "is too large for this machine" in world.text and "can be had here" in world.text)
        await world.press("escape")
        await world.at("qwen3-vl:2b")
        await world.press("p")
        await world.until(lambda: "qwen3-vl:2b would not run here." in world.text)
        await world.press("enter")
        assert world.library.calls == []


async def test_a_full_disk_is_told_in_the_pulls_line_with_a_key_that_helps(tmp_path: Path) -> None:
    job = pulling("olmo2:7b", 0.5, 4.5, "failed", error=DISK_FULL)
    async with models(tmp_path, Library(pulls=[job])) as world:
        await world.until(lambda: "▪ failed: 4.90 GB are needed in /home/me" in world.text)
        assert "p again   x forget" in world.text
        await world.at("olmo2:7b")
        await world.press("p")
        await world.until(lambda: "Free some space, or move the store with LOCALLLM_HOME." in world.text)
        await world.press("enter")
        await world.until(lambda: world.library.calls == [("resume", "id-olmo2:7b")])


async def test_tab_goes_to_the_pulls_where_keys_mean_the_pull(tmp_path: Path) -> None:
    async with models(tmp_path, Library(pulls=PULLS)) as world:
        await world.until(lambda: "2 at once" in world.text)
        await world.press("tab", "down", "down", "p")
        await world.until(lambda: world.library.calls == [("resume", "id-mistral-small:24b")])


async def test_a_pull_that_is_done_becomes_a_model(tmp_path: Path) -> None:
    async with models(tmp_path, Library(pulls=[pulling("olmo2:7b", 4.4, 4.5, rate=40)])) as world:
        await world.until(lambda: "4.4 of 4.5 GB" in world.text)
        world.library.here.append(installed("olmo2:7b", 4.5))
        world.library.jobs[0] = pulling("olmo2:7b", 4.5, 4.5, "done")
        await world.until(lambda: "7 models" in world.text and "Installed  6" in world.text)


# ---- looking inside, and small windows


@pytest.mark.parametrize(
    ("key", "title", "said"),
    [
        ("t", "Template of gemma3:12b", "{{ m.content }}"),
        ("i", "Tensors of gemma3:12b", "2,560 × 4,096"),
        ("m", "Metadata of gemma3:12b", "… 151,928 more"),
    ],
)
async def test_a_model_can_be_looked_into(tmp_path: Path, key: str, title: str, said: str) -> None:
    async with models(tmp_path) as world:
        await world.at("gemma3:12b")
        await world.press(key)
        await world.until(lambda: title in world.text and said in world.text)
        await world.press("escape")
        await world.until(lambda: "Installed  5" in world.text)


async def test_in_a_compact_window_enter_opens_the_model_as_a_page(tmp_path: Path) -> None:
    async with models(tmp_path, size=(80, 24)) as world:
        await world.at("gemma3:12b")
        assert "enter open" in world.text.splitlines()[-1] and "enter load" not in world.text
        await world.press("enter")
        await world.until(lambda: isinstance(world.app.screen, ModelPage))
        assert "It fits with" in world.text and "esc back  enter load" in world.text
        world.client.loaded.append(ModelRow(name="gemma3:12b", state="loading"))
        world.client.tell()
        await world.until(lambda: "─ loading" in world.text)
        world.client.loaded.pop()
        world.client.tell()
        await world.until(lambda: "─ installed" in world.text)
        await world.press("d")
        await world.until(lambda: "Remove gemma3:12b?" in world.text)
        await world.press("escape", "enter")
        await world.until(lambda: isinstance(world.app.screen, ModelPage))
        await world.press("enter")
        await world.until(lambda: ("load", "gemma3:12b") in world.library.calls)


async def test_a_click_chooses_and_a_second_one_loads(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        at = next(y for y, line in enumerate(world.text.splitlines()) if "gemma3:12b" in line)
        await world.pilot.click(offset=(6, at))
        await world.until(lambda: "gemma3:12b ──" in world.text)
        await world.pilot.click(offset=(6, at))
        await world.until(lambda: ("load", "gemma3:12b") in world.library.calls)


async def test_without_a_daemon_what_is_known_stays(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        world.client.go()
        await world.until(lambda: world.app.is_down)
        await world.pilot.pause()
        assert "gemma3:12b" in world.text and "no daemon" in world.text


async def test_a_daemon_whose_models_are_given_has_no_catalog_and_that_is_no_error(tmp_path: Path) -> None:
    library = Library()
    library.fails["catalog"] = library.fails["pulls"] = LocalLLMError("the models of this daemon cannot be changed")
    async with models(tmp_path, library) as world:
        await world.until(lambda: "Installed  5" in world.text)
        assert "Catalog" not in world.text and "cannot be changed" not in world.text


async def test_the_sheet_answers_to_the_mouse(tmp_path: Path) -> None:
    async with models(tmp_path) as world:
        await world.at("gemma3:12b")
        await world.press("d")
        await world.until(lambda: world.screen.query_one(Sheet).has_focus)
        await world.pilot.click(Sheet, offset=(6, 2))
        await world.until(lambda: ("remove", "gemma3:12b") in world.library.calls)


# ---- pure parts


def test_names_are_sorted_as_people_count() -> None:
    names = ["qwen3:14b", "qwen3:4b", "qwen2.5:7b", "Qwen3:8b", "x²:1b"]
    assert sorted(names, key=natural) == ["qwen2.5:7b", "qwen3:4b", "Qwen3:8b", "qwen3:14b", "x²:1b"]


@pytest.mark.parametrize(
    ("tag", "shown"), [("Q4_K_M", "q4_K_M"), ("F16", "f16"), ("BF16", "bf16"), ("IQ4_XS", "iq4_XS"), ("", "–")]
)
def test_quantizations_whisper_their_letters(tag: str, shown: str) -> None:
    assert quant_text(tag) == shown


def test_speeds_are_plain_where_measured_and_have_a_tilde_where_not() -> None:
    assert [speed_text(62.4, False), speed_text(39.0, True), speed_text(3.46, True), speed_text(0, True)] == [
        "62", "~39", "~3.5", "–",
    ]  # fmt: skip


def test_nothing_is_predicted_from_nothing_for_experts_or_from_afar() -> None:
    nobody = ModelsState(here=InstalledModels(models=(installed("a", 2.0),)))
    assert nobody.guess("b", GB) == 0
    one = ModelsState(here=InstalledModels(models=(installed("a", 2.0, tokens_per_s=60.0),)))
    assert one.guess("b", GB) == pytest.approx(120) and one.guess("b", 4 * GB) == pytest.approx(30)
    assert one.guess("mix:8x7b", GB) == one.guess("b:30b-a3b", GB) == one.guess("b", GB, "qwen3moe") == 0
    assert one.guess("b", 40 * GB) == 0 == one.guess("b", GB, "bert", ("embedding",))


def test_a_models_pull_is_found_by_its_name() -> None:
    state = ModelsState(pulls=(pulling("a:1b", 1, 2), pulling("b:1b", 2, 2, "done")))
    found = state.pull_of("A:1b")
    assert found is not None and found.model == "a:1b" and state.pull_of("b:1b") is None


@pytest.mark.parametrize(
    ("job", "amount", "left"),
    [
        (pulling("a", 3.0, 4.9, rate=38), "3.0 of 4.9 GB", "50 s left"),
        (pulling("a", 1.1, 5.0, rate=23), "1.1 of 5.0 GB", "2 min 50 s"),
        (pulling("a", 0.041, 0.098, rate=38), "41 of 98 MB", "2 s left"),
        (pulling("a", 1.2, 1.2, "checking"), "1.2 GB", "checking"),
        (pulling("a", 0, 0), "–", "connecting"),
        (pulling("a", 0.5, 0, rate=10), "500 MB", "–"),
        (pulling("a", 0, 2.0, "queued"), "0.0 of 2.0 GB", "waiting"),
    ],
)
def test_a_pull_says_how_much_and_how_long(job: PullJob, amount: str, left: str) -> None:
    assert (amount_text(job), left_text(job)) == (amount, left)


async def test_q_lists_types_with_their_sizes_and_enter_makes_one(tmp_path: Path) -> None:
    async with models(tmp_path / "home") as world:
        await world.at("nomic-embed:137m")
        await world.press("q")
        await world.until(lambda: isinstance(world.app.screen, TypesPage))
        await world.pilot.pause()
        text = world.text
        assert "Quantize nomic-embed:137m" in text and "of 8.0 GB" in text
        assert [word for word in text.split() if word.startswith("q") and word[1].isdigit()] == [
            "q8_0", "q5_k_m", "q4_k_m", "q2_k",
        ]  # fmt: skip
        await world.press("up", "enter")
        await world.until(lambda: ("quantize", "nomic-embed:137m Q5_K_M") in world.library.calls)
        await world.until(lambda: "137m-q5_k_m" in world.text)
        assert isinstance(world.app.screen, ModelsScreen)


async def test_what_is_not_to_be_quantized_says_why(tmp_path: Path) -> None:
    library = Library()
    library.sizes = QuantizedSizes(model="qwen3:4b", refusal="its weights are quantized already")
    async with models(tmp_path / "home", library) as world:
        await world.at("qwen3:4b")
        await world.press("q")
        await world.until(lambda: isinstance(world.app.screen, TypesPage))
        await world.pilot.pause()
        assert "Its weights are quantized already." in world.text
        await world.press("escape")
        await world.until(lambda: isinstance(world.app.screen, ModelsScreen))
        assert not world.library.calls
        await world.at("phi4:14b")
        await world.press("q")
        assert isinstance(world.app.screen, ModelsScreen)


def test_text_is_wrapped_between_words() -> None:
    assert wrapped("one two  three", 7) == ["one two", "three"] and wrapped("abcdefgh", 5) == ["abcd…"]
    assert wrapped("", 5) == []


def test_a_thousand_models_are_listed_in_a_moment() -> None:
    """Two sections of them, filtered and sorted, within what a key may take."""
    offers = tuple(offer(f"model{number}:8b", 4.9) for number in range(1000))
    state = ModelsState(here=InstalledModels(models=HERE), catalog=CatalogModels(models=offers), is_told=True)
    state.fits = {each.name: fit_for(each.name, each.size_bytes) for each in offers}
    started = time.thread_time()
    assert len(state.rows()) > 1000
    assert time.thread_time() - started < 0.5


def test_frames_say_when_other_models_are_loaded() -> None:
    state = ModelsState()
    assert state.note_frame(Frame(at=0, time=0, models=[RUNNING]))
    assert not state.note_frame(Frame(at=1, time=1, models=[RUNNING]))
    assert state.note_frame(Frame(at=2, time=2)) and state.loaded == {}


def test_nothing_of_the_tests_is_left_running() -> None:
    assert not [thread for thread in threading.enumerate() if thread.name == "live feed" and not thread.daemon]


async def test_the_footer_names_what_can_be_done_with_the_model_under_the_cursor(tmp_path: Path) -> None:
    async with models(tmp_path) as world:

        async def offered(name: str) -> str:
            while world.screen.list.model is None or world.screen.list.model.name != name:
                await world.press("down")
            return world.text.splitlines()[-1]

        await world.press("home")
        running = await offered("qwen3:4b")
        assert "u unload" in running and "d remove" in running and "enter load" not in running
        assert "p pull" not in running
        here = await offered("gemma3:12b")
        assert "enter load" in here and "d remove" in here and "u unload" not in here
        other = await offered("granite3.3:8b")
        assert "p pull" in other and "d remove" not in other and "enter load" not in other


async def test_the_page_of_a_model_offers_what_can_be_done_with_it(tmp_path: Path) -> None:
    async with models(tmp_path, size=(80, 24)) as world:
        await world.at("gemma3:12b")
        await world.press("enter")
        await world.until(lambda: isinstance(world.app.screen, ModelPage))
        last = world.text.splitlines()[-1]
        assert "enter load" in last and "d remove" in last and "u unload" not in last and "p pull" not in last


async def test_nothing_is_told_as_no_kilobytes(tmp_path: Path) -> None:
    async with models(tmp_path, Library((installed("borrowed:1b", 0.0),)), loaded=()) as world:
        await world.at("borrowed:1b")
        await world.press("d")
        await world.until(lambda: "Remove borrowed:1b?" in world.text)
        await world.press("y")
        await world.until(lambda: "borrowed:1b is removed; its files stay" in world.text)
        await world.until(lambda: "0 models   disk" in world.text)
