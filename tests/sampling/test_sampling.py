"""Generation: logits as of the full forward, choices that do what they say, texts that depend on the seed alone."""
import lawtools
import numpy as np
import oracle
import pytest
from longer import whole

import cllm
from cllm.models.gpt import CHOICES
from cllm.sampling import Choice, Decoder, Rereader, decoder_for, generate, stream, stream_text

SETTINGS = [{}, {"qkv": "lattice", "out_proj": False, "qkv_bias": False}, {"tied": False}, {"dropout": 0.4},
            *({name: value} for name, values in CHOICES.items() for value in values[1:] if name != "qkv")]


@pytest.fixture(params=SETTINGS, ids=str)
def config(request):
    return {**oracle.CONFIG, "d_model": 24, "n_heads": 2, "max_seq_len": 12, **request.param}


def full_logits(model, tokens):
    return cllm.Executor(model, 1, len(tokens), num_threads=2).logits(tokens[None])[0]


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-12), ("float32", 2e-5)])
@pytest.mark.parametrize("cuts", [[12], whole([1] * 12), [5, 1, 1, 3, 2], whole([11, 1])], ids=str)
def test_logits_are_those_of_the_full_forward(cuts, dtype, tolerance, config, new_model):
    model = new_model(config, dtype)
    tokens = np.random.default_rng(0).integers(0, config["vocab_size"], 12)
    expected = full_logits(model, tokens)
    for make in (decoder_for, Rereader):
        decoder = make(model, 2)
        for _ in range(2):
            found = [decoder.read(part) for part in np.split(tokens, np.cumsum(cuts)[:-1])]
            assert decoder.position == 12
            oracle.assert_near(np.concatenate(found), expected, tolerance)
            decoder.reset()
            decoder.read(tokens[::-1].copy())
            decoder.reset()


def test_what_is_read_at_once_has_the_bits_of_the_full_forward(new_model):
    model = new_model(oracle.CONFIG, "float32")
    tokens = np.arange(9)
    oracle.assert_same_bits(Decoder(model).read(tokens), full_logits(model, tokens))


def test_greedy_text_is_the_argmax_of_the_full_forward(new_model):
    """Beyond max_seq_len the model reads the last half anew."""
    model = new_model(oracle.CONFIG)
    prompt, longest = [3, 1, 4], 9
    found = generate(model, prompt, 25, temperature=0)
    text, window = list(prompt), list(prompt)
    for _ in range(25):
        if len(window) > longest:
            window = text[-(longest // 2):]
        token = int(full_logits(model, np.array(window))[-1].argmax())
        text.append(token)
        window.append(token)
    assert found.tolist() == text[3:] and found.dtype == np.int32 and found.shape == (25,)


def test_text_depends_on_the_seed_alone(new_model):
    model = new_model(oracle.CONFIG)
    cllm.Executor(model, 1, 5, optimizer="adamw")
    texts = [generate(model, [1], 30, seed=seed, num_threads=threads).tolist()
             for seed, threads in ((0, 1), (0, 3), (1, 1))]
    assert texts[0] == texts[1] != texts[2]
    assert list(stream(model, [1], 30)) == texts[0] == cllm.generate(model, [1], 30).tolist()
    assert generate(model, [1], 10).tolist() == texts[0][:10], "a shorter text is the beginning of a longer one"
    assert model.planned_optimizer == "adamw"


def test_the_whole_forward_again_reads_the_model_itself_and_plans_nothing_for_it(new_model, monkeypatch):
    model, attached = new_model(oracle.CONFIG), []
    cllm.Executor(model, 1, 5, optimizer="adamw")
    monkeypatch.setattr(type(model), "attach", lambda self, optimizer: attached.append((self, optimizer)))
    rereader = Rereader(model)
    assert all(one is not model for one, _ in attached), "not for a moment: another thread may take an optimizer's step"
    before = rereader.read([1, 2])
    rereader.reset()
    for parameter in model.parameters.values():
        parameter *= 0.5
    after = rereader.read([1, 2])
    assert (before != after).any(), "no copy of the weights"
    lawtools.assert_same_bits(after, Rereader(model).read([1, 2]))


LOGITS = np.log(np.array([0.05, 0.4, 0.1, 0.25, 0.2]))


def frequencies(choice, n=4000):
    return np.bincount([choice(LOGITS, number) for number in range(n)], minlength=5) / n


@pytest.mark.parametrize("settings, expected", [
    (dict(), [0.05, 0.4, 0.1, 0.25, 0.2]),
    (dict(temperature=0), [0, 1, 0, 0, 0]),
    (dict(temperature=0.5), np.array([0.05, 0.4, 0.1, 0.25, 0.2])**2 / 0.275),
    (dict(top_k=1), [0, 1, 0, 0, 0]), (dict(top_k=2), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]),
    (dict(top_k=99), [0.05, 0.4, 0.1, 0.25, 0.2]),
    (dict(top_p=0.0), [0, 1, 0, 0, 0]), (dict(top_p=0.39), [0, 1, 0, 0, 0]),
    (dict(top_p=0.5), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0]), (dict(top_p=1.0), [0.05, 0.4, 0.1, 0.25, 0.2]),
    (dict(top_k=3, top_p=0.5), [0, 0.4 / 0.65, 0, 0.25 / 0.65, 0])], ids=str)
