"""Rewriting a plan: what it caches is kept in another way."""

from dataclasses import replace

from cllm.errors import ConfigError
from cllm.planner.ledger import Ledger
from cllm.plans.plan import Plan
from cllm.plans.tree import Cache, Compress, Decision, Segment, Tape
from cllm.strategies.naming import named

SMALL_SHARE = 1 / 256  # a value this small beside its block's is not worth an operation of its own


def keep_as(decision: Decision, sites: tuple[str, ...] | None, base, micro_batch: int | None, ledger: Ledger, where: str,
            but_last: bool = False) -> Plan:
    """The plan of `base` with the named values that it caches kept by `decision` instead.

    Parameters
    ----------
    sites : tuple of str or None
        Groups, names inside a block, or "input"; None is all but row statistics, what is too small to matter, and for
        copies what is bfloat16 already.
    but_last : bool
        Leave the last block as it is.

    Raises
    ------
    ConfigError
        When `base` is no strategy or a site is unknown.
    """
    if not callable(getattr(base, "decide", None)) or isinstance(base, type):
        raise ConfigError(f"{where}(base=...)", "must be a strategy", repr(base), "Pass for example CacheAll().")
    if sites is not None and not isinstance(sites, (tuple, list)):
        raise ConfigError(f"{where}(sites=...)", "must be a tuple of names, or None", repr(sites), "Write ('act',).")
    plan = base.decide(ledger)
    if plan.script:
        raise ConfigError(f"{where}(base=...)", "must be a strategy that plans a tree", f"{base!r}, which writes a script",
                          "Choose another base: what a script keeps is as it was made.")
    last = ledger.n_blocks - 1 if but_last else -1
    inputs = sites is None or "input" in sites
    if sites is None:
        block_bytes = max((sum(e.nbytes for e in ledger.in_block(b)) for b in range(ledger.n_blocks)), default=0)
        chosen = {(e.block, e.key) for e in ledger.entries.values()
                  if e.role != "statistics" and e.nbytes > block_bytes * SMALL_SHARE
                  and not (e.narrow and isinstance(decision, Compress))}
    else:
        chosen = {(e.block, e.key) for e in named(ledger, tuple(s for s in sites if s != "input"), f"{where}(sites=...)",
                                                  optional=False)}

    def rewrite(node: Tape | Segment) -> Tape | Segment:
        if isinstance(node, Segment):
            mine = decision if inputs and node.input == Cache() and last not in node.blocks else node.input
            return Segment(tuple(rewrite(c) for c in node.children), mine)
        if node.block == last:
            return node
        decided = dict(node.decisions)
        for entry in ledger.in_block(node.block):
            if (entry.block, entry.key) in chosen and not entry.optional and decided.get(entry.key, Cache()) == Cache():
                decided[entry.key] = decision
        if inputs and decided.get("input", Cache()) == Cache():
            decided["input"] = decision
        return Tape(node.block, tuple(decided.items()))

    children = tuple(rewrite(c) for c in plan.children)
    return replace(plan, children=children, micro_batch=plan.micro_batch if micro_batch is None else micro_batch)
