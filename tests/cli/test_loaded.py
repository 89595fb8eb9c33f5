"""`ps`, `stop`, `version` and `doctor`, with a scripted daemon and without any."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from localllm.backends.report import BackendRow, Report
from localllm.cli.connect import is_this_machine, remote_url
from localllm.settings import load_settings
from localllm.store.manifests import Manifests
from localllm.store.names import parse_ref
from tests.cli.conftest import Cli, in_new_process
from tests.cli.fake_daemon import FakeDaemon
from tests.cli.test_library import entry

LOADED = "import sys\nsys.stderr.write(' '.join({'torch', 'mlx.core'} & set(sys.modules)))"


def loaded(name: str, left_s: float | None) -> dict[str, Any]:
    until = None if left_s is None else datetime.fromtimestamp(time.time() + left_s, UTC).isoformat()
    return {
        "name": name,
        "digest": "500a1f067a9f" + "0" * 52,
        "size_bytes": 6_600_000_000,
        "processor": "100% CPU",
        "backend": "cpu",
        "device": "cpu (avx2)",
        "context_length": 4096,
        "expires_at": until,
        "state": "ready",
        "a_field_of_the_future": 1,
    }


def test_ps_is_ollamas_table_and_the_backend_with_the_longest_lived_first(cli: Cli, daemon: FakeDaemon) -> None:
    on_gpu = {"backend": "torch", "device": "cuda:1 NVIDIA H200 (141 GB)", "quantize": "q4_0"}
    daemon.loaded = [loaded("going", -1), loaded("qwen3:8b", 275) | on_gpu, loaded("kept", None)]
    lines = cli("ps").out.splitlines()
    assert lines == [
        "NAME        ID              SIZE      PROCESSOR    BACKEND               CONTEXT    UNTIL                 ",
        "kept        500a1f067a9f    6.6 GB    100% CPU     cpu                   4096       Forever               ",
        "qwen3:8b    500a1f067a9f    6.6 GB    100% CPU     torch cuda:1, q4_0    4096       4 minutes from now    ",
        "going       500a1f067a9f    6.6 GB    100% CPU     cpu                   4096       Stopping...           ",
    ]


def test_ps_prefix_and_json(cli: Cli, daemon: FakeDaemon) -> None:
    daemon.loaded = [loaded("a", 60), loaded("b", 60)]
    (row,) = json.loads(cli("ps", "b", "--json").out)
    assert row["name"] == "b" and row["expires_at"].endswith("Z")


def test_without_a_daemon_nothing_is_loaded_and_nothing_is_started(cli: Cli, no_daemon: None) -> None:
    assert cli("ps").out.split() == ["NAME", "ID", "SIZE", "PROCESSOR", "BACKEND", "CONTEXT", "UNTIL"]
    outcome = cli("stop", "tiny")
    assert outcome.code == 4 and 'couldn\'t find model "tiny" to stop' in outcome.err


def test_stop_is_silent_when_it_worked(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("stop", "tiny")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert cli("stop", "absent").code == 4


def test_an_older_daemon_is_mentioned_by_version(cli: Cli, daemon: FakeDaemon) -> None:
    outcome = cli("--version")
    assert outcome.code == 0 and outcome.out.startswith("localllm version is ")
    assert "has version 9.9.9" in outcome.err
    assert json.loads(cli("version", "--json").out)["daemon_version"] == "9.9.9"


def test_doctor_reports_every_part_and_fails_for_a_backend_that_is_not_there(
    cli: Cli, no_daemon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        BackendRow("cpu", True, True, "native kernels: not yet measured"),
        BackendRow("torch", False, False, "torch is not installed: pip install it"),
    ]
    report = Report(rows, "cpu: there is no other to choose from")
    monkeypatch.setattr("localllm.backends.report.describe", lambda cache_dir, threads: report)
    checks = doctor_checks(cli, 0)
    assert checks["backend torch"]["state"] == "note" and checks["backend cpu"]["state"] == "ok"
    assert checks["backend used"]["detail"] == "cpu: there is no other to choose from"
    assert {"localllm", "python", "encoders", "memory", "disk", "home", "models", "daemon", "port"} <= set(checks)
    monkeypatch.setenv("LOCALLLM_BACKEND", "torch")
    checks = doctor_checks(cli, 1)
    assert checks["backend torch"] == {"name": "backend torch", "state": "broken", "detail": rows[1].detail}
    assert checks["backend used"]["detail"] == "torch, as environment (LOCALLLM_BACKEND) says"


@pytest.mark.parametrize(("is_built", "state", "word"), [(True, "ok", "every core"), (False, "note", "numpy")])
def test_doctor_says_what_follows_from_encoders_that_were_not_built(
    cli: Cli, no_daemon: None, monkeypatch: pytest.MonkeyPatch, is_built: bool, state: str, word: str
) -> None:
    monkeypatch.setattr("localllm.quantize.native.is_built", lambda: is_built)
    check = doctor_checks(cli, 0)["encoders"]
    assert check["state"] == state and word in check["detail"] and ("compiler" in check["detail"]) is not is_built


def doctor_checks(cli: Cli, code: int) -> dict[str, dict[str, str]]:
    outcome = cli("doctor", "--json")
    assert outcome.code == code
    return {check["name"]: check for check in json.loads(outcome.out)}


def test_doctor_imports_no_library_of_a_backend() -> None:
    code = f"from localllm.cli.app import main\ntry:\n    main(['doctor'])\nexcept SystemExit:\n    pass\n{LOADED}"
    plain = in_new_process(code=code)
    assert "backend used" in plain.out and plain.err == ""


def test_doctor_names_a_model_whose_file_is_gone(
    cli: Cli, no_daemon: None, tmp_path_factory: pytest.TempPathFactory
) -> None:
    gone = entry(tmp_path_factory.mktemp("gone"), "gone:latest")
    Manifests(load_settings().store_dir).put(parse_ref("gone"), gone)
    Path(gone.path).unlink()
    outcome = cli("doctor")
    assert outcome.code == 1 and "the file of gone:latest is gone" in outcome.out


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("127.0.0.1", True), ("0.0.0.0", True), ("::1", True), ("localhost", True), ("192.0.2.1", False)],
)
def test_a_daemon_on_another_machine_is_told_from_ours(host: str, is_ours: bool) -> None:
    assert is_this_machine(host) is is_ours


def test_the_flag_names_the_address_of_another_machine() -> None:
    settings = load_settings({}, host="192.0.2.1:8080")
    assert remote_url(settings) == "http://192.0.2.1:8080"
