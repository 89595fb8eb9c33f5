"""Asking a tokenizer: texts, words, vocabulary and templates in the plain form that leaves the process."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm import told
from localllm.errors import InvalidRequest
from localllm.tokens.explainer import ALREADY_WHOLE, LOOKED_UP, Explainer, explanation
from localllm.tokens.lattice import explain_lattices
from localllm.tokens.template_view import CHANGED, HIDDEN, template_view
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.material import PUBLISHED, from_folder
from tests.tokens.published import TEMPLATES, source_of
from tests.tokens.trained import unigram, unigram_with_bytes, wordpiece
from tests.tokens.worlds import tiny, tiny_metadata, tiny_spm

ALL = {"bpe": tiny, "sentencepiece": tiny_spm, "unigram": unigram, "bytes": unigram_with_bytes, "wordpiece": wordpiece}
EXPLAINERS = {name: Explainer(make(), name) for name, make in ALL.items()}
TEXTS = st.text(min_size=1) | st.text("hello wor né🐢<|im_start>", min_size=1)


def asked(*names: str, text: str, most: int = 4096) -> told.Explanation:
    return explanation([EXPLAINERS[name] for name in names], text, add_special=False, parse_special=True, most=most)


@given(text=st.text())
def test_an_explanation_lists_what_each_tokenizer_gives(text: str) -> None:
    found = asked(*ALL, text=text)
    for split in found.tokenizers:
        assert [token.id for token in split.tokens] == ALL[split.model]().encode(text, add_special=False)
        assert split.count == len(split.tokens) and split.problem == ""
    assert msgspec.json.decode(msgspec.json.encode(found), type=told.Explanation) == found


def test_cuts_that_only_some_make_are_marked() -> None:
    found = asked("bpe", "sentencepiece", text="hello word")
    bpe, spm = (split.tokens for split in found.tokenizers)
    assert [(token.start, token.end, token.agrees) for token in bpe] == [
        (0, 5, True), (5, 8, False), (8, 9, True), (9, 10, True),
    ]  # fmt: skip
    assert {token.end for token in spm if token.agrees} == {5, 9, 10}
    assert found.tokenizers[0].num_agreed == sum(token.agrees for token in bpe)


def test_counts_are_of_the_whole_text_where_only_the_first_tokens_are_listed() -> None:
    found = asked("bpe", text="hello " * 50, most=7)
    (split,) = found.tokenizers
    assert len(split.tokens) == found.num_listed == 7
    assert split.count == tiny().count("hello " * 50) and found.num_bytes == 300


def test_a_tokenizer_that_cannot_read_a_text_does_not_keep_the_others_from_it() -> None:
    broken = Explainer(Tokenizer.from_gguf(tiny_metadata()), "broken")
    broken.tokenizer.cuts = lambda *_, **__: (_ for _ in ()).throw(InvalidRequest("it gives up"))  # type: ignore
    found = explanation([broken, EXPLAINERS["bpe"]], "hello", add_special=False, parse_special=True, most=9)
    assert found.tokenizers[0].problem == "it gives up" and found.tokenizers[1].count == 1


@pytest.mark.parametrize("name", ALL)
@given(text=TEXTS, data=st.data())
def test_the_trace_of_a_place_holds_the_token_there(name: str, text: str, data: st.DataObject) -> None:
    explainer = EXPLAINERS[name]
    tokens = explainer.tokenizer.explain(text, add_special=False)
    at = data.draw(st.integers(0, len(text) - 1))
    if not tokens:
        with pytest.raises(InvalidRequest):
            explainer.trace(text, at)
        return
    trace = explainer.trace(text, at)
    ids = [token.id for token in tokens]
    assert any(ids[n : n + len(trace.ids)] == trace.ids for n in range(len(ids)))
    if any(token.start <= at < token.end for token in asked(name, text=text).tokenizers[0].tokens):
        assert trace.start <= at < trace.end
    if trace.merges:
        assert len(trace.merges.symbols) - len(trace.merges.steps) == len(trace.ids)
    assert msgspec.json.decode(msgspec.json.encode(trace), type=told.Trace) == trace


def test_merges_are_shown_in_bytes() -> None:
    trace = EXPLAINERS["bpe"].trace("say hello", 6)
    assert trace.merges is not None and trace.word == " hello"
    assert [bytes.fromhex(symbol) for symbol in trace.merges.symbols] == [b" ", b"h", b"e", b"l", b"l", b"o"]
    assert [(bytes.fromhex(step.left), bytes.fromhex(step.right), step.rank) for step in trace.merges.steps] == [
        (b"h", b"e", 0), (b"l", b"l", 1), (b"he", b"ll", 2), (b"hell", b"o", 3),
    ]  # fmt: skip


@given(text=st.text("hello wrd", min_size=1))
def test_of_a_text_in_one_piece_only_the_words_own_merges_are_shown(text: str) -> None:
    """They end in the word's tokens, as if nothing stood around it."""
    trace = EXPLAINERS["sentencepiece"].trace(text, len(text) - 1)
    assert trace.merges is not None
    symbols = trace.merges.symbols
    for step in trace.merges.steps:
        assert symbols[step.position : step.position + 2] == [step.left, step.right]
        symbols = [*symbols[: step.position], step.left + step.right, *symbols[step.position + 2 :]]
    assert [bytes.fromhex(symbol) for symbol in symbols] == [tiny_spm().token_bytes(one) for one in trace.ids]


