"""`/metrics`: every number against a run whose counts are known, and names that dashboards look for."""

import json
import re
from collections.abc import Iterator, Mapping
from copy import copy
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from localllm.daemon.engine_counts import EngineCounts
from localllm.daemon.journal import Journal
from localllm.daemon.tallies import SERIES, Tallies
from tests.daemon.toy import ToyLibrary, toy_entry
from tests.server.world import World, daemon

MODEL = "toy:1b"
DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
VLLM_NAMES = (
    "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
    "prefix_cache_hits_total", "prompt_tokens_total", "generation_tokens_total", "num_preemptions_total",
    "request_success_total", "time_to_first_token_seconds_bucket", "inter_token_latency_seconds_bucket",
    "request_time_per_output_token_seconds_bucket", "e2e_request_latency_seconds_bucket",
    "request_queue_time_seconds_bucket", "request_prefill_time_seconds_bucket", "request_decode_time_seconds_bucket",
    "request_inference_time_seconds_bucket", "request_prompt_tokens_bucket", "request_generation_tokens_bucket",
    "iteration_tokens_total_bucket", "request_params_n_bucket", "request_params_max_tokens_bucket",
    "spec_decode_num_drafts_total", "spec_decode_num_draft_tokens_total", "spec_decode_num_accepted_tokens_total",
    "cache_config_info",
)  # fmt: skip


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    library = ToyLibrary(toy_entry(MODEL), toy_entry("toy:second"), toy_entry("toy:slow", "toy:slow"))
    with daemon(tmp_path, library) as world:
        yield world


class Scrape:
    """The samples of one answer."""

    def __init__(self, world: World, query: str = "") -> None:
        answer = world.client.get(f"/metrics{query}")
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain; version=")
        self.text = answer.text
        families = text_string_to_metric_families(answer.text)
        self.samples = [sample for family in families for sample in family.samples]

    def of(self, name: str, prefix: str = "localllm:", **labels: str) -> float:
        found = [
            sample.value
            for sample in self.samples
            if sample.name == prefix + name and labels.items() <= sample.labels.items()
        ]
        assert found, name
        return sum(found)

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}


def settled(world: World, num_generated: int) -> Scrape:
    """Once the engine has told that it generated so many tokens: it tells ten times a second."""
    while True:
        scrape = Scrape(world)
        if scrape.of("generation_tokens_total", model_name=MODEL) >= num_generated:
            return scrape


def test_every_count_is_exact(world: World) -> None:
    prompt = "ab" * 30  # 61 tokens with the first one: three full pages of 16 can be found again
    for _ in range(3):
        assert world.complete(prompt, max_tokens=7, ignore_eos=True).status_code == 200
    assert world.complete(["x", "yz"], max_tokens=5, ignore_eos=True).status_code == 200
    found = settled(world, 3 * 7 + 2 * 5)
    exact: Mapping[str, float] = {
        "prompt_tokens_total": 3 * 61 + 2 + 3,
        "generation_tokens_total": 31,
        "prefix_cache_queries_total": 3 * 61 + 2 + 3,
        "prefix_cache_hits_total": 2 * 48,
        "num_preemptions_total": 0,
        "request_success_total": 4,
        "time_to_first_token_seconds_count": 4,
        "inter_token_latency_seconds_count": 3 * 6 + 2 * 4,
        "e2e_request_latency_seconds_count": 4,
        "request_time_per_output_token_seconds_count": 4,
        "request_queue_time_seconds_count": 4,
        "request_prefill_time_seconds_count": 4,
        "request_decode_time_seconds_count": 4,
        "request_inference_time_seconds_count": 4,
        "request_load_time_seconds_count": 4,
        "request_prompt_tokens_sum": 3 * 61 + 2 + 3,
        "request_generation_tokens_sum": 31,
        "request_params_n_sum": 5,
        "request_params_max_tokens_sum": 3 * 7 + 5,
        "model_loads_total": 1,
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
    }
    assert {name: found.of(name, model_name=MODEL) for name in exact} == exact
    assert found.of("request_success_total", finished_reason="length") == 4
    assert found.of("iteration_tokens_total_count") == found.of("engine_steps_total")
    # every prompt token that was not found was computed, and every token but the last of each sequence
    assert found.of("iteration_tokens_total_sum") == 188 - 96 + (31 - 5)
    assert found.of("http_requests_total", route="/v1/completions", status="200") == 4


