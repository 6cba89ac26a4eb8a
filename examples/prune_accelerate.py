"""The loop of `prune_own_loop.py` with Hugging Face Accelerate, which brings its own devices and precision.

python examples/prune_accelerate.py
"""

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset, random_split

from thrifty.prune import images
from thrifty.prune.methods.ato import Ato
from thrifty.prune.models import resnet8

torch.manual_seed(0)
digits, epochs, network = images.load("digits"), 6, resnet8()
everything = TensorDataset(digits.train.pixels.permute(0, 3, 1, 2).float() / 255, digits.train.labels)
train, held = random_split(everything, [len(everything) - 100, 100])
accelerator = Accelerator()
model, optimizer, loader, held_out = accelerator.prepare(
    network,
    torch.optim.SGD(network.parameters(), 0.05, momentum=0.9),
    DataLoader(train, 64, shuffle=True, drop_last=True),
    DataLoader(held, 100),
)
example = (torch.randn(2, 3, 8, 8, device=accelerator.device),)
pruning = Ato().loop(model, optimizer, example, keep="params=40k", num_steps=epochs * len(loader))

for epoch in range(epochs):
    for x, y in loader:
        with accelerator.autocast():
            loss = cross_entropy(model(x), y)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if pruning.wants_controller_step:
            with accelerator.autocast():
                pruning.controller_step(*next(iter(held_out)))
        if pruning.after_step():
            model = pruning.model
    print(f"epoch {epoch + 1}: {pruning.epoch_end()['phase']}, loss {loss.item():.3f}")
print(f"{sum(one.numel() for one in network.parameters()):,} parameters are left")