def test_a_lattice_of_one_word_has_its_own_sum() -> None:
    explainer, text = EXPLAINERS["bytes"], "the the the"
    trace = explainer.trace(text, 5)
    assert trace.lattice is not None and trace.word == " the"
    taken = [edge for edge in trace.lattice.edges if edge.is_taken]
    assert sum(edge.score for edge in taken) == pytest.approx(trace.lattice.score)
    whole = explain_lattices(explainer.tokenizer, text)[0]
    assert trace.lattice.score == pytest.approx(-3.5) and whole.score == pytest.approx(-3.0 - 3.5 - 3.5)


def test_words_that_need_no_steps_say_why() -> None:
    lookup = Explainer(Tokenizer.from_gguf(tiny_metadata(pre="llama-bpe")), "llama")
    assert lookup.trace("hello", 0).note == LOOKED_UP
    assert lookup.trace("<|im_start|>", 3).note == ALREADY_WHOLE
    assert "unknown as a whole" in EXPLAINERS["wordpiece"].trace("the🐢", 0).note


@pytest.mark.parametrize("at", [-1, 5, 1 << 40])
def test_a_place_outside_of_the_text_is_refused(at: int) -> None:
    with pytest.raises(InvalidRequest, match="characters"):
        EXPLAINERS["bpe"].trace("hello", at)


def test_facts_say_what_a_token_was_merged_from_and_what_holds_it() -> None:
    explainer = EXPLAINERS["bpe"]
    (hell,) = explainer.page(text="hell", token_id=None, raw=None, offset=0, limit=1).entries
    facts = explainer.facts(hell.id)
    assert [bytes.fromhex(part) for part in facts.merged_from] == [b"he", b"ll"] and facts.rank == 2
    assert [bytes.fromhex(entry.bytes) for entry in facts.also_in] == [b"hello"] and facts.num_also_in == 1
    assert facts.type == "normal"


