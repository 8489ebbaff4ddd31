"""Declaration: the signature is the data flow, and a layer that contradicts itself is refused when its class is made."""
from dataclasses import dataclass

import pytest
import toys

import cllm
from cllm.layers import LAYERS
from cllm.program.declare import HANDED, STANDARD_FEEDS, Flow, Param, Scratch, Site, Table
from cllm.program.layer import Layer

OUT = Site("y", "N C", "out")


def make(name="Bad", **body):
    """Create a layer class from its body."""
    return type(name, (Layer,), {"sites": (OUT,), **body})


def forward(self, x, *, y):
    pass


def backward(self, dy, *, dx):
    pass


def test_a_flow_is_read_off_a_signature():
    def method(self, dy, x, scale, *, dx, dweight, room=None):
        pass

    assert Flow.of(method) == Flow(("dy", "x", "scale"), ("dx", "dweight", "room"))
    assert Flow.of(None) == Flow((), (), exists=False)


def test_what_a_class_derives_from_its_methods():
    assert toys.Times.inputs == ("a", "b") and toys.Source.inputs == () and toys.Head.inputs == ("x",)
    assert toys.Mix.accumulate_flow == Flow(("dy", "x"), ("dweight",))
    assert not toys.Add.backward_flow.exists and not toys.Tanh.accumulate_flow.exists
    assert toys.Head.evaluate_flow.exists and not toys.Mix.evaluate_flow.exists
    mix = toys.Mix(C=7)
    assert mix.letters == {"C": 7} and mix.output == "y" and mix.parameter_gradients() == {"dweight"}
    assert toys.Add(C=2).passed() == ("da", "db") and toys.Add(C=2).parameter_gradients() == frozenset()
    assert mix.forward_flops({}) == mix.accumulate_flops({}) == mix.backward_flops({}) == 0.0


def test_a_parameter_may_be_switched_by_a_field():
    layer = cllm.layers.Linear(I=2, O=3, bias=False)
    by_name = {p.name: layer.has(p) for p in layer.params}
    assert by_name == {"weight": True, "bias": False}


