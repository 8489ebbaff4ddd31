"""Draws the pictures of results anew, from their JSON alone.

    python profiling/draw.py                            every picture of profiling/results
    python profiling/draw.py profiling/results/speed.json
    python profiling/draw.py A.json B.json --side-by-side C.png     results of `compare.py`, a panel each

Scripts draw through the same door when they have measured: what a picture shows is what its file holds.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from jobs.record import RESULTS
from pictures import memory, processes, speed, training, whole_steps

from cllm.comparison import picture as bars
from cllm.lab.picture import draw_lab

COMPARE = "cllm compare"  # which writes no "script", and draws a picture only when asked: an older one is drawn anew
# By script: the endings of the pictures' names, and what draws each.
PICTURES: dict[str, dict[str, Callable[[dict, Path], None]]] = {
    "speed": {"": speed.step_parts, "-roofline": speed.roofline},
    "memory": {"": memory.timelines},
    "kernels": {"": speed.kernel_speeds},
    "compare": {"": lambda data, path: memory.memory_against_time([data], path)},
    "predictions": {"": memory.curve},
    "depth": {"": memory.growth},
    "processes": {"": processes.step_and_scaling},
    "training": {"": training.beside_peer},
    "finetune_smollm2": {"": training.tuned},
    "compression": {"": training.curves},
    "mixed_precision_loss": {"": training.curves},
    "bfloat16_loss": {"": training.curves},
    "optimizers": {"": training.curves},
    "whole_step": {"": whole_steps.curve, "-step": whole_steps.steps},
    "crystalline": {"": training.variants},
    "cllm lab": {"": draw_lab},
    COMPARE: {"": bars.draw},
}

# Of several results together, by name of the picture in profiling/results.
SIDE_BY_SIDE = {"peers": ("peers-8x256", "peers-4x1024", "peers-gpt2-1x1024")}


def main() -> None:
    """Draw what was asked for; results that have no picture here are passed over, by name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="*", type=Path, metavar="FILE.json", help="(default: all of profiling/results)")
    parser.add_argument("--side-by-side", type=Path, metavar="FILE.png", help="one picture of all, results of compare.py")
    arguments = parser.parse_args()
    if arguments.side_by_side:
        _draw_together(arguments.results, arguments.side_by_side)
        return
    for path in arguments.results or sorted(RESULTS.glob("*.json")):
        made = draw(path)
        print(f"{path.name}: " + (", ".join(one.name for one in made) or "no picture is drawn here"))
    for name, parts in {} if arguments.results else SIDE_BY_SIDE.items():
        _draw_together([RESULTS / f"{part}.json" for part in parts], RESULTS / f"{name}.png")


def _draw_together(paths: list[Path], picture: Path) -> None:
    memory.memory_against_time([json.loads(path.read_text(encoding="utf-8")) for path in paths], picture)
    print(f"{', '.join(path.name for path in paths)}: {picture.name}")


def draw(path: Path) -> list[Path]:
    """Draw the pictures of one result beside it, and return where those are that had something to show."""
    data = json.loads(path.read_text(encoding="utf-8"))
    script = data.get("script", COMPARE)
    made = []
    for ending, picture in PICTURES.get(script, {}).items():
        place = path.with_name(f"{path.stem}{ending}.png")
        older = place.stat().st_mtime_ns if place.exists() else None
        if script == COMPARE and older is None:
            continue
        picture(data, place)
        made += [place] if place.exists() and place.stat().st_mtime_ns != older else []
    return made


def told(path: Path, pictures: list[Path]) -> str:
    """The last line of a script: what it wrote."""
    return f"\nwritten: {', '.join(str(one) for one in (path, *pictures))}"


if __name__ == "__main__":
    main()
