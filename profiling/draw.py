"""Draws the pictures of results anew, from their JSON alone.

    python profiling/draw.py profiling/results/*.json

Scripts draw through the same door when they have measured: what a picture shows is what its file holds.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import pictures_memory
import pictures_speed

# By script: the endings of the pictures' names, and what draws each.
PICTURES: dict[str, dict[str, Callable[[dict, Path], None]]] = {
    "speed": {"": pictures_speed.step_parts, "-roofline": pictures_speed.roofline},
    "memory": {"": pictures_memory.timelines},
    "kernels": {"": pictures_speed.kernel_speeds},
    "compare": {"": lambda data, path: pictures_memory.memory_against_time([data], path)},
    "predictions": {"": pictures_memory.curve},
    "depth": {"": pictures_memory.growth},
}


def main() -> None:
    """Draw what was asked for; results that have no picture here are passed over, by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="FILE.json")
    for path in parser.parse_args().results:
        made = draw(path)
        print(f"{path}: " + (", ".join(one.name for one in made) or "no picture is drawn here"))


def draw(path: Path) -> list[Path]:
    """Draw the pictures of one result beside it, and return where they are."""
    data = json.loads(path.read_text(encoding="utf-8"))
    made = []
    for ending, picture in PICTURES.get(data.get("script"), {}).items():
        made.append(path.with_name(f"{path.stem}{ending}.png"))
        picture(data, made[-1])
    return made


if __name__ == "__main__":
    main()
