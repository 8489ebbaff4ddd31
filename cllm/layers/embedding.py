"""Token and position embedding: y[b, t] = scale weight[token[b, t]] + positions[t]."""

from dataclasses import dataclass

from cllm import _kernels as kernels
from cllm.layers.positions import position_table
from cllm.program.declare import Feed, Param, Site, Table
from cllm.program.layer import Layer


def _table(layer):
    return position_table(layer.kind, layer.P, layer.C)


@dataclass(frozen=True, slots=True)
class Embedding(Layer):
    """V rows of C channels, and P rows of positions: `kind` "learned", a fixed table's name, or "none".

    `pad` is a token whose row no lookup trains, as transformers' models have it; None is none. `packed`: row n is in the place
    of its document that the feed says.
    """

    V: int
    C: int
    P: int
    kind: str = "learned"
    std: float = 0.02
    pad: int | None = None
    scale: float = 1.0
    packed: bool = False

    sites = (Site("y", "N C", "embedded tokens", group="residual", role="stream"),)
    costless = ("std", "pad")
    params = (Param("weight", "V C", constant="pad", stored=True),
              Param("positions", "P C", when="is_learned", by_position=True))
    in_order = True
    spares = {"dweight": (), "dpositions": ()}
    tables = (Table("table", "P C", _table, when="is_fixed", by_position=True),)
    feeds = (Feed("places", "N", "int32", 0, "P", when="reads_places", called="positions"),)

    @property
    def is_learned(self) -> bool:
        return self.kind == "learned"

    @property
    def is_fixed(self) -> bool:
        return self.kind not in ("learned", "none")

    @property
    def reads_places(self) -> bool:
        return self.packed and self.kind != "none"

    def forward(self, tokens, weight, positions, table, places=None, *, y):
        rows = positions if table is None else table
        kernels.embedding_forward(tokens.reshape(-1), weight, rows, tokens.shape[1], self.scale, places, y=y)

    def accumulate(self, dy, tokens, places=None, *, dweight, dpositions):
        kept = None if self.pad is None or dweight is None else dweight[self.pad].copy()
        kernels.embedding_backward(tokens.reshape(-1), dy, tokens.shape[1], self.scale, places, dweight=dweight,
                                   dpositions=dpositions)
        if kept is not None:
            dweight[self.pad] = kept
