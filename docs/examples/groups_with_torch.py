"""Share work between two groups of PyTorch processes, with FSDP within each group.

The example has four processes and does not use JAX. Set BCGC_HANDOUT_KEY to the same
secret in four shells. Run `python docs/examples/groups_with_torch.py RANK` in them,
with RANK from 0 to 3. A plus marks the lines that are added to a loop of hybrid FSDP.
"""

import ending
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from with_torch import PADDING, SAMPLES, TARGETS, TOKENS, make_model

from bcgc_jax.balancing import dispatch  # +

GROUPS, SIZE = 2, 2  # Each group is one worker.


def train(model, share, mesh, steps):
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.5, momentum=0.9)
    seat = mesh.get_local_rank("within")
    for step in range(steps):
        for param in params:
            param.grad = torch.zeros_like(param)  # This group may get no chunk.
        tokens = torch.zeros(1)  # +
        for chunk in share.step(step):  # +
            rows = step * SAMPLES + torch.tensor(chunk.rows(SAMPLES, GROUPS))
            rows = rows[seat::SIZE]  # The processes of a group divide each chunk.
            targets = TARGETS[rows % len(TARGETS)].flatten()
            scores = model(TOKENS[rows % len(TOKENS)].flatten())
            loss = cross_entropy(scores, targets, reduction="sum")
            (SIZE * loss).backward()  # FSDP takes the mean over the group.
            tokens += (targets != PADDING).sum()  # +
        dist.all_reduce(tokens)
        for param in params:  # This process has a shard of each parameter.
            slope = param.grad.to_local()
            dist.all_reduce(slope, group=mesh.get_group("groups"))
            slope /= tokens
        optimizer.step()
    whole = [param.full_tensor().flatten() for param in params]
    return torch.cat(whole).detach().numpy()


def broadcast_within(group):
    """Return a function that broadcasts a value from a group's first process."""

    def broadcast(value):
        box = [value]
        dist.broadcast_object_list(box, dist.get_global_rank(group, 0), group)
        return box[0]

    return broadcast


def main(rank, steps=100, ports=(5701, 5702)):
    dist.init_process_group(
        "gloo", f"tcp://127.0.0.1:{ports[0]}", rank=rank, world_size=GROUPS * SIZE
    )
    mesh = init_device_mesh("cpu", (GROUPS, SIZE), mesh_dim_names=("groups", "within"))
    model = fully_shard(make_model(), mesh=mesh["within"])
    if rank == 0:  # +
        coordinator = dispatch.serve(GROUPS, port=ports[1])  # +
    broadcast = broadcast_within(mesh.get_group("within"))
    if rank % SIZE == 0:
        joined = dispatch.join(("127.0.0.1", ports[1]), rank // SIZE)  # +
        share = joined.for_group(broadcast)  # +
    else:
        share = dispatch.follow(broadcast)  # +
    params = train(model, share, mesh, steps)
    if rank == 0:
        coordinator.close()  # +
    dist.destroy_process_group()
    return params


if __name__ == "__main__":
    ending.run(main)
