"""docs/models.md says what the mapping table and the tests say."""

import subprocess
import sys
from pathlib import Path

from localllm.models.families import ROWS
from tests.oracles.encoders import ENCODERS
from tests.oracles.hf import FAMILIES

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_models_is_what_the_script_writes() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "models_doc"), "--check"], timeout=120, check=False)
    assert done.returncode == 0, "run scripts/models_doc"


def test_every_family_has_a_variant_under_test() -> None:
    assert {row.architecture for row in ROWS} == {variant.architecture for variant in (*FAMILIES, *ENCODERS)}
