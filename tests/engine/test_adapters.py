"""Adapters by request: read once, kept while they are held, and never another's cached pages."""

import pytest

from localllm.engine.adapters import MAX_ADAPTERS
from localllm.engine.engine import Engine
from localllm.engine.speculative import LookupDrafter
from localllm.errors import BadModelFile, InvalidRequest, Overloaded
from localllm.models.adapters import Adapter
from localllm.wire import Probe, Submit

from .worlds import answers_of, ask, drain, engine_on, fake, finish


class Folder:
    """Adapters by path; `read` counts how often each was opened."""

    def __init__(self) -> None:
        self.reads: list[str] = []

    def read(self, path: str) -> Adapter:
        self.reads.append(path)
        if "broken" in path:
            raise BadModelFile(f"the adapter {path} is broken")
        return Adapter(path, {})


def made(**changes: object) -> tuple[Engine, Folder]:
    folder = Folder()
    return engine_on(fake(), read_adapter=folder.read, **changes), folder


def test_what_one_adapter_computed_is_never_read_by_another_nor_by_the_base() -> None:
    engine, folder = made()
    prompt = range(16)
    first = answers_of(engine, [ask("a", prompt, lora="one")])["a"]
    others = [ask("b", prompt), ask("c", prompt, lora="two"), ask("d", prompt, lora="one", lora_scale=0.5)]
    for submit in others:
        assert answers_of(engine, [submit])[submit.request_id].num_cached == 0
    for name, fields in (("e", {"lora": "one"}), ("f", {}), ("g", {"lora": "one", "lora_scale": 0.5})):
        assert answers_of(engine, [ask(name, prompt, **fields)])[name].num_cached == 12
    again = answers_of(engine, [ask("h", prompt, lora="one")])["h"]
    assert again.ids == first.ids
    assert folder.reads == ["one", "two"]


def test_a_probe_looks_into_the_pages_of_its_adapter() -> None:
    engine, _ = made()
    prompt = list(range(16))
    answers_of(engine, [ask("a", prompt, lora="one")])
    found = [
        engine.answer(Probe(1, prompt, lora=lora, lora_scale=scale))
        for lora, scale in (("one", 1.0), ("", 1.0), ("one", 2.0), ("never loaded", 1.0))
    ]
    assert [each.num_cached for each in found] == [12, 0, 0, 0]  # type: ignore[union-attr]


def test_adapters_run_in_one_batch_and_each_answers_as_it_does_alone() -> None:
    submits = [
        ask(f"r{index}", range(index, 16 + index), lora=f"lora {index % 3}" if index else "") for index in range(7)
    ]
    engine, _ = made()
    together = answers_of(engine, submits)
    for submit in submits:
        alone, _ = made()
        for index in range(3):  # so that every adapter has the number it had there
            alone.adapters.hold(f"lora {(index + 1) % 3}")
        assert answers_of(alone, [submit])[submit.request_id].ids == together[submit.request_id].ids


def test_a_sequence_keeps_its_adapter_over_preemptions() -> None:
    submits = [ask(f"r{index}", range(index, 14 + index), 40, lora=f"lora {index}") for index in range(4)]
    roomy, _ = made()
    tight, _ = made(num_pages=24)
    expected, answers = answers_of(roomy, submits), answers_of(tight, submits)
    assert tight.snapshot().num_preemptions > 0
    assert {name: answer.ids for name, answer in answers.items()} == {name: each.ids for name, each in expected.items()}


def test_guessed_tokens_are_checked_with_the_adapter_of_their_sequence() -> None:
    submits = [ask(f"r{index}", [1, 2, 3, 4] * 4, 24, lora="one" if index else "") for index in range(2)]
    plain, _ = made()
    folder = Folder()
    drafting = engine_on(fake(), read_adapter=folder.read, drafter=LookupDrafter(8))
    expected, answers = answers_of(plain, submits), answers_of(drafting, submits)
    assert {name: answer.ids for name, answer in answers.items()} == {name: each.ids for name, each in expected.items()}
    assert answers["r0"].ids != answers["r1"].ids


def test_the_least_recently_used_adapter_makes_way_and_comes_back_under_another_number() -> None:
    engine, folder = made()
    for index in range(MAX_ADAPTERS + 1):
        answers_of(engine, [ask(f"r{index}", range(8), lora=f"lora {index}")])
    assert len(engine.adapters) == MAX_ADAPTERS
    assert answers_of(engine, [ask("again", range(8), lora=f"lora {MAX_ADAPTERS}")])["again"].num_cached > 0
    back = answers_of(engine, [ask("back", range(8), lora="lora 0")])["back"]
    assert back.num_cached == 0, "what an adapter of this name computed before may be of another file"
    assert folder.reads.count("lora 0") == 2


def test_more_adapters_than_fit_are_refused_while_all_are_in_use() -> None:
    engine, _ = made(max_sequences=MAX_ADAPTERS + 2)
    for index in range(MAX_ADAPTERS):
        engine.add(ask(f"r{index}", range(8), lora=f"lora {index}"))
    with pytest.raises(Overloaded, match="adapters"):
        engine.add(ask("late", range(8), lora="one more"))
    engine.abort("r0")
    engine.add(ask("late", range(8), lora="one more"))
    drain(engine)


def test_an_adapter_that_cannot_be_read_is_the_requests_fault_and_nobody_elses() -> None:
    engine, _ = made()
    engine.add(ask("good", range(8), lora="one"))
    with pytest.raises(InvalidRequest, match="broken") as refused:
        engine.add(ask("bad", range(8), lora="a broken one"))
    assert refused.value.param == "lora"
    assert finish(engine)["good"].finish == "length"
    assert len(engine.adapters) == 1


def test_an_engine_without_adapters_says_so() -> None:
    engine = engine_on(fake())
    with pytest.raises(InvalidRequest, match="no adapters"):
        engine.add(Submit(request_id="a", prompt=[1, 2], lora="one"))
    assert not engine.has_work