def test_slots_of_recurrent_state_are_told_of_models_that_have_them(tmp_path: Path) -> None:
    with daemon(tmp_path, ToyLibrary(toy_entry("toy:hybrid", "toy:hybrid"), toy_entry(MODEL))) as world:
        for model in ("toy:hybrid", MODEL):
            body = {"model": model, "prompt": "ab" * 30, "max_tokens": 3}
            assert world.client.post("/v1/completions", json=body).status_code == 200
        while not (kept := [sample for sample in Scrape(world).samples if sample.name == "localllm:states_kept"]):
            pass
        assert [(sample.labels["model_name"], sample.value >= 1) for sample in kept] == [("toy:hybrid", True)]
        assert Scrape(world).of("state_slots_usage_perc", model_name="toy:hybrid") == 0


def test_prompts_are_counted_as_usage_counts_them_and_lookups_as_the_engine_makes_them(world: World) -> None:
    asked = world.complete(["ab" * 16, "cd"], n=3, max_tokens=4, ignore_eos=True).json()["usage"]
    best = world.complete("efg", best_of=4, max_tokens=2, ignore_eos=True).json()["usage"]
    found = settled(world, 2 * 3 * 4 + 4 * 2)
    assert (asked["prompt_tokens"], best["prompt_tokens"]) == (33 + 3, 4)
    assert found.of("prompt_tokens_total", model_name=MODEL) == 33 + 3 + 4
    assert found.of("request_prompt_tokens_sum", model_name=MODEL) == 33 + 3 + 4
    assert found.of("prefix_cache_queries_total", model_name=MODEL) == 3 * (33 + 3) + 4 * 4
    assert found.of("prefix_cache_hits_total", model_name=MODEL) >= 2 * 32


def test_where_the_time_went_adds_up(world: World) -> None:
    world.complete("abc", max_tokens=9, ignore_eos=True)
    found = settled(world, 9)
    parts = ("request_load_time_seconds", "request_queue_time_seconds", "request_inference_time_seconds")
    whole = found.of("e2e_request_latency_seconds_sum")
    assert sum(found.of(part + "_sum") for part in parts) == pytest.approx(whole)
    inside = found.of("request_prefill_time_seconds_sum") + found.of("request_decode_time_seconds_sum")
    assert inside == pytest.approx(found.of("request_inference_time_seconds_sum"))
    between = found.of("inter_token_latency_seconds_sum")
    assert between <= found.of("request_decode_time_seconds_sum")
    assert found.of("time_to_first_token_seconds_sum") < whole


def test_requests_are_counted_by_how_they_end(world: World) -> None:
    world.complete("a", max_tokens=2, ignore_eos=True)
    body = {"model": "toy:slow", "prompt": "a", "max_tokens": 400, "ignore_eos": True, "stream": True}
    for _ in range(2):
        with world.client.stream("POST", "/v1/completions", json=body) as stream:
            lines = stream.iter_lines()
            next(line for line in lines if line.startswith("data:"))
            world.client.post(f"/v1/requests/{stream.headers['x-request-id']}/cancel", json={})
            list(lines)
    found = Scrape(world)
    assert found.of("request_success_total", model_name="toy:slow", finished_reason="abort") == 2
    assert found.of("request_success_total", model_name=MODEL, finished_reason="length") == 1


def test_refusals_are_counted_by_code_and_unknown_paths_together(world: World) -> None:
    world.complete("a", model="nope")
    world.complete("a", max_tokens=-1)
    world.client.request("BREW", "/health")
    for path in ("/nothing", "/else", "/v1/requests/x/y/z"):
        world.client.get(path)
    world.client.get("/health", headers={"host": "evil.example"})
    found = Scrape(world)
    assert found.of("refusals_total", code="model_not_found") == 1
    assert found.of("refusals_total", code="invalid_value") == 1
    assert found.of("refusals_total", code="forbidden") == 1
    assert found.of("http_requests_total", route="other", status="404") == 3
    assert found.of("http_requests_total", route="/health", method="", status="405") == 1
    assert "nothing" not in found.text and "evil" not in found.text and "nope" not in found.text


def test_counters_go_on_when_a_model_is_unloaded_and_loaded_again(world: World) -> None:
    for times in (1, 2):
        world.complete("abc", max_tokens=5, ignore_eos=True)
        found = settled(world, 5 * times)
        assert found.of("prompt_tokens_total") == 4 * times and found.of("model_loads_total") == times
        world.client.post("/localllm/v1/stop", json={"model": MODEL})
    found = Scrape(world)
    assert (
        found.of("generation_tokens_total") == 10 and f'num_requests_running{{model_name="{MODEL}"}}' not in found.text
    )


