"""What the walk notes: where equal places go together, and where nothing may go."""

import numpy as np

from thrifty.prune.trace import Call, Trace, Value, nothing


def free(trace, shape, axis):
    """A value whose dimension `axis` can go."""
    form = [1] * len(shape)
    form[axis] = shape[axis]
    return Value(tuple(shape), trace.union.new(shape[axis]).reshape(form))


def test_equal_places_of_two_values_go_together():
    trace = Trace(2)
    one, two = free(trace, (2, 4, 3), 1), free(trace, (2, 4, 3), 1)
    assert trace.combine([one, two], (2, 4, 3), "add").tolist() == two.atoms.tolist()
    assert trace.union.roots().tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_value_that_only_broadcasts_holds_nothing_back():
    trace = Trace(2)
    trace.combine([free(trace, (2, 4, 3), 1), nothing((2, 1, 3))], (2, 4, 3), "add")
    assert not trace.union.reasons(trace.union.roots())


def test_a_value_of_the_same_size_that_must_stay_freezes_the_other():
    trace = Trace(2)
    trace.combine([free(trace, (2, 4, 3), 1), nothing((4, 1))], (2, 4, 3), "add")
    assert set(trace.union.reasons(trace.union.roots())) == {0, 1, 2, 3}


def test_a_parameter_follows_what_it_is_added_to():
    trace = Trace(2)
    parameter = Value((5, 4), nothing((5, 4)).atoms, parameter="positions", is_weight=True)
    trace.combine([parameter, free(trace, (2, 5, 4), 2)], (2, 5, 4), "add")
    atoms, role = trace.parameters["positions", 1]
    assert role == "follows"
    assert trace.union.roots()[atoms].tolist() == [0, 1, 2, 3]


def test_tying_the_only_free_dimension_freezes_it_and_another_stays_free():
    trace = Trace(2)
    assert not trace.tie(free(trace, (2, 4), 1), [1], "summed").is_free
    assert trace.union.reasons(trace.union.roots()) == dict.fromkeys(range(4), "summed")
    grid = Value((2, 3), trace.union.new(6).reshape(2, 3))
    tied = trace.tie(grid, [0], "summed")
    assert tied.atoms.shape == (1, 3)
    assert trace.union.roots()[4:].tolist() == [4, 5, 6, 4, 5, 6]


def test_what_is_made_somewhere_is_no_longer_a_follower():
    trace = Trace(2)
    weight = Value((4, 1), np.full((1, 1), -1), parameter="bias")
    first = trace.parameter_atoms(weight, 0, "follows")
    assert trace.parameter_atoms(weight, 0, "makes").tolist() == first.tolist()
    assert trace.parameter_atoms(weight, 0, "reads").tolist() == first.tolist()
    assert trace.parameters["bias", 0][1] == "makes"


def test_a_call_says_what_and_where():
    assert str(Call("add", "blocks.0", {}, ())) == "add at blocks.0"
    assert str(Call("add", "", {}, ())) == "add at the top of the model"
