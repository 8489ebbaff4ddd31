"""Training that can be relied on: `Trainer`, its settings, and what it tells as it goes on."""

from cllm.train.callbacks import Callback, MetricsFile, read_lines
from cllm.train.data import Data, load_data, reload_data, snapshot_tokenizer, tokenizer_for
from cllm.train.progress import Bar, Lines, progress
from cllm.train.result import TrainResult
from cllm.train.settings import TrainSettings
from cllm.train.trainer import Trainer

__all__ = ["Bar", "Callback", "Data", "Lines", "MetricsFile", "TrainResult", "TrainSettings", "Trainer", "load_data",
           "progress", "read_lines", "reload_data", "snapshot_tokenizer", "tokenizer_for"]
