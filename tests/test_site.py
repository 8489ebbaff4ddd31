"""The site: the reference has every public name, and its check finds what a reader would."""
import importlib.util
import re
from pathlib import Path

import pytest

import cllm
import cllm.lab
import cllm.layers
import cllm.testing

ROOT = Path(__file__).parents[1]


def script(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def referred():
    """Dotted names in the pages of the reference, in order."""
    return [name for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
            for name in re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE)]


def test_the_reference_has_every_public_name_once():
    found = referred()
    assert len(found) == len(set(found))
    public = {f"{room.__name__}.{name}" for room in (cllm, cllm.lab, cllm.layers, cllm.testing) for name in room.__all__}
    assert public - {"cllm.layers.LAYERS"} <= set(found)


def test_what_the_reference_names_is_there_and_says_what_it_is():
    for name in referred():
        module, _, word = name.rpartition(".")
        assert getattr(importlib.import_module(module), word).__doc__, name


@pytest.fixture
def site(tmp_path):
    """A site without faults."""
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a><a href="https://example.org">web</a><img src="b.png">')
    (tmp_path / "b.html").write_text('<h1 id="there">b</h1><a href="#there">up</a><link rel="canonical" href="https://x.org">')
    (tmp_path / "b.png").touch()
    (tmp_path / "one.css").write_text("a { background: url(b.png) } b { mask: url('data:image/svg+xml;') }")
    return tmp_path


def test_a_sound_site_has_no_faults(site):
    assert list(script("check_site").faults(site)) == []


@pytest.mark.parametrize("page,fault", [
    ('<a href="c.html">', "links to c.html, which is no file"),
    ('<a href="b.html#here">', "links to b.html#here, which has no such anchor"),
    ('<a href="../">', "links to ../, which is outside its folder"),
    ('<script src="https://unpkg.com/x.js"></script>', "loads https://unpkg.com/x.js, which is not of the site"),
    ('<link rel="stylesheet" href="//fonts.example/x.css">', "loads //fonts.example/x.css, which is not of the site"),
    ('<link rel="preconnect" href="https://fonts.example">', "loads https://fonts.example, which is not of the site"),
    ('<img srcset="b.png 1x, c.png 2x">', "loads c.png, which is no file"),
    ("<style>@import 'https://x.org/a.css';</style>", "loads https://x.org/a.css, which is not of the site"),
])
def test_a_fault_of_a_page_is_found(site, page, fault):
    (site / "bad.html").write_text(page)
    assert list(script("check_site").faults(site)) == [f"bad.html: {fault}"]


def test_what_a_style_sheet_loads_is_looked_at(site):
    (site / "two.css").write_text("@font-face { src: url(https://x.org/f.woff2) }")
    assert list(script("check_site").faults(site)) == ["two.css: loads https://x.org/f.woff2, which is not of the site"]


def test_the_site_has_every_page_in_the_order_of_the_index():
    pytest.importorskip("mkdocs")
    pages = script("site_pages")

    def leaves(entry):
        return [entry] if isinstance(entry, str) else [leaf for part in (entry.values() if isinstance(entry, dict) else entry)
                                                       for leaf in leaves(part)]
    found = leaves(pages.navigation())
    assert sorted(found) == pages.pages() and found[:3] == ["README.md", "docs/README.md", "docs/tour.md"]
