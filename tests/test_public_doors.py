"""Every number at every public door: what is none is refused by a CllmError, and by nothing else."""
import numpy as np
import oracle
import pytest

import cllm
from cllm import corpus
from cllm.optim.rate import Rate

ODD = {"two": np.array([1, 2]), "one in one": np.array([[1]]), "digits": "3", "bytes": b"3", "list": [3], "dict": {},
       "object": object(), "nan": float("nan"), "complex": 1j, "huge": 10**400, "word": np.array("x"),
       "time": np.datetime64(1, "s"), "class": int, "negative": -(2**70), "bool": np.bool_(True), "set": {1},
       "empty": np.array([])}
NEVER = ("object", "complex", "time", "class", "set")  # right nowhere
TOKENS = np.random.default_rng(0).integers(0, 13, 200)
BATCH = TOKENS[:18].reshape(2, 9)
MODEL = cllm.GPT(cllm.ModelConfig(**oracle.CONFIG))


def trainer(**settings):
    small = {"seq_len": 8, "batch_size": 1, "steps": 1}
    return cllm.Trainer(MODEL, TOKENS, **{**small, **settings})


DOORS = {
    "ModelConfig": (lambda **n: cllm.ModelConfig(**{**oracle.CONFIG, **n}), sorted(oracle.CONFIG)),
    "preset": (lambda name: cllm.ModelConfig.preset(name), ["name"]),
    "GPT": (lambda **n: cllm.GPT(MODEL.config, **n), ["seed", "dtype"]),
    "plan": (lambda **n: cllm.plan(MODEL, **{"batch_size": 2, "seq_len": 8, "strategy": "cache", **n}),
             ["batch_size", "seq_len", "strategy", "optimizer", "dtype", "num_threads"]),
    "Executor": (lambda **n: cllm.Executor(MODEL, **{"batch_size": 2, "seq_len": 8, **n}),
                 ["batch_size", "seq_len", "strategy", "optimizer", "num_threads", "seed", "determinism_check"]),
    "loss_and_grad": (lambda n: cllm.Executor(MODEL, 2, 8).loss_and_grad(BATCH[:, 1:], BATCH[:, 1:], n), ["num_targets"]),
    "AdamW": (lambda **n: cllm.AdamW(MODEL, **n), ["lr", "betas", "eps", "weight_decay"]),
    "SGD": (lambda **n: cllm.SGD(MODEL, **{"lr": 0.1, **n}), ["lr", "momentum", "weight_decay"]),
    "clip": (lambda n: cllm.clip_grad_norm(MODEL, n), ["max_norm"]),
    "generate": (lambda **n: cllm.generate(MODEL, [1], **{"max_new_tokens": 2, **n}),
                 ["max_new_tokens", "temperature", "top_k", "top_p", "seed", "among"]),
    "tokens": (lambda n: cllm.generate(MODEL, n, 1), ["tokens"]),
    "gradcheck": (lambda **n: cllm.gradcheck(MODEL, BATCH[:1, 1:3], BATCH[:1, 1:3], **{"elements": 1, **n}),
                  ["elements", "seed"]),
    "Rate": (lambda **n: Rate(**{"lr": 0.1, "total": 5, **n}), ["lr", "total", "warmup", "min_lr", "shape"]),
    "Trainer": (trainer, [f for f in cllm.TrainSettings.__dataclass_fields__ if f != "sample_prompt"]),
    "Windows": (lambda **n: corpus.Windows(TOKENS, **{"seq_len": 8, **n}), ["seq_len", "seed"]),
    "batch": (lambda **n: corpus.batch(TOKENS, **{"batch_size": 1, "seq_len": 4, "step": 0, **n}),
              ["batch_size", "seq_len", "step", "seed"]),
    "split": (lambda n: corpus.split(TOKENS, n, 8), ["fraction"]),
    "MemoryBudget": (lambda **n: cllm.MemoryBudget(**{"limit": "1GB", **n}), ["limit", "allow", "max_grad_error"]),
    "CacheAll": (lambda **n: cllm.plan(MODEL, 2, 8, cllm.CacheAll(**n)), ["micro_batch", "also"]),
    "EveryNth": (lambda **n: cllm.plan(MODEL, 2, 8, cllm.EveryNth(**{"n": 1, **n})), ["n", "micro_batch"]),
    "Binomial": (lambda **n: cllm.plan(MODEL, 2, 8, cllm.Binomial(**{"slots": 1, **n})), ["slots", "micro_batch"]),
    "Selective": (lambda **n: cllm.plan(MODEL, 2, 8, cllm.Selective(**n)), ["recompute", "micro_batch"]),
    "Compressed": (lambda **n: cllm.plan(MODEL, 2, 8, cllm.Compressed(**n)),
                   ["dtype", "sites", "base", "rounding", "micro_batch"]),
    "Spill": (lambda **n: cllm.plan(MODEL, 2, 8, cllm.Spill(**{"directory": "/x", **n})),
              ["directory", "sites", "base", "micro_batch"]),
    "PerBlock": (lambda **n: cllm.plan(MODEL, 2, 8, cllm.PerBlock(**{"choices": {}, **n})),
                 ["choices", "default", "micro_batch"]),
    "set_num_threads": (lambda n: cllm.set_num_threads(n), ["num_threads"]),
    "BPETokenizer": (lambda n: cllm.BPETokenizer.train(["text"], n), ["vocab_size"]),
    "decode": (lambda n: cllm.ByteTokenizer().decode(n), ["tokens"]),
    "encode": (lambda n: cllm.ByteTokenizer().encode(n), ["text"]),
    "load": (cllm.load, ["path"]), "save": (MODEL.save, ["path"]), "from_json": (cllm.Plan.from_json, ["path"]),
    "to_json": (cllm.plan(MODEL, 1, 4).to_json, ["path"]), "from_dict": (cllm.Plan.from_dict, ["data"]),
}
BY_POSITION = {"preset", "loss_and_grad", "clip", "tokens", "split", "set_num_threads", "BPETokenizer", "decode", "encode",
               "load", "save", "from_json", "to_json", "from_dict"}


@pytest.mark.parametrize("door", DOORS)
def test_what_is_no_number_is_refused_and_nothing_else_is_raised(door, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, arguments = DOORS[door]
    before = cllm.versions()["threads"]
    for odd, value in ODD.items():
        refused = []
        for name in arguments:
            try:
                call(value) if door in BY_POSITION else call(**{name: value})
            except cllm.CllmError as error:
                assert error.where and error.must and error.got and error.do, (odd, name)
                refused.append(name)
            finally:
                cllm.set_num_threads(before)
        if odd in NEVER:
            assert refused == arguments, odd
