"""Graphs that are no program of ours, as JSON: nodes with bytes and seconds, and edges. Planned by every strategy, run by none.

    {"graph": 1,
     "nodes": [{"name": "conv1", "bytes": 4096, "seconds": 0.25, "reads": [],
                "backward": {"seconds": 0.5, "reads": ["conv1"], "scratch": 0}}, ...],
     "edges": [["conv1", "relu1"], ...]}

Nodes stand in an order in which they can run. ``reads`` are nodes whose outputs it reads; ``edges`` say the same. Its backward
may read what it reads and what it made; without ``backward`` it takes twice the seconds of forward and reads what forward
reads. Optional: ``scratch`` (bytes beside values while it runs), ``also`` (bytes of what it leaves for its own backward alone,
by name; read as ``conv1.NAME``), ``accumulate`` (the part of backward that makes no gradient of a value), ``shares`` (of which
of ``reads``, by position, the gradient ``passes``, ``adds`` or ``overwrites``, as of `cllm.Layer`), ``stream`` (a running sum,
which trees do not drop), ``product`` (bound by arithmetic), ``block`` (0, 1, ...; without, the graph is cut wherever a single
value passes) and ``loss`` (of the last: nothing is made by its forward).
"""

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cllm.comparison.files import write_json
from cllm.errors import PlanError
from cllm.models.architecture import Architecture
from cllm.models.model import Model
from cllm.planner.costs import Speeds
from cllm.planner.ledger import Ledger
from cllm.planning import decide, ledger_of
from cllm.plans.plan import Plan
from cllm.program.declare import Scratch, Site
from cllm.program.kinds import Kind
from cllm.program.layer import Layer
from cllm.program.parts import Step, Value
from cllm.program.program import Program
from cllm.program.workload import Workload
from cllm.strategies import parse

FORMAT = 1
CUT = -1  # the block of a node that says none
LEFT_OUT = {"scratch": 0, "also": {}, "loss": False, "stream": False, "product": False, "shares": {}, "block": CUT,
            "accumulate": None}
