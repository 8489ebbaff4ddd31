"""cllm trains transformer language models on a CPU inside the memory the user has.

For every activation that backward needs, a strategy decides whether it is kept or recomputed; the peak is known to the
byte before the first step, and loss and gradients are equal to the last bit under every lossless strategy.
"""

from cllm.dispatch import choose_path as _choose_path
from cllm.threads import cores as _cores  # noqa: F401
from cllm.threads.waiting import bounded_spinning as _bounded_spinning

__path__[:0] = _choose_path(__path__[0])  # where the import system finds the kernels of this processor
with _bounded_spinning():
    from cllm.threads import forks as _forks  # noqa: F401

from cllm._build_info import VERSION as __version__  # noqa: E402, F401
from cllm.about import versions  # noqa: E402
from cllm.comparison.compare import Comparison, compare  # noqa: E402
from cllm.errors import (  # noqa: E402
    BudgetError,
    BuildError,
    CllmError,
    ConfigError,
    DataError,
    DeclarationError,
    DtypeError,
    LayoutError,
    NonFiniteError,
    OptimizerError,
    PlanError,
    RebuildError,
    ShapeError,
    SnapshotError,
    SpillError,
    TokenError,
    TornError,
)
from cllm.executor.executor import Executor  # noqa: E402
from cllm.finetuning import FineTuningData  # noqa: E402
from cllm.models.adapter_files import load_adapter, save_adapter  # noqa: E402
from cllm.models.adapters import add_lora, merge_adapter  # noqa: E402
from cllm.models.architecture import Architecture  # noqa: E402
from cllm.models.families import load  # noqa: E402
from cllm.models.gguf import from_gguf  # noqa: E402
from cllm.models.gpt import GPT, ModelConfig  # noqa: E402
from cllm.models.model import Model  # noqa: E402
from cllm.models.pretrained import from_pretrained  # noqa: E402
from cllm.optim import SGD, Adafactor, Adam, AdamW, AdamW8bit, Grouped, clip_each_grad_norm, clip_grad_norm  # noqa: E402
from cllm.optim.rate import Rate  # noqa: E402
from cllm.planning import plan, print_saved_values  # noqa: E402
from cllm.plans.plan import Estimate, Plan  # noqa: E402
from cllm.plans.script import Script  # noqa: E402
from cllm.plans.tree import Cache, Compress, Recompute, Segment, Tape  # noqa: E402
from cllm.program.declare import Feed, Param, Scratch, Site, Table  # noqa: E402
from cllm.program.layer import Layer  # noqa: E402
from cllm.program.program import Program  # noqa: E402
from cllm.program.wiring import Wiring  # noqa: E402
from cllm.proof.gradcheck import gradcheck  # noqa: E402
from cllm.proof.gradient_error import gradient_error, plan_within_error  # noqa: E402
from cllm.sampling import generate  # noqa: E402
from cllm.strategies import (  # noqa: E402
    DTR,
    Binomial,
    CacheAll,
    Checkmate,
    ChenGreedy,
    Compressed,
    EveryNth,
    KeepProducts,
    Knapsack,
    KorthikantiSelective,
    MemoryBudget,
    PerBlock,
    RecomputeAll,
    Rotor,
    Selective,
    Spill,
    Sqrt,
)
from cllm.threads import caches as _caches  # noqa: E402, F401 (blocks of products are cut for them from now on)
from cllm.threads.counts import set_num_threads  # noqa: E402
from cllm.tokenizer import BPETokenizer, ByteTokenizer, load_tokenizer  # noqa: E402
from cllm.train import Callback, Trainer, TrainSettings  # noqa: E402
from cllm.weight_gradient import accumulate_weight_gradient  # noqa: E402

__all__ = [
    "Adafactor", "Adam", "AdamW", "AdamW8bit", "Architecture", "BPETokenizer", "Binomial", "BudgetError", "BuildError",
    "ByteTokenizer", "Cache",
    "CacheAll", "Callback", "Checkmate", "ChenGreedy", "CllmError", "Comparison", "Compress", "Compressed",
    "ConfigError", "DTR", "DataError", "DeclarationError", "DtypeError", "Estimate", "EveryNth", "Executor", "Feed",
    "FineTuningData", "GPT", "Grouped", "KeepProducts", "Knapsack", "KorthikantiSelective", "Layer", "LayoutError",
    "MemoryBudget", "Model", "ModelConfig", "NonFiniteError", "OptimizerError", "Param", "PerBlock", "Plan",
    "PlanError", "Program", "Rate", "RebuildError", "Recompute", "RecomputeAll", "Rotor", "SGD", "Scratch", "Script",
    "Segment", "Selective", "ShapeError", "Site", "SnapshotError", "Spill", "SpillError", "Sqrt", "Table", "Tape",
    "TokenError", "TornError", "TrainSettings", "Trainer", "Wiring", "accumulate_weight_gradient", "add_lora",
    "clip_each_grad_norm", "clip_grad_norm", "compare", "from_gguf", "from_pretrained", "generate", "gradcheck",
    "gradient_error", "load", "load_adapter", "load_tokenizer", "merge_adapter", "plan", "plan_within_error",
    "print_saved_values", "save_adapter", "set_num_threads", "versions",
]


def __getattr__(name: str):
    """Rooms that few ask for are imported when they are asked for: `cllm.distributed`, `cllm.lab`, `cllm.testing`."""
    if name in ("distributed", "lab", "testing"):
        from importlib import import_module

        return import_module(f"cllm.{name}")
    raise AttributeError(f"module 'cllm' has no attribute {name!r}")
