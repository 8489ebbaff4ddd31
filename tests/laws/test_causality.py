"""Law 9: in families that say so a later token changes no earlier output; in none does an example change another."""
from dataclasses import dataclass

import numpy as np
import oracle
import pytest
from families import CAUSAL, FAMILIES, Family, example
from own_model import Mine

import cllm
from cllm.sampling.decoder import Decoder, decodes_incrementally


def check_causal(family, dtype="float32"):
    """Outputs before a position are those of the tokens before it, and every later one heeds a change."""
    T, vocabulary = family.architecture.max_seq_len, family.architecture.vocab_size
    ex = family.executor(family.model(dtype), batch=2, time=T)
    tokens = family.draw(batch=2, time=T)["tokens"]
    before = ex.logits(tokens)
    for at in (1, T // 2, T - 1):
        changed = tokens.copy()
        changed[0, at:] = (changed[0, at:] + 1 + np.arange(T - at) % 5) % vocabulary
        after = ex.logits(changed)
        oracle.assert_same_bits(after[0, :at], before[0, :at], f"earlier than {at}: ")
        oracle.assert_same_bits(after[1], before[1], "the other example: ")
        assert (after[0, at:] != before[0, at:]).any(-1).all(), "some later output ignores the tokens before it"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_later_token_changes_no_bit_of_an_earlier_output(name, dtype):
    check_causal(FAMILIES[name], dtype)


def test_a_family_that_looks_ahead_is_found():
    """Law 12."""
    @dataclass(frozen=True)
    class Ahead(Mine):
        def wire(self, w):
            x = w.add("embed", cllm.layers.Embedding(V=self.vocab_size, C=12, P=self.max_seq_len, kind="none"))
            x = w.add("attn", example("encoder").BothWays(H=1, D=4, C=4), qkv=x)
            w.add("head", cllm.layers.CrossEntropyHead(V=self.vocab_size, C=4), x=x)

    with pytest.raises(AssertionError, match="earlier than 1: "):
        check_causal(Family(Ahead()))


@pytest.mark.parametrize("name", FAMILIES)
def test_no_example_changes_another(name):
    family = FAMILIES[name]
    ex = family.executor(family.model())
    steps = family.program.steps
    read = {step.feeds[name] for step in steps for name in step.layer.forward_flow.reads if name in step.feeds}
    feeds, others = ({n: array for n, array in family.draw(seed).items() if n in read} for seed in (0, 1))
    before = ex.logits(**feeds)
    after = ex.logits(**{n: np.concatenate([others[n][:2], array[2:]]) for n, array in feeds.items()})
    oracle.assert_same_bits(after[2:], before[2:])
    assert (after[:2] != before[:2]).any()


def test_a_token_reaches_every_later_output(new_model):
    """The last row sees the first token through attention alone; an attention that is the identity fails here."""
    config = oracle.CONFIG
    ex = cllm.Executor(new_model(config), batch_size=1, seq_len=9, strategy=cllm.CacheAll())
    tokens, _ = oracle.draw_batch(config, 1, 9)
    changed = tokens.copy()
    changed[0, 0] = (changed[0, 0] + 1) % config["vocab_size"]
    assert (ex.logits(changed) != ex.logits(tokens)).any(-1).all()


def test_a_shorter_batch_has_the_same_outputs(new_model):
    """Executors of another length or batch give the same bits for the rows they share."""
    model = new_model({**oracle.CONFIG, "max_seq_len": 120}, "float32")
    tokens, _ = oracle.draw_batch(oracle.CONFIG, 3, 120)
    whole = cllm.Executor(model, batch_size=3, seq_len=120, strategy=cllm.CacheAll()).logits(tokens)
    for B, T in ((1, 120), (3, 1), (2, 97), (3, 96), (1, 50)):
        part = cllm.Executor(model, batch_size=B, seq_len=T, strategy=cllm.CacheAll()).logits(tokens[:B, :T].copy())
        oracle.assert_near(part, whole[:B, :T], 2e-6, f"{B} x {T}")
        if T == 120:
            oracle.assert_same_bits(part, whole[:B])


@pytest.mark.parametrize("name", CAUSAL)
def test_token_after_token_gives_the_outputs_of_all_at_once(name):
    """What sampling remembers of earlier tokens is what forward would make of them anew."""
    family = FAMILIES[name]
    T, model = family.architecture.max_seq_len, family.model("float64", scale=0.2)
    tokens = family.draw(batch=1, time=T)["tokens"]
    whole = family.executor(model, batch=1, time=T).logits(tokens)[0]
    if not decodes_incrementally(model.program):
        assert family.architecture.attention == "crystalline"  # the one layer of ours without a step-by-step form
        return
    decoder = Decoder(model, 2)
    for start, stop in ((0, 4), (4, 5), (5, 8), (8, T)):
        oracle.assert_near(decoder.read(tokens[0, start:stop]), whole[start:stop], 1e-10, f"from {start}: ")
