"""`localllm bench` and `localllm bench serve` as they are typed."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from localllm.lab.bench_rows import BenchPlan, Row
from localllm.settings import Settings, load_settings
from tests.cli.conftest import Cli, in_new_process
from tests.cli.test_help import AFTER_MAIN
from tests.server.world import daemon

KEYS = {
    *("model", "size", "params", "quantization", "backend", "device", "threads", "kv_type", "speculation", "test"),
    *("n_prompt", "n_gen", "n_parallel", "n_depth", "avg_ts", "stddev_ts", "samples_ts"),
    *("read_bytes", "memory_bandwidth", "bandwidth_share", "note"),
}


class Lab:
    """Stands in for the measuring: every row runs at `rate`; keeps what it was asked."""

    def __init__(self) -> None:
        self.rate = 100.0
        self.plans: list[BenchPlan] = []
        self.settings: list[Settings] = []

    def bench(self, model: str, plan: BenchPlan, *, settings: Settings, **others: Any) -> list[Row]:
        self.plans.append(plan)
        self.settings.append(settings)
        shared: dict[str, Any] = {"model": model, "size": 2**20, "params": 10**6, "quantization": "Q4_0"}
        shared |= {"backend": "cpu", "device": "cpu", "threads": 2, "kv_type": "f16", "speculation": "off"}
        return [
            Row(
                **shared,
                test=work.name,
                n_prompt=work.n_prompt,
                n_gen=work.n_gen,
                n_parallel=work.n_parallel,
                n_depth=work.n_depth,
                avg_ts=self.rate,
                stddev_ts=1.0,
                samples_ts=[self.rate - 1, self.rate, self.rate + 1],
                memory_bandwidth=2e10,
                bandwidth_share=0.5 if work.n_gen else None,
            )
            for work in plan.works()
        ]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch) -> Lab:
    made = Lab()
    monkeypatch.setattr("localllm.lab.bench.bench", made.bench)
    return made


def test_the_table_has_a_row_for_each_test(cli: Cli, lab: Lab) -> None:
    outcome = cli("bench", "m", "-p", "0", "-n", "64", "--parallel", "1,8", "-d", "0,512", "-t", "2", "-r", "3")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["model", "size", "params", "backend", "threads", "test", "t/s", "bandwidth"]
    assert lines[1].split() == [
        "m",
        "Q4_0",
        "1.00",
        "MiB",
        "1.00",
        "M",
        "cpu",
        "2",
        "tg64",
        "100.00",
        "±",
        "1.00",
        "50%",
    ]
    assert [name for name in ("tg64 ", "tg64 x8 ", "tg64 @ d512", "tg64 x8 @ d512") if name in outcome.out]
    assert len(lines) == 6 and "20 GB/s" in lines[-1]
    assert lab.plans[0] == BenchPlan((0,), (64,), (1, 8), (0, 512), (2,), 3)


def test_nothing_is_guessed_unless_that_is_asked_for(cli: Cli, lab: Lab) -> None:
    cli("bench", "m")
    cli("bench", "m", "--speculation", "auto", "--backend", "cpu", "--kv-type", "f32")
    first, second = lab.settings
    assert first.speculation == "off" and second.speculation == "auto"
    assert (second.backend, second.kv_type) == ("cpu", "f32")
    assert cli("bench", "m", "--speculation", "much").code == 2


def test_json_is_a_list_of_rows(cli: Cli, lab: Lab) -> None:
    rows = json.loads(cli("bench", "m", "--json").out)
    assert [row["test"] for row in rows] == ["pp512", "tg128"]
    assert all(row.keys() == KEYS for row in rows)


def test_a_kept_run_is_set_beside_the_next_one(cli: Cli, lab: Lab) -> None:
    assert cli("bench", "m", "--save", "before").code == 0
    assert (load_settings().bench_dir / "before.json").exists()
    lab.rate = 150.0
    shown = cli("bench", "m", "-n", "128,64", "--compare", "before", "--save", "before").out
    assert "1.500" in shown and "faster" in shown and "only in this run: tg64 on 2 threads" in shown
    rows = json.loads(cli("bench", "m", "--compare", "before", "--json").out)
    assert rows[0]["compared"]["ratio"] == 1.0 and rows[0]["compared"]["is_outside_noise"] is False
    assert rows[0]["compared"]["name"] == "before" and len(rows[0]["compared"]["differences"]) == 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench", "MODEL"),
        ("bench m -p x", "-p must be whole numbers"),
        ("bench m -p 0 -n 0", "nothing to measure"),
        ("bench m -r 0", "-r must be between"),
        ("bench m --save ../x", "no name for a run"),
        ("bench m --compare none", "no run is kept as 'none'"),
        ("bench serve --url https://a", "no address of a server"),
        ("bench serve --url http://127.0.0.1:1 --model m --clients 0", "--clients must be between"),
        ("bench serve --url http://127.0.0.1:1 --model m --goodput fast", "no goal"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(cli: Cli, lab: Lab, line: str, said: str) -> None:
    outcome = cli(*line.split())
    assert outcome.code == 2 and said in outcome.err and not lab.plans


def test_serve_is_a_command_and_everything_else_a_model(cli: Cli, lab: Lab) -> None:
    assert "--clients" in cli("bench", "serve", "--help").out
    shown = cli("bench", "--help").out
    assert shown.startswith("Usage: localllm bench [OPTIONS] ") and "--parallel" in shown
    assert cli("bench", "-n", "8", "serve-small").code == 0 and lab.plans


@pytest.mark.parametrize("flags", [(), ("--chat",)], ids=["completions", "chat"])
def test_a_daemon_is_loaded_by_its_clients(cli: Cli, tmp_path: Path, flags: tuple[str, ...]) -> None:
    file = tmp_path / "result.json"
    options = ["--clients", "3", "--num-prompts", "5", "--input-len", "20", "--output-len", "6", "--seed", "3"]
    with daemon(tmp_path / "home") as world:
        outcome = cli(
            *("bench", "serve", "--url", world.url, *options, *flags, "--json", "--save-result", str(file)),
            *("--goodput", "ttft:100000 tpot:100000"),
        )
        assert len(world.client.get("/localllm/v1/ps").json()["models"]) == 1
    assert outcome.code == 0, outcome.err
    figures = json.loads(outcome.out)
    assert figures == json.loads(file.read_text())
    assert (figures["model"], figures["completed"], figures["failed"]) == ("toy:1b", 5, 0)
    assert figures["total_output_tokens"] == 5 * 6 and figures["tokens_counted_by"] == "usage"
    assert figures["request_goodput"] == figures["request_throughput"] > 0
    assert 0 < figures["mean_ttft_ms"] <= figures["mean_e2el_ms"] < math.inf


def test_the_figures_are_shown_as_a_page(cli: Cli, tmp_path: Path) -> None:
    with daemon(tmp_path / "home") as world:
        shown = cli(
            "bench", "serve", "--url", world.url, "--clients", "1", "--num-prompts", "1", "--input-len", "9"
        ).out
    for words in ("successful requests", "output token throughput", "TTFT ms", "TPOT ms", "ITL ms", "p99"):
        assert words in shown


def test_a_refused_first_request_is_told_in_the_servers_words(cli: Cli, tmp_path: Path) -> None:
    with daemon(tmp_path / "home") as world:
        outcome = cli("bench", "serve", "--url", world.url, "--model", "none")
    assert outcome.code == 1 and "there is no model 'none'" in outcome.err


def test_without_a_daemon_the_next_step_is_told(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localllm.cli.bench_serve.running_client", lambda settings: None)
    outcome = cli("bench", "serve")
    assert outcome.code == 3 and "no daemon runs" in outcome.err and "--url" in outcome.err


@pytest.mark.parametrize("line", ["bench --help", "bench serve --help"])
def test_help_loads_nothing_heavy(line: str) -> None:
    outcome = in_new_process(*line.split(), code=AFTER_MAIN)
    assert outcome.out and outcome.err == ""
