"""What the laws run over: families of models, small, and strategies that keep every bit; and which of their product.

A family is an architecture with the batch that it is tried on. Those of the package, each model that it reads from other
people's files among them, stand beside models as users write them: the examples', the contract's, rows of every kind. A new
one is a line in `FAMILIES`, and under all laws with it.
"""
import functools
import importlib.util
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import oracle
from own_model import Mine, Pictures
from row_models import Aimed, Grid, Kinds

import cllm
from cllm.layers import Rope
from cllm.models.adapted import Adapted
from cllm.models.crystalline import Crystalline
from cllm.models.gemma import Gemma
from cllm.models.llama import Llama, Multipliers
from cllm.models.neox import NeoX
from cllm.models.phi import Phi
from cllm.program.computing import with_compute
from cllm.program.dims import UNITS
from cllm.program.packed import packed as packed_form
from cllm.program.trained import with_trained

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name):
    """A file of examples/ as a module, loaded once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@dataclass(frozen=True)
class Family:
    """An architecture, B and T of its batches, optimizer steps of a run, the seed of its dropout, what is trained, whether its
    rows hold several documents, and what products in float32 take."""

    architecture: cllm.Architecture
    batch: int = 5  # divided by no micro-batch but 1: the last one is smaller
    time: int | None = 6
    steps: int = 2
    seed: int = 5
    trainable: tuple[str, ...] | None = None
    packed: bool = False
    compute: str = "float32"

    @property
    def program(self):
        """Of the architecture, with what is frozen, in the form for packed rows where it has them."""
        program = with_compute(with_trained(self.architecture.program, self.trainable), self.compute)
        return packed_form(program) if self.packed else program

    def model(self, dtype="float32", seed=0, scale=0.4):
        """With weights far from their start, so that every term of the model and every gradient counts."""
        model = cllm.Model(self.architecture, dtype=dtype, trainable=self.trainable,
                           compute=self.compute if dtype == "float32" else "float32")
        rng = np.random.default_rng(seed)
        for name, parameter in model.parameters.items():
            parameter[...] = rng.normal(0, scale, parameter.shape) + (model.program.parameters[name].init == "ones")
        return model

    def draw(self, seed=0, batch=None, time=None):
        """Feeds by name; of those that may be -1, two are."""
        batch, time = batch or self.batch, time or self.time
        feeds = self.architecture.example_batch(np.random.default_rng(seed + 1000), batch, time)
        rng = np.random.default_rng(seed)
        for name, array in feeds.items():
            if self.architecture.program.feeds[name].low == -1:
                feeds[name] = array = array.copy()
                array.reshape(-1)[rng.choice(array.size, min(2, array.size - 1), replace=False)] = -1
        return {**feeds, "positions": drawn_positions(rng, batch, time)} if self.packed else feeds

    def executor(self, model, strategy="cache", batch=None, time=None, num_threads=2):
        """An executor for its batches, or for others."""
        return cllm.Executor(model, batch or self.batch, time or self.time, strategy=strategy, num_threads=num_threads,
                             seed=self.seed, packed=self.packed)

    def train(self, strategy, dtype="float32", micro_batch=None, num_threads=1):
        """A few clipped AdamW steps: losses, gradients of each, weights at the end. Each step writes up to the peak."""
        model = self.model(dtype)
        micro_batch = micro_batch and min(micro_batch, self.batch)
        executor = self.executor(model, replace(strategy, micro_batch=micro_batch), num_threads=num_threads)
        optimizer, losses, gradients = cllm.AdamW(model, lr=1e-2), [], []
        assert executor.plan.exact
        for step in range(self.steps):
            model.zero_grad()
            losses.append(executor.loss_and_grad(**self.draw(step)))
            gradients.append({name: gradient.copy() for name, gradient in model.gradients.items()})
            losses.append(cllm.clip_grad_norm(model, 0.5))
            optimizer.step()
            assert executor.high_water_bytes == executor.memory.arena_bytes == executor.plan.arena_bytes
        return {"losses": losses, "gradients": gradients, "weights": dict(model.parameters)}


def drawn_positions(rng, batch, time):
    """Places in documents of drawn lengths, in every row others."""
    starts = rng.random((batch, time)) < 3 / time
    starts[:, 0] = True
    place = np.arange(time)
    return (place - np.maximum.accumulate(np.where(starts, place, 0), axis=1)).astype(np.int32)


def _gpt(**changes):
    return cllm.ModelConfig(**{**oracle.CONFIG, "n_layers": 4, **changes})


SMALL = dict(n_layers=3, d_model=8, d_ff=12)
TOKENS = dict(vocab_size=13, max_seq_len=9, **SMALL)
GROUPED = dict(n_heads=4, n_kv_heads=2, head_dim=4, **TOKENS)
LONG = dict(n_layers=2, d_model=24, d_ff=40, n_heads=3, vocab_size=67, max_seq_len=210, dropout=0.1)

FAMILIES = {
    "full tied": Family(_gpt()),
    "full untied relu": Family(_gpt(tied=False, activation="relu", qkv_bias=False)),
    "lattice tied, no out_proj": Family(_gpt(qkv="lattice", qkv_bias=False, out_proj=False)),
    "lattice untied tanh": Family(_gpt(qkv="lattice", tied=False, activation="tanh")),
    "full tied dropout": Family(_gpt(dropout=0.3), time=9),
    "lattice untied dropout, no out_proj": Family(_gpt(qkv="lattice", tied=False, dropout=0.1, out_proj=False)),
    "crystalline lattice": Family(_gpt(qkv="lattice", attention="crystalline", tied=False)),
    "crystalline full dropout": Family(_gpt(attention="crystalline", dropout=0.1, positions="prime")),
    "crystalline bias": Family(_gpt(attention="crystalline", crystalline=("bias",))),
    "spiral positions": Family(_gpt(positions="spiral")),
    "prime positions, untied mse": Family(_gpt(positions="prime", tied=False, loss="mse")),
    "crystalline": Family(Crystalline(13, 4, 16, 2, 24, 9)),
    "llama": Family(Llama(**GROUPED, pad=0, rope=Rope(theta=500.0, kind="llama3", factor=8.0, original=4))),
    "mistral": Family(Llama(**GROUPED, model_type="mistral", window=3)),
    "qwen2": Family(Llama(**GROUPED, model_type="qwen2", qkv_bias=True, tied=True, window=4, windowed=(False, True, True))),
    "qwen3": Family(Llama(**GROUPED, model_type="qwen3", qk_norm="head", tied=True, pad=2)),
    "smollm3": Family(Llama(**GROUPED, model_type="smollm3", turned=(True, False, True), tied=True)),
    "phi3": Family(Llama(**GROUPED, model_type="phi3", rotary=2, window=4)),
    "olmo2": Family(Llama(**GROUPED, model_type="olmo2", qk_norm="row", norm_after=True,
                          rope=Rope(kind="yarn", factor=4.0, original=4))),
    "llama with biases, norms of heads and a window": Family(Llama(
        **{**GROUPED, "head_dim": 6}, rotary=4, qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm="head", window=3,
        windowed=(True, False, True), turned=(False, True, True))),
    "granite": Family(Llama(**GROUPED, model_type="granite", multipliers=Multipliers(3.0, 0.4, 0.22, 2.5), tied=True)),
    "gemma2": Family(Gemma(**GROUPED, window=3, windowed=(True, False, True), query_scalar=5, attn_softcap=2.0,
                           logit_softcap=3.0, pad=0)),
    "gemma3_text": Family(Gemma(**{**GROUPED, "n_kv_heads": 1, "head_dim": 6}, model_type="gemma3_text", window=2,
                                windowed=(True, False, True), rope=Rope(1e6), local_rope=Rope(1e4), qk_norm=True,
                                attention_bias=True, tied=False)),
    "phi": Family(Phi(n_heads=4, n_kv_heads=2, rotary=2, **TOKENS)),
    "phi, tied": Family(Phi(n_heads=4, rotary=0, tied=True, activation="relu", pad=1, **TOKENS)),
    "gpt_neox": Family(NeoX(n_heads=2, rotary=2, **TOKENS)),
    "gpt_neox, one after the other": Family(NeoX(n_heads=1, rotary=4, parallel=False, tied=True, **TOKENS)),
    # T = 130 crosses the tiles of attention, 390 rows those of the products; a cut of the batch moves every tile
    "longer than a tile": Family(_gpt(**LONG), 3, 130, 1),
    "crystalline, longer than a tile": Family(_gpt(**LONG, attention="crystalline"), 3, 130, 1),
    "gpt, frozen but for the middle": Family(_gpt(dropout=0.3, positions="clock"), trainable=(
        "blocks.1.ln2.bias", "blocks.1.mlp.fc1.*", "blocks.2.*.bias", "ln_f.weight")),
    "gpt with adapters": Family(Adapted(_gpt(dropout=0.1), 2, targets=("q", "v", "fc2"), dropout=0.3), trainable=("*lora*",)),
    "llama with adapters": Family(Adapted(Llama(**GROUPED, model_type="phi3"), 3, targets=("qkv", "up", "o"), rslora=True),
                                  trainable=("blocks.[12].*lora*", "blocks.2.ln?.weight")),
    # several documents a row
    "packed": Family(_gpt(), time=9, packed=True),
    "packed, fixed positions, dropout": Family(_gpt(positions="clock", tied=False, dropout=0.2), time=9, packed=True),
    "packed crystalline": Family(_gpt(qkv="lattice", attention="crystalline"), time=9, packed=True),
    "packed mistral": Family(Llama(**GROUPED, model_type="mistral", window=3), time=9, packed=True),
    "packed gemma2": Family(Gemma(**GROUPED, window=3, windowed=(True, False, True), attn_softcap=2.0), time=9, packed=True),
    "packed, longer than a tile": Family(_gpt(**LONG), 3, 130, 1, packed=True),
    "in bfloat16": Family(_gpt(dropout=0.1), compute="bfloat16"),
    "in bfloat16, grouped, turned, norms of heads": Family(Llama(**GROUPED, model_type="qwen3", qk_norm="head", rotary=2),
                                                           compute="bfloat16"),
    "in bfloat16, longer than a tile": Family(_gpt(**LONG, qkv="lattice"), 3, 130, 1, compute="bfloat16"),
    "in bfloat16 with adapters": Family(Adapted(_gpt(dropout=0.1), 2, targets=("q", "v", "fc2"), dropout=0.3),
                                        trainable=("*lora*", "blocks.2.*.bias"), compute="bfloat16"),
    "in bfloat16, packed": Family(Llama(**GROUPED, model_type="mistral", window=3), time=9, packed=True, compute="bfloat16"),
    "in bfloat16, in units": Family(_gpt(qkv="lattice", dropout=0.1, max_seq_len=40, n_layers=2), 5, 35, 1, compute=UNITS),
    "encoder": Family(example("encoder").Encoder(n_heads=2, **TOKENS)),
    "mixer": Family(example("mixer").Mixer(side=8, classes=3, **SMALL), time=None),
    "mixture": Family(example("mixture").Mixture(n_heads=2, experts=3, **TOKENS)),
    "convolutional": Family(example("your_own_layer").Convolutional(width=3, **TOKENS)),
    "parallel": Family(example("your_own_model").Parallel(n_heads=2, **TOKENS)),
    "mine": Family(Mine()),
    "pictures": Family(Pictures(), time=None),
    "rows of every kind": Family(Kinds(dropout=0.3)),
    "no blocks": Family(Grid(), time=None),
    "aimed at rows of their own": Family(Aimed(), time=None),
}
CAUSAL = [name for name, family in FAMILIES.items() if family.architecture.causal and not family.packed]
PACKED = [name for name, family in FAMILIES.items() if family.packed]


@dataclass(frozen=True)
class Midway:
    """The fastest plan within half of what keeping everything takes beyond the least; the same for every dtype. The cut of
    the batch is the test's: planned for it as well, it would take four times as long."""

    micro_batch: int | None = None

    def decide(self, ledger):
        key = ledger._program.digest, ledger.workload.batch, ledger.workload.time
        if key not in _MIDWAY:
            frontier = ledger.frontier(MIXED)
            ends = [ledger.evaluate(frontier.plan(index)).total_bytes for index in (0, len(frontier) - 1)]
            _MIDWAY[key] = replace(cllm.MemoryBudget(sum(ends) // 2, MIXED).decide(ledger), limit=None)
        return replace(_MIDWAY[key], micro_batch=self.micro_batch or _MIDWAY[key].micro_batch)


@dataclass(frozen=True)
class Limited:
    """A strategy under a limit: half of what keeping everything takes beyond recomputing each block, or where it cannot do
    that, more than keeping everything takes."""

    kind: type
    micro_batch: int | None = None

    def decide(self, ledger):
        key = self, ledger._program.digest, ledger.workload.batch, ledger.workload.time
        if key not in _LIMITED:
            most, least = (ledger.evaluate(s(micro_batch=self.micro_batch).decide(ledger)).total_bytes
                           for s in (cllm.CacheAll, cllm.RecomputeAll))
            try:
                plan = self.kind(min(most, (most + least) // 2), micro_batch=self.micro_batch).decide(ledger)
            except cllm.BudgetError:
                plan = self.kind(2 * most, micro_batch=self.micro_batch).decide(ledger)
            _LIMITED[key] = replace(plan, limit=None)
        return _LIMITED[key]


_LIMITED: dict[tuple, cllm.Plan] = {}
SOLVED = 20  # steps of a program up to which an integer program is solved within a test
MIXED = ("cache", "recompute")
_MIDWAY: dict[tuple, cllm.Plan] = {}


# Every strategy that keeps all bits, for a model of any number of blocks; `lossless` in a test stands for each of these.
LOSSLESS = {
    "cache": cllm.CacheAll(),
    "cache+optional": cllm.CacheAll(also=("probs", "logits")),
    "recompute": cllm.RecomputeAll(),
    "every:1": cllm.EveryNth(1),
    "every:2": cllm.EveryNth(2),
    "every:3": cllm.EveryNth(3),
    "sqrt": cllm.Sqrt(),
    "binomial:1": cllm.Binomial(1),
    "binomial:2": cllm.Binomial(2),
    "binomial:3": cllm.Binomial(3),
    "selective": cllm.Selective(),
    "selective:norm": cllm.Selective(("norm",)),
    "selective:act": cllm.Selective(("act",)),
    "selective:attn": cllm.Selective(("attn",)),
    "selective:mlp": cllm.Selective(("mlp",)),
    "selective:all": cllm.Selective(("norm", "act", "attn", "mlp")),
    "chen": Limited(cllm.ChenGreedy),
    "rotor": Limited(cllm.Rotor),
    "dtr": Limited(cllm.DTR),
    "korthikanti": cllm.KorthikantiSelective(),
    "knapsack:0.5": cllm.Knapsack(0.5),
    "products": cllm.KeepProducts(),
    "per block": cllm.PerBlock({range(0, 1): cllm.RecomputeAll(), range(1, 2): cllm.Selective()}),  # of two blocks or more
}
_SPILLED = tempfile.TemporaryDirectory()
STRATEGIES = {**LOSSLESS, "budget": Midway(), "spill": cllm.Spill(_SPILLED.name), "checkmate": Limited(cllm.Checkmate)}

CUTS = [(None, 2), (None, 3), (1, 1), (1, 3), (2, 2), (3, 1), (3, 2), (5, 1)]  # micro-batch, threads
DTYPES = ["float32", "float64"]
CELLS = [(dtype, cut) for dtype in DTYPES for cut in CUTS]  # of a pair: all for the whole product


def fitting(strategy, family):
    """The strategy as that family's model can be asked for it, or None."""
    program = family.program
    if isinstance(strategy, cllm.PerBlock) and program.n_blocks < 2:
        return None
    if isinstance(strategy, Limited) and strategy.kind is cllm.Checkmate and len(program.steps) > SOLVED:
        return None
    if isinstance(strategy, cllm.CacheAll) and strategy.also:
        optional = {value.group for value in program.values.values() if value.optional and program.readers[value.name]}
        return replace(strategy, also=tuple(word for word in strategy.also if word in optional))
    return strategy


@functools.cache
def pairs(whole=True):
    """Names of every family with every strategy that fits it; or of each family with every third, and as many more as let
    every kind of layer meet every strategy."""
    fit = [(f, s) for f in FAMILIES for s in STRATEGIES if fitting(STRATEGIES[s], FAMILIES[f]) is not None]
    if whole:
        return fit
    rows, columns = list(FAMILIES), list(STRATEGIES)
    chosen = {(f, s) for f, s in fit if (rows.index(f) + columns.index(s)) % 3 == 0 or s == "checkmate"}  # it has few
    met = {(kind, s) for f, s in chosen for kind in kinds(f)}
    for family, strategy in fit[::-1]:  # the last are the rarest
        new = {(kind, strategy) for kind in kinds(family)} - met
        if new:
            chosen.add((family, strategy))
            met |= new
    return [pair for pair in fit if pair in chosen]


@functools.cache
def kinds(family):
    """What a family's layers are: their classes; those in packed rows, in bfloat16 and partly frozen are others."""
    mine = FAMILIES[family]
    return {(type(step.layer), mine.packed, mine.compute, mine.trainable is None) for step in mine.program.steps}


def cells(family, strategy, whole):
    """The dtypes and cuts on which a pair is tried: all, or one, so chosen that over the pairs each family meets every cut and
    every dtype, and each strategy every cut in every dtype."""
    if whole or strategy == "checkmate":
        return CELLS
    return [CELLS[(5 * list(FAMILIES).index(family) + 3 * list(STRATEGIES).index(strategy)) % len(CELLS)]]