REFUSED = {
    "no sites": (dict(sites=(), forward=forward, backward=backward), "at least one site"),
    "no forward": (dict(backward=backward), "a forward and at least one site"),
    "a site that forward does not write": (
        dict(sites=(OUT, Site("mean", "N", "m")), forward=forward, backward=backward), "every site must be written"),
    "a site that forward reads instead": (
        dict(forward=lambda self, x, y: None, backward=backward), "every site must be written"),
    "a stray output": (dict(forward=lambda self, x, *, y, z: None, backward=backward), "only declared sites and scratch"),
    "a parameter that nobody trains": (
        dict(params=(Param("weight", "C"), Param("held", "C", constant=True)), backward=backward,
             forward=lambda self, x, weight, held, *, y: None), "gradient of every parameter must be added to.*got dweight"),
    "a parameter that nobody reads": (
        dict(params=(Param("weight", "C"),), forward=forward, backward=lambda self, dy, *, dx, dweight: None),
        "every parameter and table must be read"),
    "a table that nobody reads": (
        dict(tables=(Table("t", "C", lambda layer: None),), forward=forward, backward=backward),
        "every parameter and table must be read"),
    "a value that backward reads and nobody declared": (
        dict(forward=forward, backward=lambda self, dy, hidden, *, dx: None), "inputs, sites, parameters"),
    "scratch that backward reads": (
        dict(scratch=(Scratch("room", lambda *a: 1),), forward=lambda self, x, *, y, room: None,
             backward=lambda self, dy, room, *, dx: None), "inputs, sites, parameters"),
    "a value that accumulate reads and nobody declared": (
        dict(params=(Param("w", "C"),), forward=lambda self, x, w, *, y: None, accumulate=lambda self, dy, h, *, dw: None,
             backward=backward), "inputs, sites, parameters"),
    "an input's gradient in accumulate": (
        dict(forward=forward, accumulate=lambda self, dy, *, dx: None, backward=backward),
        "gradients of parameters and scratch only"),
    "loss in accumulate": (
        dict(forward=forward, accumulate=lambda self, dy, *, loss: None, backward=backward),
        "gradients of parameters and scratch only"),
    "a stray gradient": (
        dict(forward=forward, backward=lambda self, dy, *, dx, dz: None), "gradients of inputs and parameters"),
    "a site that backward writes": (
        dict(forward=forward, backward=lambda self, dy, *, dx, y: None), "gradients of inputs and parameters"),
    "a gradient that two methods make": (
        dict(params=(Param("w", "C"),), forward=lambda self, x, w, *, y: None, accumulate=lambda self, dy, *, dw: None,
             backward=lambda self, dy, *, dx, dw: None), "not by both"),
    "an input without a gradient": (
        dict(forward=lambda self, x, z, *, y: None, backward=backward), "the gradient of every input"),
    "no backward": (dict(forward=forward), "the gradient of every input"),
    "adds to what it does not write": (
        dict(forward=forward, backward=backward, adds=("dz",)), "must be written"),
    "overwrites what it does not write": (
        dict(forward=forward, overwrites=("dx",), passes=("dx",)), "must be written"),
    "costless what is no field": (
        dict(forward=forward, backward=backward, costless=("rate",)), "only fields can be named"),
    "passes what is no input": (
        dict(forward=forward, backward=backward, passes=("dw",)), "only gradients of inputs can be passed"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_contradiction_makes_no_class(what):
    body, must = REFUSED[what]
    with pytest.raises(cllm.DeclarationError, match=must) as caught:
        make(**body)
    assert caught.value.where.startswith("Bad.") and "Declare the value" in caught.value.do


def test_a_site_has_one_of_three_roles():
    assert [Site("y", "N C", "out", role=role).role for role in ("", "stream", "statistics")] == ["", "stream", "statistics"]
    with pytest.raises(cllm.DeclarationError, match=r"Site\('y', role=...\): must be '', 'stream' or 'statistics'") as caught:
        Site("y", "N C", "out", role="residual")
    assert "neither a running sum nor statistics" in caught.value.do


def test_what_costs_nothing_makes_no_other_kind():
    residual = cllm.layers.Residual
    assert residual(C=3, rate=0.1, stream=1).cost_fields == residual(C=3, rate=0.1, stream=2).cost_fields
    assert residual(C=3, rate=0.1).cost_fields != residual(C=3).cost_fields


def test_the_error_names_the_stray_value():
    with pytest.raises(cllm.DeclarationError, match="hidden_one, hidden_two"):
        make(forward=forward, backward=lambda self, dy, hidden_two, hidden_one, *, dx: None)


def test_what_is_declared_may_be_used_everywhere():
    made = make("Good", params=(Param("w", "C"),), tables=(Table("t", "C", lambda layer: None),),
                scratch=(Scratch("room", lambda *a: 1),), adds=("dx",),
                forward=lambda self, x, w, t, key, *, y, room: None,
                accumulate=lambda self, dy, x, tokens, t, *, dw, room: None,
                backward=lambda self, dy, y, x, w, scale, *, dx, room: None)
    assert made.inputs == ("x",)


def test_a_feed_is_no_input():
    for feed in (*HANDED, *STANDARD_FEEDS):
        source = f"def forward(self, x, {feed}, *, y): pass"
        scope = {}
        exec(source, scope)
        assert make(forward=scope["forward"], backward=backward).inputs == ("x",)


@pytest.mark.parametrize("layer", LAYERS, ids=lambda c: c.__name__)
def test_the_package_layers_say_what_they_are(layer):
    assert layer.__doc__ and layer.__dataclass_params__.frozen
    names = [x.name for x in (*layer.sites, *layer.params, *layer.tables, *layer.scratch)]
    assert len(set(names)) == len(names)
    for site in layer.sites:
        assert site.meaning and site.shape and len(site.meaning.splitlines()) == 1
    assert not {s.name for s in layer.sites} & {*HANDED, *STANDARD_FEEDS}


def test_declarations_are_frozen():
    @dataclass(frozen=True, slots=True)
    class Mine(toys.Tanh.__bases__[0]):
        C: int
        sites = (OUT,)

        def forward(self, x, *, y):
            pass

        def backward(self, dy, *, dx):
            pass

    for record in (OUT, Param("w", "C"), Scratch("r", len), Mine(C=1), Flow()):
        with pytest.raises((AttributeError, TypeError)):
            record.name = "other"
