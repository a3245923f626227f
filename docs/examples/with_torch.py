"""Share work in a PyTorch loop with DDP, `no_sync` and one all-reduce per step.

The example does not use JAX. Set BCGC_HANDOUT_KEY to the same secret in four shells.
Run `python docs/examples/with_torch.py RANK` in them, with RANK from 0 to 3. You can
also start all processes by
`torchrun --standalone --nproc-per-node 4 --max-restarts 3 docs/examples/with_torch.py`.
If a process then ends by an error, torchrun restarts all processes. A plus marks the
lines that are added to a data-parallel loop.
"""

import ending
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector

from bcgc_jax.balancing import dispatch  # +

WORKERS, SAMPLES = 4, 128  # SAMPLES per step: sequences of 1 to 12 tokens
PADDING = -100  # cross_entropy ignores these targets.
RANDOM = torch.Generator().manual_seed(0)
TOKENS = torch.randint(16, (1024, 12), generator=RANDOM)
LENGTHS = torch.randint(1, 13, (1024, 1), generator=RANDOM)
TARGETS = torch.where(torch.arange(12) < LENGTHS, TOKENS**2 % 16, PADDING)


def make_model():
    torch.manual_seed(0)  # All processes have the same initial model.
    layers = torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16)
    return torch.nn.Sequential(*layers, torch.nn.Tanh(), torch.nn.Linear(16, 16))


def train(model, share, all_reduce, steps):
    params = list(model.parameters())
    optimizer = torch.optim.SGD(params, lr=0.5, momentum=0.9)
    for step in range(steps):
        for param in params:
            param.grad = torch.zeros_like(param)  # This worker may get no chunk.
        tokens = torch.zeros(1)  # +
        for chunk in share.step(step):  # +
            rows = step * SAMPLES + torch.tensor(chunk.rows(SAMPLES, share.num_workers))
            targets = TARGETS[rows % len(TARGETS)].flatten()
            with model.no_sync():  # Otherwise each backward pass waits for all workers.
                scores = model(TOKENS[rows % len(TOKENS)]).flatten(0, 1)
                cross_entropy(scores, targets, reduction="sum").backward()
            tokens += (targets != PADDING).sum()  # +
            # On a GPU, call torch.cuda.synchronize() here, because the request for the
            # next chunk reports this chunk as finished.
        flat = torch.cat([*(param.grad.flatten() for param in params), tokens])
        all_reduce(flat)  # The sum over all workers.
        mean = (flat[:-1] / flat[-1]).split([param.numel() for param in params])
        for param, slope in zip(params, mean, strict=True):
            param.grad.copy_(slope.view_as(param))
        optimizer.step()
    return parameters_to_vector(params).detach().numpy()


def main(rank, steps=100, ports=(5701, 5702)):
    # torchrun's own store keeps addresses from before a restart.
    store = dist.TCPStore("127.0.0.1", ports[0], WORKERS, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=WORKERS)
    if rank == 0:  # +
        coordinator = dispatch.serve(WORKERS, port=ports[1])  # +
    share = dispatch.join(("127.0.0.1", ports[1]), rank)  # +
    # If the model has buffers (BatchNorm), use forward_sync_buffers=False, or
    # broadcast_buffers=False before PyTorch 2.13.
    model = DistributedDataParallel(make_model())
    params = train(model, share, dist.all_reduce, steps)
    share.close()  # +
    if rank == 0:  # +
        coordinator.close()  # +
    dist.destroy_process_group()
    return params


if __name__ == "__main__":
    ending.run(main)
