"""Check a built site as a reader meets it: every link of every page leads somewhere, and no page fetches anything.

    python tools/check_site.py FOLDER

Exit code 1, and a line for each fault: what a page links to or loads must be a file of the folder, with the anchor; links for
people may lead to the web.
"""
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "audio": "src", "video": "src", "embed": "src",
          "object": "data", "link": "href"}
NAMED = {"canonical", "prev", "next", "alternate"}  # relations of a link that a browser does not load


class Page(HTMLParser):
    """Addresses and anchors of one page: `links` for people, `loads` by the browser."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {""}
        self.feed(text)
        self.loads += styles(text)

    def handle_starttag(self, tag, attributes):
        values = {name: value or "" for name, value in attributes}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if (address := values.get(LOADED.get(tag, ""))) is not None and values.get("rel") not in NAMED:
            self.loads.append(address)
        self.loads += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]


def styles(text):
    """Addresses that style sheets in a text load."""
    return [found[1] for found in re.finditer(r"""(?:url\(|@import\s+)["']?([^"')\s;]+)""", text)]


def faults(folder):
    """What is wrong with the site below a folder, a line each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    for path, page in pages.items():
        for address in dict.fromkeys(page.links + page.loads):
            loaded = address in page.loads
            if (fault := _fault(folder, path, address, pages, loaded)):
                yield f"{path.relative_to(folder)}: {'loads' if loaded else 'links to'} {address}, {fault}"
    for path in sorted(folder.rglob("*.css")):
        for address in styles(path.read_text(encoding="utf-8")):
            if (fault := _fault(folder, path, address, pages, True)):
                yield f"{path.relative_to(folder)}: loads {address}, {fault}"


def _fault(folder, path, address, pages, loaded):
    """What is wrong with one address in a file, or None."""
    parts = urlsplit(address)
    if parts.scheme in ("data", "mailto") or parts.scheme in ("http", "https") and not loaded:
        return None
    if parts.scheme or parts.netloc:
        return "which is not of the site"
    start = path.parent
    if path == folder / "404.html" and parts.path.startswith("/"):  # shown by a server, which has the site at its root
        start, parts = folder, parts._replace(path=parts.path.lstrip("/"))
    target = path if not parts.path else (start / unquote(parts.path)).resolve()
    if parts.path.startswith("/") or not target.is_relative_to(folder):
        return "which is outside its folder"
    if not target.is_file():
        return "which is no file"
    if target in pages and unquote(parts.fragment) not in pages[target].anchors and not parts.fragment.startswith("__"):
        return "which has no such anchor"
    return None


def main():
    folder = Path(sys.argv[1]).resolve()
    found = list(faults(folder))
    print(*found, f"{len(list(folder.rglob('*.html')))} pages, {len(found)} faults", sep="\n")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