SHARES = ("passes", "adds", "overwrites")
ROOM = Scratch("room", lambda layer, letters, threads, itemsize: layer.room_bytes, "uint8")


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was read: what strategies are told of it.

    Attributes
    ----------
    program : Program
        Its nodes as steps, that cannot be run.
    ledger : Ledger
        Its bytes and seconds; `cllm.MemoryBudget`'s curve is ``ledger.frontier(("cache", "recompute"))``.
    """

    program: Program
    ledger: Ledger

    def plan(self, strategy="cache") -> Plan:
        """The plan of a strategy, name or `cllm.Script`, with its bytes and seconds; errors as `cllm.plan`."""
        return decide(strategy, self.ledger)

    def live_bytes(self, plan: Plan) -> int:
        """Most bytes alive at once, before packing."""
        return max(self.ledger.build(plan)[1].arena.live_bytes)


class _Given(Speeds):
    """Seconds as the nodes have them."""

    __slots__ = ()

    def op_seconds(self, op, schedule, workload, micro_batch=None) -> float:
        return getattr(op.step.layer, f"{op.kind.costs_as}_seconds", 0.0)


def from_json(source: str | Path | Mapping) -> Graph:
    """Read a graph: a file, or what one holds.

    Raises
    ------
    PlanError
        When it is none.
    """
    where = "lab.from_json" if isinstance(source, Mapping) else f"lab.from_json({str(source)!r})"
    try:
        data = source if isinstance(source, Mapping) else json.loads(Path(source).read_text(encoding="utf-8"))
        nodes = _nodes(data)
        program = _program(nodes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise PlanError(where, "must be a graph of nodes with bytes and seconds", told,
                        "See the head of cllm/lab/foreign.py for the form.") from error
    speeds = _Given(source="seconds of the graph")
    return Graph(program, Ledger(program, Workload(1, None, optimizer="none", threads=1), speeds))


def to_json(path: str | Path, model_or_architecture: Model | Architecture, batch_size: int, seq_len: int | None = None,
            dtype: str | None = None, num_threads: int | None = None) -> None:
    """Write a program of ours as such a graph; errors as `cllm.plan`, and `DataError` when it cannot be written."""
    write_json(Path(path), graph_of(model_or_architecture, batch_size, seq_len, dtype, num_threads))


def graph_of(model_or_architecture: Model | Architecture, batch_size: int, seq_len: int | None = None,
             dtype: str | None = None, num_threads: int | None = None) -> dict:
    """The same as plain data."""
    ledger = ledger_of(model_or_architecture, batch_size, seq_len, "none", dtype, num_threads)
    program, graph = model_or_architecture.program, ledger.graph()
    schedule, _ = ledger.build(decide(parse("cache"), ledger))
    scratch = {}
    for op in schedule.ops:
        used = sum(schedule.buffers[b].nbytes for _, b in op.writes if schedule.buffers[b].kind == "scratch")
        scratch[op.step.name, op.kind] = max(used, scratch.get((op.step.name, op.kind), 0))
    nodes = []
    for step, node in zip(program.steps, graph.nodes, strict=True):
        out, layer = step.output, step.layer
        also = {v.removeprefix(f"{step.name}."): n for v, n in node.values.items() if v != out}
        made = {"name": step.name, "block": step.block, "bytes": node.values.get(out, 0),
                "seconds": node.seconds, "scratch": scratch.get((step.name, Kind.FORWARD), 0), "also": also,
                "reads": [program.steps[program.values[v].step].name for v in node.reads], "loss": step is program.head,
                "stream": program.values[out].role == "stream", "product": node.is_product}
        inputs = list(step.inputs)
        made["shares"] = {"passes": [inputs.index(g[1:]) for g in layer.passed() if g[1:] in inputs],
                          **{word: [inputs.index(g[1:]) for g in getattr(layer, word) if g[1:] in inputs]
                             for word in SHARES[1:]}}
        for word, kind in (("accumulate", Kind.ACCUMULATE), ("backward", Kind.BACKWARD)):
            moves = [m for m in node.moves if m.word == word]
            reads = [_local(program, v) for v in dict.fromkeys(v for m in moves for v in m.reads)]
            if moves or word == "backward":
                made[word] = {"seconds": sum(m.seconds for m in moves), "reads": reads,
                              "scratch": scratch.get((step.name, kind), 0)}
        nodes.append(made)
    return {"graph": FORMAT, "nodes": nodes}


def _local(program: Program, value: str) -> str:
    """A value as graphs name it: by its node, or by node and name where it is not the output."""
    step = program.steps[program.values[value].step]
    return step.name if value == step.output else value


def _nodes(data: Mapping) -> list[dict]:
    """The nodes with all that may be left out, edges among their reads, checked."""
    if not isinstance(data, Mapping) or data.get("graph") != FORMAT:
        raise ValueError(f"graph format {data.get('graph') if isinstance(data, Mapping) else data!r} is not {FORMAT}")
    nodes, known = [], set()
    edges: dict[str, list[str]] = {}
    for source, target in data.get("edges", ()):
        edges.setdefault(target, []).append(source)
    for given in data["nodes"]:
        name = given["name"]
        reads = [*dict.fromkeys((*given.get("reads", ()), *edges.pop(name, ())))]
        if not isinstance(name, str) or name in known:
            raise ValueError(f"the name {name!r} twice, or no text")
        if missing := [n for n in reads if n not in known]:
            raise ValueError(f"{name} reads {', '.join(map(str, missing))}, which no node before it is")
        node = {**LEFT_OUT, **given, "reads": reads}
        node["backward"] = {"scratch": 0, "reads": reads, "seconds": 2 * node["seconds"], **given.get("backward", {})}
        if len(node["shares"].get("passes", ())) == len(reads) and node["accumulate"] is None and node["backward"]["seconds"]:
            node["accumulate"], node["backward"] = node["backward"], {"scratch": 0, "reads": [], "seconds": 0.0}
        own = {*reads, name, *(f"{name}.{word}" for word in node["also"])}
        for part in filter(None, (node["backward"], node["accumulate"])):
            if stray := [v for v in part["reads"] if v not in own]:
                raise ValueError(f"backward of {name} reads {', '.join(map(str, stray))}, which it neither reads nor makes")
        numbers = [node["bytes"], node["scratch"], *node["also"].values(), node["backward"]["scratch"]]
        if not all(isinstance(n, int) and n >= 0 for n in numbers):
            raise ValueError(f"bytes of {name} that are no whole numbers from 0")
        seconds = node["seconds"], node["backward"]["seconds"]
        if not all(isinstance(s, (int, float)) and 0 <= s < float("inf") for s in seconds):
            raise ValueError(f"seconds of {name} that are no numbers from 0")
        known.add(name)
        nodes.append(node)
    if edges or not nodes:
        raise ValueError(f"edges to {', '.join(map(str, edges))}, which no node is" if edges else "no nodes")
    return _with_end(nodes)


def _with_end(nodes: list[dict]) -> list[dict]:
    """The nodes with a loss at the end, which reads what nobody reads."""
    sinks = [node["name"] for node in nodes if not any(node["name"] in other["reads"] for other in nodes)]
    if any(node["loss"] for node in nodes):
        if sinks != [nodes[-1]["name"]] or not nodes[-1]["loss"]:
            raise ValueError("a loss that is not the last node, or not the only one that nobody reads")
        return nodes
    plain = {**LEFT_OUT, "bytes": 0, "seconds": 0.0, "backward": {"seconds": 0.0, "reads": [], "scratch": 0}}
    if len(sinks) > 1:
        nodes = [*nodes, {**plain, "name": "all ends", "reads": sinks, "shares": {"passes": [*range(len(sinks))]}}]
    end = nodes[-1]["name"]
    backward = {"seconds": 0.0, "reads": [end], "scratch": 0}
    return [*nodes, {**plain, "name": "loss", "reads": [end], "backward": backward, "loss": True}]


def _program(nodes: Sequence[dict]) -> Program:
    said = [None if node["block"] == CUT else node["block"] for node in nodes]
    blocks = _cut(nodes) if all(node["block"] == CUT for node in nodes) else said
    steps, values, place = [], {}, {}
    for index, (node, block) in enumerate(zip(nodes, blocks, strict=True)):
        name = node["name"]
        place[block] = place.get(block, -1) + 1
        layer = _layer(node)
        outputs = {site.name: name if site.name == "y" else f"{name}.{list(node['also'])[int(site.name[4:])]}"
                   for site in layer.sites}
        for site in layer.sites:
            values[outputs[site.name]] = Value(outputs[site.name], site.shape, site.dtype, index, block,
                                               f"{place[block]}.{site.name}", "", False, site.meaning,
                                               "stream" if node["stream"] and site.name == "y" else "")
        inputs = {f"x{n}": read for n, read in enumerate(node["reads"])}
        shapes = {**{site.name: site.shape for site in layer.sites}, **{n: values[v].shape for n, v in inputs.items()}}
        steps.append(Step(index, name, layer, inputs, outputs, {}, {}, {}, block, shapes))
    return Program(tuple(steps), values, {}, {}, {})


def _cut(nodes: Sequence[dict]) -> list[int | None]:
    """The block of each node: cut where one value passes that the node before has just made."""
    last = {name: i for i, node in enumerate(nodes) for name in node["reads"]}
    blocks, block, cuts = [], None, 0
    for i, node in enumerate(nodes):
        blocks.append(None if node["loss"] else block)
        alive = {other["name"] for other in nodes[:i + 1] if last.get(other["name"], -1) > i}
        if alive == {node["name"]} and i + 2 < len(nodes):
            block, cuts = cuts, cuts + 1
    return blocks


def _layer(node: dict) -> Layer:
    """A layer that stands for a node and cannot be run."""
    inputs = len(node["reads"])
    kinds = {name: f"x{n}" for n, name in enumerate(node["reads"])} | {node["name"]: "y"} | {
        f"{node['name']}.{word}": f"also{n}" for n, word in enumerate(node["also"])}
    parts = [node["accumulate"], node["backward"]]
    reads = tuple(None if part is None else tuple(sorted({kinds[v] for v in part["reads"]})) for part in parts)
    shares = tuple(tuple(f"dx{n}" for n in node["shares"].get(word, ())) for word in SHARES)
    sizes = (node["bytes"], *node["also"].values())
    accumulate, backward = ({"seconds": 0.0, "scratch": 0} if part is None else part for part in parts)
    kind = _class(inputs, sizes, reads, shares, node["loss"], node["scratch"] > 0, backward["scratch"] > 0)
    return kind(float(node["seconds"]), float(backward["seconds"]), float(accumulate["seconds"]),
                max(node["scratch"], backward["scratch"]), bool(node["product"]))


@cache
def _class(inputs: int, sizes: tuple[int, ...], reads: tuple, shares: tuple, loss: bool, forward_room: bool,
           backward_room: bool) -> type[Layer]:
    """The class of layers of that many inputs, bytes of sites, and reads of backward; a signature is the data flow."""
    names = [f"x{n}" for n in range(inputs)]
    sites = tuple(Site(f"also{n - 1}" if n else "y", str(size), "of a graph", dtype="uint8") for n, size in enumerate(sizes))
    passes, adds, overwrites = shares
    dy = [] if loss else ["dy"]
    made = [f"d{name}" for name in names if f"d{name}" not in passes]
    room = ["room"] * backward_room
    methods = {"forward": _method(names, [*(site.name for site in sites), *["room"] * forward_room])}
    if made or room or reads[1]:
        methods["backward"] = _method([*dy, *reads[1]], [*made, *room, *["loss"] * loss])
    if reads[0] is not None:
        methods["accumulate"] = _method([*dy, *reads[0]], [])
    if loss:
        methods["evaluate"] = _method(names, ["loss"])
    fields = {"forward_seconds": float, "backward_seconds": float, "accumulate_seconds": float, "room_bytes": int,
              "is_product": bool}
    methods["forward_flops"] = lambda self, letters: float(self.is_product)
    body = {**methods, "sites": sites, "scratch": (ROOM,) if forward_room or backward_room else (), "passes": passes,
            "adds": adds, "overwrites": overwrites, "__annotations__": fields, "__module__": __name__}
    return dataclass(frozen=True)(type("Node", (Layer,), body))


def _method(reads: Sequence[str], writes: Sequence[str]):
    def run(*_, **__):
        raise PlanError("lab.Graph", "can be planned", "a call that would run it", "Plan with it; only programs run.")

    kinds = inspect.Parameter
    run.__signature__ = inspect.Signature([kinds("self", kinds.POSITIONAL_OR_KEYWORD),
                                           *(kinds(n, kinds.POSITIONAL_OR_KEYWORD) for n in reads),
                                           *(kinds(n, kinds.KEYWORD_ONLY) for n in writes)])
    return run
