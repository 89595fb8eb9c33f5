"""Chats, their trees of messages, and what is kept beside them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.errors import ChatNotFound
from localllm.history import (
    Alternative,
    AnswerStats,
    Attachment,
    Draft,
    History,
    SampledToken,
    Tree,
)


def talk(history: History, *texts: str) -> int:
    """A chat in which these were said in turn, by the person first; its id."""
    chat = history.new_chat("tiny")
    parent = None
    for place, text in enumerate(texts):
        parent = history.add(chat.id, parent, "assistant" if place % 2 else "user", text).id
    return chat.id


def test_a_message_comes_back_as_it_was_written(history: History) -> None:
    chat = history.new_chat("tiny", system="Be brief.", parameters={"temperature": 0.5, "stop": ["x"]})
    file = Attachment("a.py", "print()\n", 3)
    stats = AnswerStats(tokens=412, tokens_per_s=62.4, first_token_s=0.184, stop_reason="stop")
    question = history.add(chat.id, None, "user", "Why?\n", attachments=(file,))
    answer = history.add(
        chat.id, question.id, "assistant", "So. €𝄞\x00", reasoning="Hm", model="tiny", stats=stats, origin="edit"
    )
    assert list(history.branch(chat.id)) == [question, answer]
    assert (question.attachments, answer.stats, answer.origin) == ((file,), stats, "edit")
    assert (answer.content, answer.reasoning) == ("So. €𝄞\x00", "Hm")
    kept = history.chat(chat.id)
    assert (kept.system, kept.parameters, kept.title) == ("Be brief.", {"temperature": 0.5, "stop": ["x"]}, "Why?")


def test_half_a_surrogate_pair_is_no_reason_to_lose_a_message(history: History) -> None:
    chat = history.new_chat("tiny")
    assert history.add(chat.id, None, "user", "a\ud800b").content == "a?b"
    history.keep_draft(chat.id, Draft("\udc00"))
    assert history.draft(chat.id).text == "?"


def test_the_first_line_of_the_first_message_names_the_chat(history: History) -> None:
    assert history.chat(talk(history, "\n  Why \x1b[31mdoes\tit stall?\nmore")).title == "Why does it stall?"
    assert history.chat(talk(history, "word " * 40)).title.endswith("word…")
    named = history.new_chat("tiny", title="Mine")
    history.add(named.id, None, "user", "hello")
    assert history.chat(named.id).title == "Mine"


def test_a_file_without_a_word_names_the_chat(history: History) -> None:
    chat = history.new_chat("tiny")
    history.add(chat.id, None, "user", " \n", attachments=(Attachment("scheduler.py", "pass\n"),))
    assert history.chat(chat.id).title == "scheduler.py"


def test_who_reads_a_branch_passes_over_what_was_removed_meanwhile(history: History) -> None:
    chat_id = talk(history, "one", "two")
    branch, fresh = history.branch(chat_id), history.branch(chat_id)
    assert [message.content for message in branch] == ["one", "two"]
    history.take_back(branch.ids[1])
    assert [message.content for message in fresh] == ["one"]
    with pytest.raises(KeyError):
        fresh.message(branch.ids[1])


def test_an_edit_is_a_sibling_and_both_branches_stay(history: History) -> None:
    chat_id = talk(history, "one", "two", "three", "four")
    branch = history.branch(chat_id)
    edited = history.add(chat_id, branch[1].id, "user", "III")
    now = history.branch(chat_id)
    assert [message.content for message in now] == ["one", "two", "III"]
    assert now.place(edited.id) == (2, 2)
    other = now.tree.sibling(edited.id, -1)
    assert other == branch[2].id
    leaf = now.tree.latest_leaf(other)
    history.change_chat(chat_id, active_leaf=leaf)
    assert [message.content for message in history.branch(chat_id)] == ["one", "two", "three", "four"]


def test_an_answer_that_was_cut_keeps_what_it_said(history: History) -> None:
    chat_id = talk(history, "hi", "")
    answer = history.branch(chat_id)[-1]
    kept = history.update(answer.id, content="So far", stats=AnswerStats(tokens=2))
    assert kept.is_cut and kept.content == "So far"
    done = history.update(answer.id, content="So far, so good", stats=AnswerStats(tokens=4, stop_reason="stop"))
    assert not done.is_cut


def test_tokens_are_kept_beside_their_message(history: History) -> None:
    chat_id = talk(history, "hi", "yo")
    answer = history.branch(chat_id)[-1]
    tokens = [SampledToken(7, b"\xe2\x82", -0.5, (Alternative(7, b"\xe2\x82", -0.5), Alternative(8, b"a", -1.5)), 0.9)]
    history.update(answer.id, content="yo", tokens=tokens)
    assert history.tokens(answer.id) == tokens
    history.update(answer.id, content="yo!")
    assert history.tokens(answer.id) == tokens and history.tokens(answer.id - 1) == []


def test_chats_are_listed_with_the_one_used_last_first(history: History) -> None:
    first, second = talk(history, "a"), talk(history, "b")
    assert [chat.id for chat in history.chats()] == [second, first]
    history.add(first, history.branch(first).leaf, "assistant", "c")
    assert history.latest().id == first and history.num_chats() == 2


def test_a_chat_is_found_by_number_and_by_words_of_its_title(history: History) -> None:
    first = talk(history, "Why does 50% stall?")
    talk(history, "Regex for dates")
    assert history.find(str(first)).id == first
    assert history.find("does 50%").id == first
    for unknown in ("99", "_egex", "%", "9" * 40):
        if unknown != "%":
            with pytest.raises(ChatNotFound):
                history.find(unknown)


def test_a_removed_chat_is_gone_with_all_that_belonged_to_it(history: History) -> None:
    chat_id = talk(history, "find me", "here")
    history.keep_draft(chat_id, Draft("more"))
    assert history.search("find me")
    history.remove_chat(chat_id)
    assert history.search("find me") == [] and history.draft(chat_id) == Draft()
    for call in (history.remove_chat, history.chat, history.branch):
        with pytest.raises(ChatNotFound):
            call(chat_id)


def test_a_parent_must_be_of_the_same_chat(history: History) -> None:
    first, second = talk(history, "a"), talk(history, "b")
    with pytest.raises(ChatNotFound):
        history.add(second, history.branch(first).leaf, "user", "c")
    with pytest.raises(ChatNotFound):
        history.add(99, None, "user", "c")
    assert history.num_messages(second) == 1


def test_presets_prompts_and_drafts(history: History) -> None:
    history.save_preset("careful", {"temperature": 0.6})
    history.save_preset("careful", {"temperature": 0.5})
    assert [(preset.name, preset.parameters) for preset in history.presets()] == [("careful", {"temperature": 0.5})]
    history.remove_preset("careful")
    assert history.presets() == []
    for text in ("a", "b", "a"):
        history.remember_prompt(text)
    assert history.prompts() == ["a", "b"]
    draft = Draft("half a", (Attachment("x", "y"),))
    history.keep_draft(0, draft)
    assert history.draft() == draft
    history.keep_draft(0, Draft())
    assert history.draft() == Draft()


def test_ten_thousand_messages_are_one_branch(history: History) -> None:
    chat = history.new_chat("tiny")
    parent = None
    with history.together():
        for place in range(10_000):
            parent = history.add(chat.id, parent, "assistant" if place % 2 else "user", f"message {place} " * 30).id
    branch = history.branch(chat.id)
    assert len(branch) == 10_000 and branch[-1].content.startswith("message 9999 ")


@given(st.lists(st.integers(min_value=-1, max_value=30), max_size=40), st.data())
def test_a_tree_agrees_with_the_plainest_one(choices: list[int], data: st.DataObject) -> None:
    parents: dict[int, int | None] = {}
    for message_id, choice in enumerate(choices):
        parents[message_id] = None if choice < 0 or not message_id else choice % message_id
    tree = Tree(parents.items())
    assert len(tree) == len(parents)
    for message_id, parent in parents.items():
        plain_path = [message_id]
        while (above := parents[plain_path[0]]) is not None:
            plain_path.insert(0, above)
        assert tree.path(message_id) == plain_path
        family = [other for other in parents if parents[other] == parent]
        assert tree.siblings(message_id) == family
        place = family.index(message_id)
        assert tree.sibling(message_id, 1) == (family[place + 1] if place + 1 < len(family) else None)
        assert tree.sibling(message_id, -1) == (family[place - 1] if place else None)
        leaf = tree.latest_leaf(message_id)
        assert leaf is not None and message_id in tree.path(leaf) and not tree.children(leaf)
    assert tree.leaves() == [each for each in parents if each not in parents.values()]


def test_a_message_whose_parent_is_lost_begins_a_branch() -> None:
    tree = Tree([(5, 4), (6, 5)])
    assert tree.path(6) == [5, 6]


@given(st.lists(st.tuples(st.integers(min_value=-1, max_value=20), st.text(max_size=8)), min_size=1, max_size=12))
def test_any_branching_written_is_the_branching_read(choices: list[tuple[int, str]]) -> None:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "chats.db")
        chat = history.new_chat("tiny")
        ids: list[int] = []
        parents: list[int | None] = []
        for choice, text in choices:
            parent = None if choice < 0 or not ids else ids[choice % len(ids)]
            ids.append(history.add(chat.id, parent, "user", text).id)
            parents.append(parent)
        branch = history.branch(chat.id)
        assert branch.leaf == ids[-1]
        for message_id, parent, (_, text) in zip(ids, parents, choices, strict=True):
            message = branch.message(message_id)
            assert (message.parent_id, message.content) == (parent, text.encode("utf-8", "replace").decode())
            assert [each.id for each in branch.at(message_id)] == branch.tree.path(message_id)
        history.close()
