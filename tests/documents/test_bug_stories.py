"""Law 11: every bug of the documents, planted again, makes the tests fail that docs/documents/bug-stories.md names for it."""
import bug_stories
import pytest


@pytest.mark.parametrize("told", bug_stories.STORIES, ids=lambda told: told.name)
def test_planted_bug_is_found(told):
    outcomes = bug_stories.prove(told)
    assert outcomes.failed == set(told.tests), f"{told.patched}: these passed: {sorted(outcomes.passed)}"


def test_without_a_bug_the_same_tests_pass():
    tests = sorted({test for told in bug_stories.STORIES for test in told.tests})
    outcomes = bug_stories.run(tests)
    assert outcomes.passed == set(tests) and not outcomes.failed


def test_the_page_is_what_the_stories_say():
    assert bug_stories.PAGE.read_text() == bug_stories.page(), "write it anew: python tests/bug_stories.py"


def test_every_story_of_the_law_is_told():
    """Words of law 11 in docs/architecture.md, each in the name of a story."""
    names = " | ".join(told.name.lower() for told in bug_stories.STORIES)
    for word in ("`=` for `+=`", "h*d*d for c*c", "c*c for h*d*d", "missing", "skipped", "1/sqrt(d)", "left out",
                 "first 1/h", "not zeroed", "zeroed inside", "wrong sign", "zeros", "its input", "`[i]` for `[i, j]`",
                 "reported loss", "overwritten", "zero initialisation"):
        assert word in names, word
