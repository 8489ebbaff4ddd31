"""From files of examples to the batches that a model is tuned on."""

from cllm.finetuning.data import FineTuningData

__all__ = ["FineTuningData"]
