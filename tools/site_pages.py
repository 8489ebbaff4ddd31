"""Pages of the site that `make docs` builds: those of the repository, each where it lies, so that a link holds in both.

mkdocs calls `on_config`, `on_files` and `on_page_markdown` (mkdocs.yml names this file). The order of the pages is that of
docs/README.md and of the rooms it names. Beside Markdown the site has the pictures that pages show, and a page for each
source that a page links to.
"""
import re
from pathlib import Path, PurePosixPath

from mkdocs.structure.files import File, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
INDEX = "docs/README.md"
LINK = re.compile(r"(\]\()([^)\s#:]+)(?=[#)])")
LANGUAGES = {".py": "python", ".c": "c"}


def pages():
    """Markdown of the repository that people read, as paths from its root."""
    found = [*ROOT.glob("*.md"), *(ROOT / "profiling").rglob("*.md"), *(ROOT / "docs").rglob("*.md")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def linked(page, text=None):
    """Files that a page of the repository, or a part of it, links to or shows: paths from its root, in order."""
    folder = (ROOT / page).parent
    found = (folder.joinpath(address).resolve() for _, address in LINK.findall(read(page) if text is None else text))
    return list(dict.fromkeys(path.relative_to(ROOT).as_posix() for path in found))


def navigation():
    """Sections of the site: the parts of docs/README.md, in which a room stands for the pages that its README.md names."""
    first, *parts = re.split(r"^\*\*(.+)\*\*$", read(INDEX), flags=re.MULTILINE)
    sections = zip(parts[::2], parts[1::2], strict=True)
    return [{"Start here": ["README.md", INDEX, *linked(INDEX, first)[1:]]},
            *({title: [room(page) for page in linked(INDEX, text)]} for title, text in sections)]


def room(page):
    """A page, or a page and those of its folder."""
    path = PurePosixPath(page)
    if path.name != "README.md":
        return page
    title = re.search(r"^# (.+)$", read(page), re.MULTILINE)[1]
    return {title: [page, *(other for other in linked(page) if PurePosixPath(other).parent == path.parent and other != page)]}


def source_page(path):
    """A source as a page, with its lines numbered, that the search leaves out."""
    text = read(path)
    fence = "`" * (3 + max((len(run) for run in re.findall("`{3,}", text)), default=0))
    language = LANGUAGES.get(PurePosixPath(path).suffix, "text")
    return f"---\nsearch:\n  exclude: true\n---\n# {path}\n\n{fence} {{ .{language} linenums=\"1\" }}\n{text}\n{fence}\n"


def on_config(config):
    """The order of the pages."""
    config.nav = navigation()


def on_files(files, config):
    """All that the site shows, beside what lies in `docs_dir`."""
    found = pages()
    for path in sorted({*found, *(other for page in found for other in linked(page))}):
        if path.endswith((".md", ".png")):
            files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, f"{path}.md", content=source_page(path), inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown, page, config, files):
    """Lead links to sources to their pages."""
    def led(match):
        return match[0] if match[2].endswith((".md", ".png")) else f"{match[0]}.md"
    return markdown if page.file.src_uri not in pages() else LINK.sub(led, markdown)