def test_the_vocabulary_is_searched_by_text_by_id_and_by_bytes() -> None:
    explainer = EXPLAINERS["bpe"]

    def found(**asked: object) -> list[bytes]:
        page = explainer.page(**{"text": None, "token_id": None, "raw": None, "offset": 0, "limit": 50} | asked)  # type: ignore
        return [bytes.fromhex(entry.bytes) for entry in page.entries]

    assert found(text="HE") == [b"he", b"hell", b"hello"]
    assert found(text="he", offset=1, limit=1) == [b"hell"]
    assert found(raw=b"\xc3\xa9") == ["é".encode()]
    assert found(token_id=0) == [explainer.tokenizer.token_bytes(0)]
    assert len(found()) == 50
    whole = explainer.page(text="hello", token_id=None, raw=None, offset=0, limit=1)
    cut = explainer.page(text="hellow", token_id=None, raw=None, offset=0, limit=1)
    assert (len(whole.as_tokens), len(cut.as_tokens), cut.total) == (1, 2, 0)
    with pytest.raises(InvalidRequest, match="ids from 0"):
        found(token_id=1 << 30)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tokenizers_can_be_asked(name: str) -> None:
    explainer = Explainer(from_folder(name), name)
    text = "The tokenizer splits unbelievably naïve text"
    trace = explainer.trace(text, text.index("belie"))
    assert trace.word.strip() == "unbelievably"
    assert text[trace.start : trace.end].strip() == "unbelievably"
    assert trace.merges is not None and len(trace.merges.symbols) - len(trace.merges.steps) == len(trace.ids)
    facts = explainer.facts(trace.ids[0])
    assert facts.num_also_in >= len(facts.also_in) and facts.bytes


# ---- templates

CHAT = [
    {"role": "system", "content": "Be  brief. "},
    {"role": "user", "content": " Why?\n"},
    {"role": "assistant", "content": "Because."},
    {"role": "user", "content": "And <b>?"},
]
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content|trim }}<|im_end|>\n{% endfor %}"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def view(source: str, messages: object = None, tokenizer: Tokenizer | None = None) -> told.TemplateView:
    def render(chat: object, opening: bool) -> str:
        return Tokenizer.render_template(source, chat, add_generation_prompt=opening, isolated=False)  # type: ignore

    return template_view(tokenizer or tiny(), "toy", messages or CHAT, render, add_generation_prompt=True)  # type: ignore


def test_each_part_of_a_template_says_which_message_it_came_from() -> None:
    found = view(CHATML + OPENING)
    assert found.is_exact and found.note == ""
    assert [(part.kind, part.message, part.text) for part in found.parts[:6]] == [
        ("special", 0, "<|im_start|>"),
        ("role", 0, "system"),
        ("frame", 0, "\n"),
        ("content", 0, "Be  brief."),
        ("special", 0, "<|im_end|>"),
        ("frame", 0, "\n"),
    ]
    assert [(part.kind, part.message, part.text) for part in found.parts[-2:]] == [
        ("special", -1, "<|im_start|>"),
        ("opening", -1, "assistant\n"),
    ]
    assert (found.num_special, found.parts[0].id) == (9, tiny().encode("<|im_start|>", add_special=False)[0])


def test_a_template_that_changes_words_is_told_apart() -> None:
    said = [{"role": "user", "content": "abcd"}]
    found = view("{% for m in messages %}{{ m.role }}: {{ m.content|upper }}\n{% endfor %}", said)
    assert found.is_exact  # letters changed, and are still where they were
    cut = view("{% for m in messages %}{{ m.role }}: {{ m.content[:3] }}\n{% endfor %}", said)
    assert not cut.is_exact and CHANGED in cut.note and HIDDEN in cut.note
    found = view("{% for m in messages %}{{ m.content }}{{ m.content|length }}{% endfor %}")
    assert not found.is_exact and CHANGED in found.note
    assert next(part.text for part in found.parts if part.kind == "content") == "Be  brief."


@given(words=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_the_parts_are_the_whole_text_whatever_is_said(words: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[n % 2], "content": said} for n, said in enumerate(words)]
    for source in (CHATML + OPENING, "{% for m in messages %}{{ m.content|reverse }}{% endfor %}"):
        rendered = Tokenizer.render_template(source, messages, add_generation_prompt=True, isolated=False)
        assert "".join(part.text for part in view(source, messages).parts) == rendered


@pytest.mark.parametrize("name", ["Qwen-Qwen3-0.6B", "meta-llama-Llama-3.1-8B-Instruct", "openai-gpt-oss-120b"])
def test_published_templates_are_taken_apart_exactly(name: str) -> None:
    assert name in TEMPLATES
    found = view(source_of(name), tokenizer=tiny())
    assert found.is_exact and HIDDEN not in found.note
    said = {message: part.text for part in found.parts if part.kind == "content" for message in [part.message]}
    assert set(said) == {0, 1, 2, 3}
