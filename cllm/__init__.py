"""cllm trains transformer language models on a CPU inside the memory the user has.

For every activation that backward needs, a strategy decides whether it is kept or recomputed; the peak is known to the
byte before the first step, and loss and gradients are equal to the last bit under every lossless strategy.
"""

from cllm.platform_guard import check_cpu as _check_cpu

_check_cpu()

from cllm.about import versions  # noqa: E402
from cllm.config import ModelConfig  # noqa: E402
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
)
from cllm.executor.executor import Executor  # noqa: E402
from cllm.models.gpt import GPT, load  # noqa: E402
from cllm.optim import SGD, Adam, AdamW, Grouped, clip_each_grad_norm, clip_grad_norm  # noqa: E402
from cllm.optim.rate import Rate  # noqa: E402
from cllm.planning import plan, print_saved_values  # noqa: E402
from cllm.plans.plan import Estimate, Plan  # noqa: E402
from cllm.plans.tree import Cache, Compress, Recompute, Segment, Tape  # noqa: E402
from cllm.proof.gradcheck import gradcheck  # noqa: E402
from cllm.proof.gradient_error import gradient_error, plan_within_error  # noqa: E402
from cllm.sampling import generate  # noqa: E402
from cllm.strategies import (  # noqa: E402
    Binomial,
    CacheAll,
    Compressed,
    EveryNth,
    MemoryBudget,
    PerBlock,
    RecomputeAll,
    Selective,
    Spill,
    Sqrt,
)
from cllm.tokenizer import BPETokenizer, ByteTokenizer  # noqa: E402
from cllm.train import Callback, Trainer, TrainSettings  # noqa: E402
from cllm.weight_gradient import accumulate_weight_gradient, set_num_threads  # noqa: E402

__all__ = [
    "Adam", "AdamW", "BPETokenizer", "Binomial", "BudgetError", "BuildError", "ByteTokenizer", "Cache",
    "CacheAll", "Callback", "CllmError", "Compress", "Compressed", "ConfigError", "DataError", "DeclarationError",
    "DtypeError", "Estimate", "EveryNth", "Executor", "GPT", "Grouped", "LayoutError", "MemoryBudget",
    "ModelConfig", "NonFiniteError", "OptimizerError", "PerBlock", "Plan", "PlanError", "Rate", "RebuildError",
    "Recompute", "RecomputeAll", "SGD", "Segment", "Selective", "ShapeError", "SnapshotError", "Spill",
    "SpillError", "Sqrt", "Tape", "TokenError", "TrainSettings", "Trainer", "accumulate_weight_gradient",
    "clip_each_grad_norm", "clip_grad_norm", "generate", "gradcheck", "gradient_error", "load", "plan",
    "plan_within_error", "print_saved_values",
    "set_num_threads", "versions",
]
