"""Plans as grids: a row for each site, a column for each block, a word for each value."""

from cllm.comparison.description import ABSENT, KEPT, REBUILT, SPILLED
from cllm.comparison.html.svg import element, escape

LETTERS = {KEPT: "K", REBUILT: "R", SPILLED: "S", ABSENT: "·"}
COMPRESSED = "C"
NAMES, CELL = 110, 31  # pixels that a grid's names, and each of its columns, take with the style sheet's letters
TIMES = "Times rebuilt: how often a micro-batch runs that step of the block again that it runs again most often"
LEGEND = {KEPT: "kept from forward to backward", REBUILT: "rebuilt in backward", "compressed": "kept as a narrow copy",
          SPILLED: "on disk meanwhile", ABSENT: "never made: the backward's own kernel does without"}


def grids(report: dict) -> str:
    """A table for each strategy that ran, and one legend."""
    rows = [row for row in report["rows"] if row["plan"]]
    if not rows:
        return element("p", "Nothing ran.")
    legend = "".join(element("li", _cell(word, "span"), " ", escape(words)) for word, words in LEGEND.items())
    columns = max(len(row["plan"]["rebuilds"]) for row in rows)
    return element("ul", legend, class_="legend") \
        + element("div", "".join(_grid(row) for row in rows), class_="side-by-side plans",
                  style=f"--least: {NAMES + CELL * columns}px") + element("p", TIMES + ".", class_="note")


def _grid(row: dict) -> str:
    plan = row["plan"]
    blocks = len(plan["sites"][0]["blocks"]) if plan["sites"] else 0
    head = element("tr", element("th", "site", scope="col"), *(element("th", str(b), scope="col") for b in range(blocks)))
    body = "".join(_site(site) for site in plan["sites"])
    times = element("tr", element("th", "times rebuilt", scope="row", title=TIMES),
                    *(element("td", str(count or "·"), class_="times") for count in plan["rebuilds"]))
    ends = "".join(element("tr", _name(end), _cell(end["word"], "td", blocks)) for end in plan["ends"])
    cut = f"{plan['micro_batches']} micro-batch{'' if plan['micro_batches'] == 1 else 'es'} of {plan['micro_batch']}"
    label = f"Plan of {row['strategy']}"
    table = element("table", element("caption", escape(f"{label}: {cut}, {plan['loss_rows']} rows of the head at a time")),
                    element("thead", head), *(element("tbody", rows) for rows in (body, times, ends)), class_="plan")
    return element("div", table, class_="wide", tabindex="0", role="region", aria_label=label)


def _site(site: dict) -> str:
    return element("tr", _name(site), *(_cell(word, "td") for word in site["blocks"]))


def _name(site: dict) -> str:
    return element("th", escape(site["site"]), scope="row", title=site["meaning"])


def _cell(word: str, tag: str, columns: int | None = None) -> str:
    known = word if word in LETTERS else "compressed"
    return element(tag, element("span", LETTERS.get(word, COMPRESSED), aria_hidden="true"),
                   element("span", escape(word), class_="unseen"), class_=f"word {known}", title=word,
                   colspan=columns if columns and columns > 1 else None)