def test_models_that_give_way_are_counted(tmp_path: Path) -> None:
    with daemon(tmp_path, ToyLibrary(toy_entry(MODEL), toy_entry("toy:second")), max_loaded_models=1) as world:
        world.complete("a", max_tokens=1)
        world.complete("a", max_tokens=1, model="toy:second")
        found = Scrape(world)
    assert found.of("model_evictions_total", model_name=MODEL) == 1
    assert found.of("model_loads_total") == 2
    assert found.of("worker_memory_bytes", model_name="toy:second") > 1e6 and found.of("daemon_memory_bytes") > 1e6


def test_the_names_are_vllms_with_our_prefix_or_its_own(world: World) -> None:
    world.complete("a", max_tokens=2)
    ours, theirs = Scrape(world).names, Scrape(world, "?prefix=vllm").names
    assert {f"localllm:{name}" for name in VLLM_NAMES} <= ours
    assert {f"vllm:{name}" for name in VLLM_NAMES} <= theirs
    assert world.client.get("/metrics?prefix=other").status_code == 400


def test_workers_of_one_name_are_counted_each_for_itself(world: World) -> None:
    counts = EngineCounts(world.daemon.residency)
    world.complete("abc", max_tokens=5, ignore_eos=True)
    settled(world, 5)
    (resident,) = world.daemon.residency.residents()
    twin = copy(resident)
    for _ in range(3):
        counts._note(resident)
        counts._note(twin)
    found = counts.by_model()[MODEL]
    assert (found["num_generated_tokens"], counts.loads[MODEL]) == (10, 2)


def test_buckets_rise_and_end_with_everything(world: World) -> None:
    world.complete("a", max_tokens=4, ignore_eos=True)
    found = settled(world, 4)
    for name in SERIES:
        values = [sample.value for sample in found.samples if sample.name == f"localllm:{name}_bucket"]
        assert values == sorted(values) and values[-1] == found.of(name + "_count")


def test_nothing_of_prometheus_is_imported_before_somebody_asks() -> None:
    import subprocess
    import sys

    code = "import localllm.server.app, sys; print(any(m.startswith('prometheus') for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_tokens_that_come_together_share_the_time_since_the_last_ones() -> None:
    journal = Journal()
    tallies = Tallies(journal)
    record = journal.open("/x", "toy")
    record.note_tokens(3, -1.0)
    record.note_tokens(4, 0.4)
    between = tallies.by_model["toy"].inter_token
    assert sum(between.counts) == 2 + 4 and between.total == pytest.approx(0.4) and record.num_tokens == 7


def test_every_panel_of_the_dashboard_shows_a_metric_that_exists(world: World) -> None:
    world.complete("a", model="nope")  # a refusal, so that there is one
    world.complete("a", max_tokens=2)
    world.client.post("/localllm/v1/stop", json={"model": MODEL})
    world.complete("a", max_tokens=2)
    bare = {re.sub(r"_(bucket|sum|count|total|info)$", "", name) for name in Scrape(world).names}
    declared = set(re.findall(r"^# TYPE (\S+)", Scrape(world).text, re.MULTILINE))
    exported = bare | {re.sub(r"_(total|info)$", "", name) for name in declared} | declared
    board = json.loads(DASHBOARD.read_text())
    panels = [inner for panel in board["panels"] for inner in (panel, *panel.get("panels", []))]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(expressions) >= 20
    for expression in expressions:
        names = re.findall(r"localllm:[a-z0-9_]+", expression)
        assert names, expression
        for name in names:
            assert re.sub(r"_(bucket|sum|count)$", "", name) in exported | Scrape(world).names, name


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert board["title"] == "localllm" and board["schemaVersion"] >= 36 and board["uid"]
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in board["panels"]:
        assert panel["type"] in ("row", "timeseries", "stat", "gauge", "heatmap", "bargauge", "table")
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24 and place["h"] > 0
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}" and panel["title"]
            assert all(target["refId"] for target in panel["targets"])
    boxes = [panel["gridPos"] for panel in board["panels"]]
    cells = [
        (x, y)
        for box in boxes
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(set(cells)) == len(cells), "two panels lie upon each other"
    assert {variable["name"] for variable in board["templating"]["list"]} == {"datasource", "model"}
