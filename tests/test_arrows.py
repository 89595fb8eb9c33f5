"""Deferred imports hide from static checks, so the cheap entry points are run and looked at."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "mlx", "textual", "fastapi", "transformers")

REPORT = "; import sys, json; print(json.dumps(sorted(m for m in sys.modules)), file=sys.stderr)"


def loaded_modules(code: str, home: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", code + REPORT],
        env={"PATH": "/usr/bin:/bin", "LOCALLLM_HOME": home, "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(done.stderr.splitlines()[-1]))


CHEAP = {
    "import localllm": "import localllm",
    "import localllm.client": "import localllm.client",
    "localllm --help": "from localllm.cli.app import main\ntry: main(['--help'])\nexcept SystemExit: pass\npass",
    "localllm list": "from localllm.cli.app import main\ntry: main(['list'])\nexcept SystemExit: pass\npass",
}


@pytest.mark.parametrize("entry", CHEAP)
def test_cheap_entry_points_load_nothing_heavy(entry: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    loaded = loaded_modules(CHEAP[entry], str(tmp_path))
    assert "localllm" in loaded
    assert not loaded & set(HEAVY)


def test_the_worker_carries_no_web_server_and_no_tokenizer(tmp_path) -> None:  # type: ignore[no-untyped-def]
    loaded = loaded_modules("import localllm.daemon.worker, localllm.runtime.load", str(tmp_path))
    assert not loaded & {*HEAVY, "tokenizers", "jinja2", "starlette", "huggingface_hub", "httpx"}
