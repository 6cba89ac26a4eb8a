"""The frozen model in shares, one on each process (FSDP): asked for by `accelerate launch --use_fsdp`.

While experts are learnt, the dense model is what is large; what is learnt is small, the same on every process, and its
gradients are averaged as ever. So only the decoder layers are cut up, each a group of its own: PyTorch's fully_shard
brings a layer's weights together when it is computed and lets them go afterwards, so hooks see them whole. Embeddings,
norms and head, which the loss reads outside of any layer, stay whole; accelerate's own `prepare` would cut them up too.
"""

import copy
from dataclasses import replace

from torch import nn

from thrifty.moe.job import MoeJob
from thrifty.moe.sites import found
from thrifty.moe.train import Team


def spread(job: MoeJob, team: Team) -> MoeJob:
    """The job with a copy of its model of which each process of `team` holds a share, on the process's own device; the
    job as it is where the team does not share. Every process must then compute the same layers in the same order."""
    if not team.is_sharing:
        return job
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = PartialState().device
    assert device is not None
    mesh = init_device_mesh(device.type, (team.size,))
    model = copy.deepcopy(job.model).requires_grad_(False)
    for site in found(model):
        fully_shard(site.layer, mesh=mesh)
    nn.Module.to(model, device)  # the rest: layers are there already
    return replace(job, model=model, sites=found(model))
