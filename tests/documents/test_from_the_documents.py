"""docs/documents/items.md names only what there is."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`((?:cllm|tests|docs|profiling)/[\w/.-]+)(?:::(\w+))?`",
                   (ROOT / "docs" / "documents" / "items.md").read_text())


@pytest.mark.parametrize("path", sorted({path for path, _ in NAMED}))
def test_file_exists_and_has_the_tests(path):
    assert (ROOT / path).exists()
    for name in {test for other, test in NAMED if other == path and test}:
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), name


def test_something_is_named():
    assert len(NAMED) > 50 and ("tests/documents/test_documents.py", "test_known_inputs") in NAMED
