"""Capture a network with `torch.export` and walk its graph with the rules."""

import operator
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch._ops import OperatorBase, OpOverload
from torch.export import ExportedProgram
from torch.fx import Node

from thrifty.errors import ModelError
from thrifty.prune.gating import state_of
from thrifty.prune.rules import RULES, unknown
from thrifty.prune.trace import Call, Trace, Value, nothing


def walked(model: nn.Module, example_inputs: tuple[Any, ...]) -> Trace:
    """Apply the rules to every operator of `model` in order. Raises `ModelError` where it cannot be captured."""
    program = _captured(model, example_inputs)
    program.graph.eliminate_dead_code()  # what nobody reads holds nothing back
    trace = Trace(batch=_batch(example_inputs))
    first = {id(tensor): name for name, tensor in reversed(state_of(model).items())}
    names = {name: first[id(tensor)] for name, tensor in state_of(model).items()}
    specs = program.graph_signature.input_specs
    targets = {spec.arg.name: names.get(spec.target, "") for spec in specs if spec.target}
    values: dict[Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _placeholder(trace, node, targets.get(node.name, ""))
        elif node.op == "call_function":
            values[node] = _called(trace, node, values)
        elif node.op == "output":
            for value in _values(node.args, values):
                trace.freeze(value, "it is an output of the model")
    return trace


def _captured(model: nn.Module, example_inputs: tuple[Any, ...]) -> ExportedProgram:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.export, about its own internals
            program = torch.export.export(model, example_inputs)
            return _taken_apart(program)
    except Exception as error:  # whatever the model's own code raises
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ModelError(
            f"{type(model).__name__} cannot be captured by torch.export: {said}; its forward must run on the "
            "example inputs, without branches on values"
        ) from error


def _taken_apart(program: ExportedProgram) -> ExportedProgram:
    """The program with operators that have no rule replaced by those that they consist of, as einsum by a bmm."""
    called = {node.target for node in program.graph.nodes if node.op == "call_function"}
    without = [target for target in called if isinstance(target, OpOverload) and rule_name(target) not in RULES]
    table = torch.export.default_decompositions() if without else {}
    known: dict[OperatorBase, Any] = {target: table[target] for target in without if target in table}
    return program.run_decompositions(known) if known else program


def rule_name(target: OpOverload) -> str:
    """The name that the rules know an operator by: `relu` for aten's relu and relu_, the full name elsewhere."""
    name = target._schema.name.removeprefix("aten::")
    return name if name.endswith("__") else name.removesuffix("_")


def _batch(example_inputs: tuple[Any, ...]) -> int:
    first = next((value for value in example_inputs if isinstance(value, torch.Tensor) and value.ndim), None)
    if first is None:
        raise ModelError("the example inputs hold no tensor with a batch dimension; give a tuple such as (images,)")
    return first.shape[0]


def _placeholder(trace: Trace, node: Node, target: str) -> Any:
    held = node.meta.get("val")
    if not isinstance(held, torch.Tensor):
        return held
    value = nothing(held.shape)
    if not target or not held.is_floating_point():
        return value
    value = Value(value.shape, value.atoms, parameter=target, is_weight=True)
    long = [axis for axis, size in enumerate(value.shape) if size > 1]
    if len(long) != 1:
        return value
    atoms = trace.parameter_atoms(value, long[0], "follows").reshape(value.shape)
    return Value(value.shape, atoms, parameter=target, is_weight=True)


def _called(trace: Trace, node: Node, values: dict[Node, Any]) -> Any:
    if node.target is operator.getitem:
        container, index = node.args
        assert isinstance(container, Node)
        assert isinstance(index, int)
        held = values[container]
        return held[index] if isinstance(held, Sequence) else held
    held = node.meta.get("val")
    made = [part for part in (held if isinstance(held, list | tuple) else [held]) if isinstance(part, torch.Tensor)]
    call = _call_of(node, values, tuple(made[0].shape) if made else ())
    if not made and call.name in RULES:
        return held
    if not made:
        for value in call.values:
            trace.freeze(value, f"thrifty has no rule for {call}")
        return held
    result = _ruled(trace, call)
    if _writes(node.target, call):
        for value in result if isinstance(result, Sequence) else [result]:
            trace.write(value)
    if isinstance(held, list | tuple) and isinstance(result, Value):
        return [result, *(nothing(part.shape) for part in made[1:])]
    return result


def _writes(target: Any, call: Call) -> bool:
    """Whether the operator writes a feature map: it is no view, no dropout that lets all through, and what it takes is
    not weights alone."""
    if not isinstance(target, OpOverload) or all(value.is_weight for value in call.values):
        return False
    returned = target._schema.returns[0].alias_info
    is_view = returned is not None and not returned.is_write
    return not is_view and call.arguments.get("train") is not False


def _ruled(trace: Trace, call: Call) -> Any:
    is_weight = bool(call.values) and all(value.is_weight for value in call.values)
    try:
        result = RULES.get(call.name, unknown)(trace, call)
    except (IndexError, KeyError, TypeError, ValueError):  # a form of the operator that its rule does not foresee
        result = unknown(trace, call)
    if is_weight and isinstance(result, Value):
        return Value(result.shape, result.atoms, result.is_zero, result.parameter, is_weight=True)
    return result


def _call_of(node: Node, values: dict[Node, Any], shape: tuple[int, ...]) -> Call:
    def given(argument: Any) -> Any:
        if isinstance(argument, Node):
            return values[argument]
        if isinstance(argument, list | tuple):
            return [given(part) for part in argument]
        return argument

    module = _module_path(node)
    if not isinstance(node.target, OpOverload):
        arguments = {str(number): given(argument) for number, argument in enumerate(node.args)}
        return Call(str(getattr(node.target, "__name__", node.target)), module, arguments, shape)
    arguments = {}
    for number, argument in enumerate(node.target._schema.arguments):
        positional = number < len(node.args)
        held = node.args[number] if positional else node.kwargs.get(argument.name, argument.default_value)
        arguments[argument.name] = given(held)
    return Call(rule_name(node.target), module, arguments, shape)


def _module_path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return paths[-1] if paths else ""


def _values(arguments: Any, values: dict[Node, Any]) -> list[Value]:
    if isinstance(arguments, Node):
        held = values[arguments]
        return [held] if isinstance(held, Value) else _values(held, values) if isinstance(held, list | tuple) else []
    if isinstance(arguments, Value):
        return [arguments]
    if isinstance(arguments, list | tuple):
        return [value for argument in arguments for value in _values(argument, values)]
    return []
