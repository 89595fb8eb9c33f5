import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from localllm.errors import UsageError
from localllm.store.names import MAX_KEY_BYTES, parse_ref, suggestions


@pytest.mark.parametrize(
    ("text", "kind", "display"),
    [
        ("smollm2:135m", "name", "smollm2:135m"),
        ("SmolLM2:135M", "name", "smollm2:135m"),
        ("  qwen3  ", "name", "qwen3:latest"),
        ("\u212aimi", "name", "kimi:latest"),  # the Kelvin sign is a K once normalized
        ("hf.co/Org/Repo-GGUF", "hub", "hf.co/Org/Repo-GGUF"),
        ("hf.co/Org/Repo-GGUF:Q8_0", "hub", "hf.co/Org/Repo-GGUF:Q8_0"),
        ("huggingface.co/Org/Repo:q4_k_m", "hub", "hf.co/Org/Repo:q4_k_m"),
        ("HuggingFace.co/Org/Repo", "hub", "hf.co/Org/Repo"),
        ("https://huggingface.co/Org/Repo", "hub", "hf.co/Org/Repo"),
        ("https://huggingface.co/Org/Repo/resolve/main/sub/x.gguf", "hub", "hf.co/Org/Repo:sub/x.gguf"),
        ("https://huggingface.co/Org/Repo/blob/main/x.gguf", "hub", "hf.co/Org/Repo:x.gguf"),
        ("org/repo", "hub", "hf.co/org/repo"),
        ("org/repo:Q8_0", "hub", "hf.co/org/repo:Q8_0"),
        ("org/repo:sub/x.gguf", "hub", "hf.co/org/repo:sub/x.gguf"),
        ("https://example.com/models/x.gguf", "url", "https://example.com/models/x.gguf"),
        ("/models/x.gguf", "path", "/models/x.gguf"),
        ("/models/../x", "path", "/x"),
    ],
)
def test_every_form_of_a_name_is_told_apart_and_shown_in_one_way(text: str, kind: str, display: str) -> None:
    ref = parse_ref(text)
    assert (ref.kind, ref.display) == (kind, display)
    assert parse_ref(ref.display).display == display


@pytest.mark.parametrize(
    "text", ["./x.gguf", "./folder", "../folder", "~/x.gguf", "~", ".", "x.gguf", "sub/x.GGUF", "a.bin"]
)
def test_paths_are_made_absolute(text: str) -> None:
    ref = parse_ref(text)
    assert ref.kind == "path"
    assert ref.target.startswith("/")
    assert "~" not in ref.target


def test_names_that_differ_only_in_case_are_one_model() -> None:
    assert parse_ref("hf.co/Org/Repo:q8_0").key == parse_ref("ORG/repo:Q8_0").key
    assert parse_ref("a:b").key != parse_ref("a/b").key


STEMS = [
    "..",
    "a..b",
    "../a",
    "a/../b",
    "a/..",
    "-a",
    ".a",
    "a\x00b",
    "a\nb",
    "a\x1b[31m",
    "a b",
    "a\\b",
    "a%2e%2e",
    "a'b",
]
STEMS += [
    'a"b',
    "a;b",
    "a|b",
    "a*b",
    "a?b",
    "a<b",
    "a>b",
    "a$b",
    "a`b",
    "a&b",
    "a+b",
    "a@b",
    "a=b",
    "a,b",
    "a\u202eb",
    "a\u200bb",
]
HOSTILE = [
    form.format(stem)
    for stem in STEMS
    for form in ("{}", "x:{}", "hf.co/{}/x", "hf.co/x/{}", "hf.co/x/y:{}", "o/{}:t", "q/{}")
]
HOSTILE += [
    "",
    " ",
    ":",
    "a:",
    ":a",
    "a:b:c",
    "a/b/c/d",
    "hf.co/",
    "hf.co/a",
    "hf.co//a",
    "a//b",
    "a/",
    "http://",
    "ftp://a/b",
]
HOSTILE += [
    "file:///etc/passwd",
    "https://user:secret@example.com/x.gguf",
    "a" * 97,
    "a" * 5000,
    "é",
    "a:é",
    "模型",
    "a/" + "b" * 97,
]


def test_two_hundred_hostile_names_never_become_a_file_outside_the_store() -> None:
    assert len(HOSTILE) > 200
    for text in HOSTILE:
        try:
            ref = parse_ref(text)
        except UsageError as error:
            assert error.message
            assert "\n" not in error.message
        else:  # the few that are paths are the user's own, and no manifest is written for a path
            assert ref.kind == "path", text


@given(st.text(alphabet=string.ascii_letters + string.digits + "/:.-_~ \\", max_size=300))
@example("a/b:" + "c" * 96)
def test_whatever_is_accepted_makes_one_harmless_file_name(text: str) -> None:
    try:
        ref = parse_ref(text)
    except UsageError:
        return
    if ref.kind != "path":
        assert "/" not in ref.key
        assert not ref.key.startswith(".")
        assert len(ref.key.encode()) <= MAX_KEY_BYTES
        assert parse_ref(ref.display).key == ref.key


def test_a_typo_is_answered_with_the_nearest_names() -> None:
    known = ["smollm2:135m", "smollm2:1.7b", "qwen3:8b", "llama3.1:8b"]
    assert suggestions("smolm2:135m", known)[0] == "smollm2:135m"
    assert suggestions("lama3.1", known) == ["llama3.1:8b"]
    assert suggestions("zzzz", known) == []