def test_tokens_come_as_often_as_they_should(settings, expected):
    found = frequencies(Choice(**settings, seed=5))
    error = np.sqrt(np.array(expected) * (1 - np.array(expected)) / 4000)
    assert (abs(found - expected) <= 4 * error + 1e-12).all(), found


def test_ids_that_may_not_be_drawn_are_not():
    among = np.array([0, 2, 4])
    found = np.bincount([Choice(seed=5)(LOGITS, number, among) for number in range(4000)], minlength=5) / 4000
    np.testing.assert_allclose(found, np.array([0.05, 0, 0.1, 0, 0.2]) / 0.35, atol=0.03)
    assert Choice(temperature=0)(LOGITS, 0, among) == 4
    assert {Choice(top_k=4, seed=1)(LOGITS, number, among) for number in range(300)} == {0, 2, 4}


@pytest.mark.parametrize("among", [[], [[1]], [13], [-1], [0.5], "ab"], ids=repr)
def test_bad_ids_to_draw_from_are_refused(among, new_model):
    with pytest.raises(cllm.TokenError, match=r"generate\(among=\.\.\.\): must be integers from 0 to 12"):
        generate(new_model(oracle.CONFIG), [1], 3, among=among)


def test_a_vocabulary_larger_than_the_tokenizers_ends_no_text(new_model):
    """Of 700 ids 256 have text; an untrained model likes them all alike, and no door shows the others."""
    model = new_model({**oracle.CONFIG, "vocab_size": 700}, "float32")
    tokenizer = cllm.ByteTokenizer()
    drawn = [token for token, _ in stream_text(model, tokenizer, "It is", 60, seed=1)]
    assert max(drawn) < 256 and max(generate(model, list(b"It is"), 60, seed=1)) >= 256
    trainer = cllm.Trainer(model, np.arange(400) % 256, steps=1, seq_len=8, val_fraction=0)
    assert trainer.sample("It is", 60, seed=1) == "".join(p for _, p in stream_text(model, tokenizer, "It is", 60, seed=1))


def test_pieces_of_a_text_part_no_character(new_model):
    class Spelled:
        """A tokenizer of thirteen bytes that make two characters of three bytes each, and one that is none."""
        ids = np.arange(13)
        bytes = b"\xe2\x82\xac\xf0\x9f\x98\x80ab\xffcde"

        def encode(self, text):
            return np.array([7])

        def decode(self, tokens):
            return bytes(self.bytes[t] for t in tokens).decode("utf-8", "replace")

    model = new_model(oracle.CONFIG)
    for seed in range(5):
        made, pieces = zip(*stream_text(model, Spelled(), "", 40, seed=seed), strict=True)
        assert "".join(pieces) == Spelled().decode(made) and len(made) == 40


def test_of_equal_scores_the_first_is_taken_at_temperature_zero():
    assert Choice(temperature=0)(np.array([1.0, 3.0, 3.0]), 0) == 1


@pytest.mark.parametrize("arguments", [dict(temperature=-1), dict(temperature=None), dict(temperature=np.nan),
                                       dict(top_k=0), dict(top_k=1.5), dict(top_p=1.1), dict(top_p=-0.1), dict(seed=-1),
                                       dict(max_new_tokens=-1)], ids=str)
def test_bad_settings_are_refused(arguments, new_model):
    with pytest.raises(cllm.ConfigError, match=rf"generate\({next(iter(arguments))}=\.\.\.\)"):
        generate(new_model(oracle.CONFIG), [1], **arguments)


@pytest.mark.parametrize("tokens, error", [([], cllm.ShapeError), ([[1]], cllm.ShapeError), (3, cllm.ShapeError),
                                           ([13], cllm.TokenError), ([-1], cllm.TokenError),
                                           ([0.5], cllm.TokenError)], ids=str)
def test_bad_prompts_are_refused(tokens, error, new_model):
    with pytest.raises(error):
        generate(new_model(oracle.CONFIG), tokens, 3)


def test_a_long_prompt_is_read_from_its_end(new_model):
    model = new_model(oracle.CONFIG)
    prompt = np.random.default_rng(0).integers(0, 13, 50)
    assert generate(model, prompt, 8).tolist() == generate(model, prompt[-9:], 8).tolist()


def test_a_model_that_reads_one_token_generates(new_model):
    assert generate(new_model({**oracle.CONFIG, "max_seq_len": 1}), [1, 2], 4).shape == (4,)


def test_weights_that_are_not_finite_are_noticed(new_model):
    model = new_model(oracle.CONFIG)
    model.parameters["ln_f.bias"][0] = np.nan
    with pytest.raises(cllm.NonFiniteError):
        generate(model, [1], 3)
