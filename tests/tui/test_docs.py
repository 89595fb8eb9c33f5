"""docs/tui.md says what the bindings say."""

from tests.scripts.loading import script


def test_the_tables_of_keys_are_those_of_the_bindings() -> None:
    write_keys = script("write_keys")
    assert write_keys.PAGE.read_text(encoding="utf-8") == write_keys.page(), "run scripts/write_keys"
