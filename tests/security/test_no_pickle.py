"""Nothing in the tree can turn data into code.

CVE-2025-32434, CVE-2026-24747 (`torch.load`, twice), CVE-2025-32444, CVE-2026-3059 and -3060 (pickle on an internal
socket), CVE-2025-66448 (`auto_map`), CVE-2024-34359 and CVE-2026-5760 (templates outside a sandbox).
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = frozenset(("pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle", "yaml"))
CALLS = frozenset(("eval", "exec", "compile", "__import__"))
METHODS = frozenset(("os.system", "os.popen", "torch.load", "numpy.load", "np.load", "builtins.eval", "builtins.exec"))
SOURCES = sorted(
    path
    for path in [*(ROOT / "localllm").rglob("*.py"), *(ROOT / "scripts").iterdir()]
    if path.is_file() and (path.suffix == ".py" or path.read_bytes()[:40].startswith(b"#!/usr/bin/env python"))
)


def name_of(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{name_of(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def dangers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield node.module or ""
        elif isinstance(node, ast.Call):
            name = name_of(node.func)
            if name in CALLS or name in METHODS:
                yield name
            yield from (f"{name}({keyword.arg})" for keyword in node.keywords if is_open(keyword))


def is_open(keyword: ast.keyword) -> bool:
    """Arguments that let a library run what it loads, or a shell what it is given."""
    value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
    return keyword.arg in ("trust_remote_code", "shell", "allow_pickle") and value is not False


def test_the_search_finds_what_it_looks_for() -> None:
    text = (
        "import pickle\nfrom marshal import loads\neval('1')\ntorch.load(f)\nrun(x, shell=True)\nload(f, shell=False)"
    )
    assert list(dangers(ast.parse(text))) == ["pickle", "marshal", "eval", "torch.load", "run(shell)"]
    assert len(SOURCES) > 150


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_data(path: Path) -> None:
    assert list(dangers(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_templates_are_made_by_the_sandbox_only() -> None:
    for path in (ROOT / "localllm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jinja2"):
                names = {alias.name for alias in node.names}
                assert not names & {"Environment", "Template", "FileSystemLoader"}, path
