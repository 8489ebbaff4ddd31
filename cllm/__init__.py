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
from cllm.executor import Executor  # noqa: E402
from cllm.gradcheck import gradcheck  # noqa: E402
from cllm.models.gpt import GPT, load  # noqa: E402
from cllm.optim import SGD, AdamW, clip_grad_norm  # noqa: E402
from cllm.planning import plan  # noqa: E402
from cllm.plans import Estimate, Plan
from cllm.products import accumulate_weight_gradient, set_num_threads  # noqa: E402
from cllm.segments import Cache, Compress, Recompute, Segment, Tape  # noqa: E402
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

__all__ = [
    "AdamW", "Binomial", "BudgetError", "BuildError", "Cache", "CacheAll", "CllmError", "Compress", "Compressed",
    "ConfigError", "DataError", "DeclarationError", "DtypeError", "Estimate", "EveryNth", "Executor", "GPT",
    "LayoutError", "MemoryBudget", "ModelConfig", "NonFiniteError", "OptimizerError", "PerBlock", "Plan",
    "PlanError", "RebuildError", "Recompute", "RecomputeAll", "SGD", "Segment", "Selective", "ShapeError",
    "SnapshotError", "Spill", "SpillError", "Sqrt", "Tape", "TokenError", "accumulate_weight_gradient",
    "clip_grad_norm", "gradcheck", "load", "plan", "set_num_threads", "versions",
]
