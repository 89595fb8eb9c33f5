"""Text to ids and back, on a tiny tokenizer whose every rule is known."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import BadModelFile, InvalidRequest
from localllm.tokens import tokenizer as tokenizer_module
from localllm.tokens.alphabet import byte_alphabet
from localllm.tokens.pretokenizers import _warned_of, known_names, pretokenizer_or_default, splitter
from localllm.tokens.specials import FillIn, fill_in_of
from localllm.tokens.tokenizer import Tokenizer
from tests.tokens.worlds import CONTROL, CORPUS, NORMAL, USER_DEFINED, tiny, tiny_metadata, tiny_spm, tiny_spm_metadata


def id_of(tokenizer: Tokenizer, text: str) -> int:
    return list(tokenizer.built.texts).index(text)


def test_merges_apply_in_order_of_rank() -> None:
    pieces = [tiny().piece(token_id) for token_id in tiny().encode("hello world")]
    assert pieces == ["hello", " wo", "r", "l", "d"]


def test_a_control_token_is_one_id_unless_it_is_to_be_read_as_text() -> None:
    start = id_of(tiny(), "<|im_start|>")
    assert tiny().encode("a<|im_start|>b") == [*tiny().encode("a"), start, *tiny().encode("b")]
    as_text = tiny().encode("<|im_start|>", parse_special=False)
    assert start not in as_text
    assert tiny().decode(as_text) == "<|im_start|>"


def test_a_user_defined_token_is_one_id_either_way_and_stays_in_the_text() -> None:
    think = id_of(tiny(), "<think>")
    assert tiny().encode("<think>", parse_special=False) == tiny().encode("<think>") == [think]
    assert tiny().decode([think], skip_special=True) == "<think>"


def test_special_tokens_are_left_out_only_when_asked() -> None:
    ids = tiny().encode("<|im_start|>hello")
    assert tiny().decode(ids) == "<|im_start|>hello"
    assert tiny().decode(ids, skip_special=True) == "hello"


@pytest.mark.parametrize("text", ["", "\x00", "a\x00b"])
def test_empty_text_and_nul_come_back(text: str) -> None:
    assert tiny().decode(tiny().encode(text)) == text


def test_a_lone_surrogate_is_read_as_the_replacement_character_and_a_pair_as_its_character() -> None:
    assert tiny().decode(tiny().encode("a\ud800b")) == "a\ufffdb"
    assert tiny().decode(tiny().encode("\ud83d\ude00")) == "😀"


@given(st.text())
def test_any_text_comes_back_from_byte_level_tokens(text: str) -> None:
    assert tiny().decode(tiny().encode(text, parse_special=False)) == text


@given(st.text(alphabet=st.characters(exclude_characters="▁", exclude_categories=("Cs",))))
def test_any_text_comes_back_from_sentencepiece_tokens(text: str) -> None:
    assert tiny_spm().decode(tiny_spm().encode(text, add_special=False, parse_special=False)) == text


def test_sentencepiece_puts_a_space_before_a_text_and_takes_it_away_again() -> None:
    ids = tiny_spm().encode("hello", add_special=False)
    assert [tiny_spm().piece(token_id) for token_id in ids] == [" hello"]
    assert tiny_spm().decode(ids) == "hello"
    assert tiny_spm().decode(ids, continuation=True) == " hello"


def test_sentencepiece_spells_unknown_characters_in_bytes() -> None:
    tail = tiny_spm().encode("é", add_special=False)[-2:]
    assert [tiny_spm().token_bytes(token_id) for token_id in tail] == [b"\xc3", b"\xa9"]


def test_sentencepiece_begins_with_its_bos_by_default() -> None:
    assert tiny_spm().encode("hello")[0] == tiny_spm().bos_id == 1
    without = Tokenizer.from_gguf(tiny_spm_metadata(add_bos_token=False))
    assert without.encode("hello") == tiny_spm().encode("hello", add_special=False)


def test_beginning_and_end_are_added_where_the_file_says_so() -> None:
    framed = Tokenizer.from_gguf(tiny_metadata(add_bos_token=True, add_eos_token=True))
    assert framed.encode("") == [framed.bos_id, framed.eos_id]
    assert framed.encode("", add_special=False) == []
    assert framed.count("hello") == 3


def test_the_ends_of_generation_are_found_in_metadata_and_by_name() -> None:
    assert tiny().eog_ids == {id_of(tiny(), "<|endoftext|>"), id_of(tiny(), "<|im_end|>")}


@pytest.mark.parametrize(("kind", "ends"), [(CONTROL, True), (USER_DEFINED, False), (NORMAL, False)])
def test_a_tag_of_html_ends_nothing_unless_it_is_a_control_token(kind: int, ends: bool) -> None:
    metadata = tiny_metadata()
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "</s>"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], kind]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert (tokenizer.vocab_size - 1 in tokenizer.eog_ids) is ends


def test_in_harmony_the_end_of_a_message_does_not_end_the_answer() -> None:
    names = ["<|return|>", "<|call|>", "<|end|>", "<|channel|>"]
    metadata = tiny_metadata(eos_token_id=256 + 9, bos_token_id=None)
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:265], *names]
    metadata["tokenizer.ggml.token_type"] = [1] * 265 + [3] * 4
    harmony = Tokenizer.from_gguf(metadata)
    assert harmony.eog_ids == {265, 266}
    assert harmony.decode([268], skip_special=True) == "<|channel|>"


@pytest.mark.parametrize("bad", [-1, 10**9])
def test_an_id_out_of_range_is_refused(bad: int) -> None:
    with pytest.raises(InvalidRequest, match="no token id"):
        tiny().decode([bad])
    with pytest.raises(InvalidRequest, match="no token id"):
        tiny().token_bytes(bad)


@given(st.lists(st.integers(0, tiny().vocab_size - 1)))
def test_decoding_is_joining_the_tokens_bytes(ids: list[int]) -> None:
    joined = b"".join(tiny().token_bytes(token_id) for token_id in ids)
    assert tiny().decode(ids) == joined.decode("utf-8", errors="replace")


def test_a_text_out_of_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_module, "MAX_TEXT_CHARS", 10)
    with pytest.raises(InvalidRequest, match="11 characters"):
        tiny().encode("x" * 11)


@pytest.mark.parametrize("text", CORPUS)
@pytest.mark.parametrize("tokenizer", [tiny(), tiny_spm()], ids=["byte-level", "sentencepiece"])
def test_an_explained_text_is_covered_without_gaps(tokenizer: Tokenizer, text: str) -> None:
    raw = text.encode()
    tokens = tokenizer.explain(text, add_special=False)
    assert [token.id for token in tokens] == tokenizer.encode(text, add_special=False)
    assert b"".join(raw[token.byte_start : token.byte_end] for token in tokens) == raw
    for token in tokens:
        covered = text[token.char_start : token.char_end].encode()
        assert raw[token.byte_start : token.byte_end] in covered


def test_half_a_character_spans_the_whole_character() -> None:
    first, second = tiny().explain("ü")
    assert (first.byte_start, first.byte_end, second.byte_start, second.byte_end) == (0, 1, 1, 2)
    assert (first.char_start, first.char_end) == (second.char_start, second.char_end) == (0, 1)
    assert first.is_byte
    assert first.piece == "<0xC3>"


def test_tokens_from_no_text_span_nothing() -> None:
    first = tiny_spm().explain("hello")[0]
    assert (first.id, first.is_special, first.byte_start, first.byte_end) == (1, True, 0, 0)


def test_the_byte_alphabet_has_a_character_for_each_byte() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))


def test_threads_that_parse_and_do_not_parse_special_tokens_do_not_meet() -> None:
    wrong: list[list[int]] = []
    plain, parsed = tiny().encode("<|im_end|>", parse_special=False), tiny().encode("<|im_end|>")

    def encode(parse: bool) -> None:
        for _ in range(300):
            ids = tiny().encode("<|im_end|>", parse_special=parse)
            if ids != (parsed if parse else plain):
                wrong.append(ids)

    threads = [threading.Thread(target=encode, args=(number % 2 == 0,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- what is refused


@pytest.mark.parametrize(("pre", "says"), [("of-tomorrow", "'of-tomorrow'"), (None, "does not name")])
def test_an_unknown_pre_tokenizer_runs_by_the_default_rule_and_says_so_once(
    pre: str | None, says: str, caplog: pytest.LogCaptureFixture
) -> None:
    _warned_of.cache_clear()
    tokenizers = [Tokenizer.from_gguf(tiny_metadata(pre=pre)) for _ in range(2)]
    assert tokenizers[0].encode("hello 12,34") == Tokenizer.from_gguf(tiny_metadata(pre="default")).encode(
        "hello 12,34"
    )
    for tokenizer in tokenizers:
        (note,) = tokenizer.notes
        assert says in note
    assert [record.getMessage() for record in caplog.records] == [note]


def test_a_known_pre_tokenizer_has_no_notes() -> None:
    assert tiny().notes == ()


@pytest.mark.parametrize(
    "damage",
    [
        {"model": None},
        {"tokens": None},
        {"tokens": [1, 2]},
        {"token_type": [1]},
        {"merges": None},
        {"merges": ["nospace"]},
        {"merges": [7]},
        {"merges": ["h zzz"]},
        {"bos_token_id": "one"},
        {"pre": 7},
    ],
    ids=str,
)
def test_damaged_metadata_is_a_bad_model_file(damage: dict[str, object]) -> None:
    with pytest.raises(BadModelFile):
        Tokenizer.from_gguf(tiny_metadata(**damage))


def test_a_special_id_beyond_the_vocabulary_is_as_none() -> None:
    assert Tokenizer.from_gguf(tiny_metadata(bos_token_id=10**6)).bos_id is None


@pytest.mark.parametrize("name", known_names())
@given(text=st.text(max_size=40))
def test_every_known_pre_tokenizer_loses_nothing(name: str, text: str) -> None:
    cut = splitter(pretokenizer_or_default(name)[0])
    alphabet = byte_alphabet()
    spelled = "".join(piece for piece, _ in cut.pre_tokenize_str(text))
    assert bytes(alphabet[character] for character in spelled) == text.encode()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", "I'll pay 1234", ["I", "'ll", " pay", " 1234"]),
        ("smollm", "pay 123", ["pay", " ", "1", "2", "3"]),
        ("llama-bpe", "I'LL pay 1234", ["I", "'LL", " pay", " ", "123", "4"]),
        ("qwen2", "a 12\n\nb", ["a", " ", "1", "2", "\n\n", "b"]),
        ("gpt-4o", "CamelCase's", ["Camel", "Case's"]),
        ("tekken", "CamelCase 12", ["Camel", "Case", " ", "1", "2"]),
        ("deepseek-v3", "中文 1234", ["中文", " ", "123", "4"]),
        ("kimi-k2", "中文abc", ["中文", "abc"]),
        ("falcon", "a,,b 1234", ["a", ",,", "b", " ", "123", "4"]),
        ("afmoe", "on 1234567, 日本語", ["on", " ", "1", "234", "567", ",", " ", "日本語"]),
        ("youtu", "中文abc! 한국 12", ["中文", "abc", "!", " ", "한국", " ", "1", "2"]),
        ("spark2_5", "a 123\n!x", ["a", " ", "1", "2", "3", "\n", "!x"]),
        ("chameleon", "IMGIMGABZ 12,,  x", ["IMGIMGABZ", " ", "1", "2", ",", ",", "  ", "x"]),
        ("qwen35", "नमस्ते 12", ["नमस्ते", " ", "1", "2"]),
        ("superbpe", "by the way 1234567", ["by the way ", "1", "234", "567"]),
    ],
)
def test_pre_tokenizers_cut_as_their_models_do(name: str, text: str, words: list[str]) -> None:
    spelled = [piece for piece, _ in splitter(pretokenizer_or_default(name)[0]).pre_tokenize_str(text)]
    assert [bytes(byte_alphabet()[c] for c in piece).decode() for piece in spelled] == words


def test_bytes_and_special_tokens_are_known_without_types() -> None:
    """As the first converters wrote files."""
    metadata = tiny_spm_metadata()
    del metadata["tokenizer.ggml.token_type"]
    bare, told = Tokenizer.from_gguf(metadata), tiny_spm()
    assert bare.built.types == told.built.types
    for text in ("hello world", "h\u00e9 \n<s>", "<0x41></s>"):
        assert bare.encode(text) == told.encode(text)
        assert bare.decode(bare.encode(text), skip_special=True) == told.decode(told.encode(text), skip_special=True)


def test_special_tokens_by_their_roles_are_no_text_without_types() -> None:
    bare = Tokenizer.from_gguf(tiny_metadata(token_type=None))
    ids = bare.encode("<|im_end|>hello", parse_special=True)
    assert ids == tiny().encode("<|im_end|>hello", parse_special=True)
    assert bare.decode(ids, skip_special=True) == "hello"


@pytest.mark.parametrize(("said", "count"), [({}, 2), ({"add_sep_token": False}, 1), ({"pre": "gpt-2"}, 1)])
def test_older_files_of_robertas_kind_do_not_say_that_pairs_have_two_marks_between_them(
    said: dict[str, object], count: int
) -> None:
    metadata = tiny_metadata(**{"pre": "roberta-bpe", "add_bos_token": True, "add_eos_token": True, **said})
    special = Tokenizer.from_gguf(metadata).built.special
    assert special.between_ids == (special.eos_id,) * count


def test_marks_of_a_gap_are_known_by_every_name() -> None:
    names = {"<|prefix|>": 3, "<|suffix|>": 4, "<|middle|>": 5}  # Falcon-H1's small coders
    assert fill_in_of({}, names, 10) == FillIn(3, 4, 5)
