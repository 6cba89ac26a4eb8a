"""Torch-Pruning (DepGraph, Fang et al., 2023), which looks by other means, finds the same channels hang together."""

import pytest
from torch import nn
from zoo import ZOO

from thrifty.prune.coupling import coupling_of

torch_pruning = pytest.importorskip("torch_pruning", reason="the oracle is not installed: pip install torch-pruning")

BOTH_WORK = [
    "resnet8",
    "resnet50",
    "mobilenet v2",
    "mobilenet v3",
    "efficientnet",
    "densenet",
    "vgg",
    "u-net",
    "two heads",
]


def ours(model, group, part):
    """Module, side and positions of everything that goes with one part."""
    modules = dict(model.named_modules())
    found = {}
    for owned in group.slices:
        path, _, name = owned.tensor.rpartition(".")
        if name != "weight":
            continue
        module = modules[path]
        is_swapped = isinstance(module, nn.modules.conv._ConvTransposeNd)
        is_both = isinstance(module, nn.modules.batchnorm._BatchNorm) or getattr(module, "groups", 1) > 1
        side = "both" if is_both else "out" if (owned.dim == 0) != is_swapped else "in"
        found.setdefault((path, side), set()).update(owned.index[part].tolist())
    return found


def theirs(model, graph, root, position):
    """The same, as Torch-Pruning sees it when one output channel of `root` is to go."""
    prune = (
        torch_pruning.prune_linear_out_channels
        if isinstance(root, nn.Linear)
        else torch_pruning.prune_conv_out_channels
    )
    names = {module: path for path, module in model.named_modules()}
    found = {}
    for dependency, positions in graph.get_pruning_group(root, prune, [position]):
        module = dependency.target.module
        if module not in names:
            continue
        is_both = isinstance(module, nn.modules.batchnorm._BatchNorm) or getattr(module, "groups", 1) > 1
        side = "both" if is_both else "out" if "out" in dependency.handler.__name__ else "in"
        found.setdefault((names[module], side), set()).update(positions)
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BOTH_WORK)
def test_the_same_channels_go_together(name):
    model, inputs = ZOO[name].build().eval(), ZOO[name].inputs
    coupling = coupling_of(model, inputs, is_tried=False)
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs)
    groups = coupling.prunable(residual=True)
    assert groups
    assert all(len(ours(model, group, 0)) > 1 for group in groups)
    for group in groups:
        root = model.get_submodule(group.name.partition(":")[0])
        for part in (0, group.size - 1):
            position = int(group.slices[0].index[part][0])
            assert ours(model, group, part) == theirs(model, graph, root, position), (group.name, part)
