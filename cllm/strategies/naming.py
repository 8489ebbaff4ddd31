"""How users name values: by group ("norm"), or by a value's name inside its block ("ln1.y")."""

from cllm.errors import ConfigError
from cllm.planner.ledger import Entry, Ledger
from cllm.plans.tree import Cache, Decision

GROUPS = ("norm", "act", "attn", "mlp", "residual")  # words that any model may be asked for, whether it has such values or not


def named(ledger: Ledger, words: tuple[str, ...], where: str, optional: bool) -> tuple[Entry, ...]:
    """The entries that the words stand for.

    Raises
    ------
    ConfigError
        When a word names nothing that can be chosen.
    """
    choice = [e for e in ledger.entries.values() if e.optional == optional and not e.is_block_output]
    known = {*(() if optional else GROUPS), *(w for e in choice for w in (e.group, e.key) if w)}
    if not isinstance(words, (tuple, list)) or not all(isinstance(w, str) and w in known for w in words):
        raise ConfigError(where, f"must be a tuple of names among {', '.join(sorted(known))}", repr(words),
                          "Choose groups or sites from these.")
    return tuple(e for e in choice if e.group in words or e.key in words)


def optional_ends(ledger: Ledger, words: tuple[str, ...]) -> tuple[tuple[str, Decision], ...]:
    """Decisions that keep the named optional values outside the blocks."""
    return tuple((e.name, Cache()) for e in ledger.entries.values() if e.block is None and e.optional and e.group in words)
