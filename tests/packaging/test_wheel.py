"""The built wheel in a clean environment outside the clone: it pulls and answers, with and without a C++ compiler."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "models.toml", "localllm")

pytestmark = pytest.mark.xdist_group("packaging")


def run(*command: str | Path, env: dict[str, str], cwd: Path) -> str:
    done = subprocess.run(
        [str(part) for part in command], env=env, cwd=cwd, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LOCALLLM_", "PYTEST"))}
    return {**kept, **more}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the sources and a clean virtual environment that has the dependencies."""
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "source"
    source.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "venv", folder / "venv", env=environment(), cwd=folder)
    return folder


def install(work: Path, env: dict[str, str]) -> str:
    """Build a wheel with `env` and install it; returns the wheel's list of files."""
    wheels = work / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", wheels, work / "source", env=env, cwd=work)
    (wheel,) = wheels.glob("localllm-*.whl")
    python = work / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--force-reinstall", "--no-deps", wheel, env=environment(), cwd=work)
    run(python, "-m", "pip", "install", wheel, env=environment(), cwd=work)
    return run(sys.executable, "-m", "zipfile", "-l", wheel, env=environment(), cwd=work)


def native_modules(files: str) -> set[str]:
    return set(re.findall(r"^(localllm/\S+?)\.[\w.-]*so\b", files, re.MULTILINE))


def test_the_wheel_pulls_and_answers_outside_the_clone(work: Path, small_model_home: Path) -> None:
    files = install(work, environment())
    assert "localllm/models.toml" in files
    assert native_modules(files) == {"localllm/backends/cpu/_native", "localllm/quantize/_encoders"}
    assert ".cpp" not in files
    env = environment(LOCALLLM_HOME=str(work / "home"), LOCALLLM_PORT="0")
    localllm = work / "venv" / "bin" / "localllm"
    packages = run(work / "venv" / "bin" / "python", "-m", "pip", "list", env=env, cwd=work)
    assert "torch" not in packages.split()
    run(localllm, "pull", "smollm2:135m", env=env, cwd=work)
    try:
        answer = run(localllm, "run", "smollm2:135m", "Why is the sky blue?", env=env, cwd=work)
    finally:
        run(localllm, "daemon", "stop", env=env, cwd=work)
    assert "light" in answer


def test_without_a_compiler_the_install_succeeds_and_says_so(work: Path, small_model_file: Path) -> None:
    files = install(work, environment(CC="/bin/false", CXX="/bin/false"))
    assert native_modules(files) == set()
    env = environment(LOCALLLM_HOME=str(work / "home-without"), OMP_NUM_THREADS="1")
    python = work / "venv" / "bin" / "python"
    code = f"from localllm import LLM; print(LLM({str(small_model_file)!r}).info.backend)"
    done = subprocess.run([python, "-c", code], env=env, cwd=work, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "reference"
    assert "C++17 compiler" in done.stderr
    doctor = subprocess.run(
        [work / "venv" / "bin" / "localllm", "doctor", "--json"], env=env, cwd=work, capture_output=True, text=True
    )
    assert "native" in json.dumps(json.loads(doctor.stdout))
    checks = {check["name"]: check for check in json.loads(doctor.stdout)}
    assert "compiler" in doctor.stdout
    assert checks["encoders"]["state"] == "note" and "compiler" in checks["encoders"]["detail"]
