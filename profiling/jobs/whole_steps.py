"""What the measurements of whole steps share: shapes, ways to keep gradients and states, and budgets."""

from jobs import models

SMALL = {"vocab_size": 256, "d_model": 512, "n_heads": 8, "d_ff": 2048, "n_layers": 6}
LLAMA_135M = {"vocab_size": 49152, "n_layers": 30, "d_model": 576, "n_heads": 9, "n_kv_heads": 3, "head_dim": 64, "d_ff": 1536,
              "max_seq_len": 2048, "tied": True}
LLAMA_1700M = {"vocab_size": 49152, "n_layers": 24, "d_model": 2048, "n_heads": 32, "n_kv_heads": 32, "head_dim": 64,
               "d_ff": 8192, "max_seq_len": 2048, "tied": True}
CLASSIC = ["cache", "recompute", "micro_batch"]
BUDGETS = {"activations alone": CLASSIC, "states on disk": [*CLASSIC, "spill_states"],
           "gradients in the arena": [*CLASSIC, "update_in_backward"],
           "both": [*CLASSIC, "spill_states", "update_in_backward"],
           "both, activations on disk": [*CLASSIC, "spill_states", "update_in_backward", "spill"]}
PLAIN = "plain"


def ways(directory: str) -> dict[str, dict]:
    """Arguments of `peers/cllm/whole_step.py` by name of the way; states go to `directory`."""
    there = f"disk:{directory}"
    return {PLAIN: {}, "gradients in the arena": {"update_in_backward": True}, "states on disk": {"states": there},
            "both": {"update_in_backward": True, "states": there},
            "both, recomputed": {"update_in_backward": True, "states": there, "strategy": "recompute"}}


def llama(sizes: dict, settings: list[str] = ()) -> dict:
    """A LLaMA of these sizes, with single settings changed, as `models.asked` tells of models."""
    from cllm.models.llama import Llama
    from cllm.models.settings import settings_of

    return models.told(Llama(**{**sizes, **settings_of(Llama, settings)}))
