"""docs/stores.md: the tests that it names are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = (
    "tests/contract/test_store.py",
    "tests/archive/test_s3.py",
    "tests/system/test_stores.py",
    "tests/system/test_store_faults.py",
)


def test_the_table_of_the_contract_names_tests_that_exist() -> None:
    """A table of what is tried is worth what its names are."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/stores.md").read_text()))
    source = "\n".join((ROOT / file).read_text() for file in FILES)
    existing = set(re.findall(r"^(?:async )?def (test_\w+)", source, re.MULTILINE))
    assert len(named) > 20
    assert named <= existing, named - existing
