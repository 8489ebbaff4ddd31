"""A model that cllm saved in the form of its family, as transformers trains it: PyTorch's side of real models.

Needs PyTorch, transformers and NumPy, and PEFT for adapters; not cllm.
"""

from pathlib import Path


def loaded(directory: str):
    """The model in float32, with the adapters of its folder ``adapter`` by PEFT where there is one.

    A `torch.nn.Module` with the calls of `steps.build`'s: attention is PyTorch's fused one, the loss is of the
    logits of all rows, as transformers' own.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM

    class Pretrained(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
            self.inner.config.use_cache = False
            if (Path(directory) / "adapter").is_dir():
                from peft import PeftModel

                self.inner = PeftModel.from_pretrained(self.inner, str(Path(directory) / "adapter"), is_trainable=True)
            self.inner.train()

        @property
        def checkpointed(self) -> bool:
            return self.inner.get_base_model().is_gradient_checkpointing if hasattr(self.inner, "get_base_model") else (
                self.inner.is_gradient_checkpointing)

        @checkpointed.setter
        def checkpointed(self, wanted: bool) -> None:
            if wanted:
                self.inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

        def forward(self, tokens, targets, divisor):
            logits = self.inner(input_ids=tokens).logits
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.reshape(-1), reduction="sum") / divisor

    return Pretrained()
