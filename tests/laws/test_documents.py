"""Packed rows: a document sees itself alone, and is what it would be in a row of its own."""
from dataclasses import replace

import numpy as np
import oracle
import pytest
from families import FAMILIES, PACKED

import cllm


def documents(positions):
    """Row, first and one past the last place of every document."""
    for row, places in enumerate(positions):
        starts = [*np.flatnonzero(places == 0), len(places)]
        yield from ((row, start, stop) for start, stop in zip(starts[:-1], starts[1:], strict=True))


def near(got, expected, tolerance):
    assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", PACKED)
def test_no_document_changes_a_bit_of_another(name):
    family = FAMILIES[name]
    ex = family.executor(family.model(), batch=2)
    feeds, others = ({n: a for n, a in family.draw(seed, batch=2).items() if n != "targets"} for seed in (0, 1))
    before, found = ex.logits(**feeds), list(documents(feeds["positions"]))
    assert len(found) > 2
    for row, start, stop in found:
        changed = others["tokens"].copy()
        changed[row, start:stop] = feeds["tokens"][row, start:stop]
        after = ex.logits(changed, positions=feeds["positions"])
        oracle.assert_same_bits(after[row, start:stop], before[row, start:stop])
    assert (after[found[0][0]] != before[found[0][0]]).any()


@pytest.mark.parametrize("name", PACKED)
def test_a_document_is_what_it_is_alone(name):
    family = FAMILIES[name]
    if family.model().program.head.layer.V != family.architecture.vocab_size:
        raise AssertionError("no language model")
    model, feeds = family.model("float64", scale=0.2), family.draw(batch=2)
    together = family.executor(model, batch=2).logits(feeds["tokens"], positions=feeds["positions"])
    for row, start, stop in documents(feeds["positions"]):
        alone = cllm.Executor(model, 1, int(stop - start)).logits(feeds["tokens"][row:row + 1, start:stop].copy())
        near(together[row, start:stop], alone[0], 1e-12)


def test_its_bits_are_those_alone_where_it_begins_at_a_multiple_of_192():
    """A row's softmax is summed in tiles from the start of its sequence, and its top may grow every 192 keys."""
    model = FAMILIES["packed, longer than a tile"].model()
    tokens = FAMILIES["packed, longer than a tile"].draw(batch=1, time=210)["tokens"]
    positions = np.concatenate([np.arange(192), np.arange(18)])[None].astype(np.int32)
    together = cllm.Executor(model, 1, 210, packed=True).logits(tokens, positions=positions)
    alone = [cllm.Executor(model, 1, n).logits(part.copy()) for n, part in ((192, tokens[:, :192]), (18, tokens[:, 192:]))]
    oracle.assert_same_bits(together, np.concatenate(alone, axis=1))


@pytest.mark.parametrize("name", PACKED)
def test_one_document_a_row_is_the_batch_without_packing(name):
    family = FAMILIES[name]
    found = []
    for one in (family, replace(family, packed=False)):
        model, feeds = family.model(), replace(family, packed=False).draw(batch=2)
        if one.packed:
            feeds["positions"] = np.broadcast_to(np.arange(family.time), (2, family.time))
        loss = one.executor(model, batch=2).loss_and_grad(**feeds)
        found.append({"loss": loss, **{n: g.copy() for n, g in model.gradients.items()}})
    oracle.assert_same_bits(*found)


@pytest.mark.parametrize("name", PACKED)
def test_loss_and_gradients_are_the_mean_over_documents_alone(name):
    family = FAMILIES[name]
    family = replace(family, architecture=replace(family.architecture, dropout=0.0)) if hasattr(
        family.architecture, "dropout") else family
    model, feeds = family.model("float64", scale=0.2), family.draw(batch=2)
    loss = family.executor(model, "recompute@1", batch=2).loss_and_grad(**feeds)
    together = {n: g.copy() for n, g in model.gradients.items()}
    model.zero_grad()
    count, total = int((feeds["targets"] != -1).sum()), 0.0
    for row, start, stop in documents(feeds["positions"]):
        one = {n: feeds[n][row:row + 1, start:stop].copy() for n in ("tokens", "targets")}
        if (one["targets"] != -1).any():
            total += cllm.Executor(model, 1, int(stop - start)).loss_and_grad(**one, num_targets=count)
    assert total == pytest.approx(loss, rel=1e-12)
    for n, gradient in model.gradients.items():
        near(together[n], gradient, 1e-10)


def test_the_positions_are_counted_in_the_bytes():
    architecture = FAMILIES["full tied"].architecture
    plain, packed = (cllm.plan(architecture, 4, 8, "cache@2", packed=p) for p in (False, True))
    attention = packed.arena_bytes - plain.arena_bytes
    assert packed.total_bytes - plain.total_bytes == attention + 4 * (4 + 2) * 8
    assert packed.fingerprint != plain.fingerprint


@pytest.mark.parametrize("name, must", [("encoder", "must have a packed form"), ("convolutional", "must have a packed form"),
                                        ("mixer", "needs a model with time steps")])
def test_what_has_no_packed_form_is_refused(name, must):
    family = FAMILIES[name]
    with pytest.raises(cllm.DeclarationError, match=must):
        cllm.Executor(family.model(), 2, family.time, packed=True)


def test_positions_are_fed_where_rows_are_packed_and_only_there():
    family = FAMILIES["packed"]
    feeds = family.draw()
    plain = {n: a for n, a in feeds.items() if n != "positions"}
    for packed, given, must in ((True, plain, "positions.*must be fed"), (False, feeds, "positions.*must be one of")):
        with pytest.raises(cllm.ConfigError, match=must):
            cllm.Executor(family.model(), family.batch, family.time, packed=packed).loss_and_grad(**given)
    for wrong in (-1, family.architecture.max_seq_len):
        with pytest.raises(cllm.TokenError, match="positions"):
            family.executor(family.model()).loss_and_grad(**plain, positions=np.full_like(feeds["positions"], wrong))
    with pytest.raises(cllm.ConfigError, match="Executor\\(packed=...\\)"):
        cllm.Executor(family.model(), 1, 1, packed=2)


@pytest.mark.parametrize("row, got", [([1, 2, 3, 4], "positions\\[1, 0\\]: .*got 1, the first"),
                                      ([0, 1, 1, 2], "positions\\[1, 2\\]: .*got 1 after 1"),
                                      ([0, 1, 2, 4], "positions\\[1, 3\\]: .*got 4 after 2")])
def test_positions_count_from_0_in_each_document(row, got):
    """So numbers of documents, or positions of another batch, are refused."""
    ex = cllm.Executor(FAMILIES["packed"].model(), 2, 4, packed=True)
    tokens = np.zeros((2, 4), int)
    assert np.isfinite(ex.loss(tokens, tokens, positions=[[0, 1, 0, 0], [0, 0, 1, 2]]))
    with pytest.raises(cllm.TokenError, match=got):
        ex.loss(tokens, tokens, positions=[[0, 1, 2, 3], row])
