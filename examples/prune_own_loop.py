"""A network becomes small inside your own training loop: your optimiser, your schedule, your loss.

python examples/prune_own_loop.py
"""

import torch
from torch.nn.functional import cross_entropy

from thrifty.prune import images
from thrifty.prune.evaluate import accuracy
from thrifty.prune.methods.ato import Ato
from thrifty.prune.models import resnet8

torch.manual_seed(0)
digits = images.load("digits")
pixels = digits.train.pixels.permute(0, 3, 1, 2).float() / 255
train_x, train_y = pixels[:-100], digits.train.labels[:-100]
held_x, held_y = pixels[-100:], digits.train.labels[-100:]  # for the controller; the weights never see them

model, epochs, size = resnet8(), 8, 64
num_params = sum(one.numel() for one in model.parameters())
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
num_steps = epochs * (len(train_x) // size)
scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, num_steps)
pruning = Ato().loop(model, optimizer, (train_x[:2],), keep="flops=50%", num_steps=num_steps)

for epoch in range(epochs):
    for chosen in torch.randperm(len(train_x)).split(size)[: len(train_x) // size]:
        loss = cross_entropy(model(train_x[chosen]), train_y[chosen], label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if pruning.wants_controller_step:
            pruning.controller_step(held_x, held_y)
        if pruning.after_step():
            print(f"cut: {num_params:,} -> {sum(one.numel() for one in model.parameters()):,} parameters")
    facts = pruning.epoch_end()
    share = facts["kept"] / facts["target"]
    print(f"epoch {epoch + 1}: {facts['phase']}, loss {loss.item():.3f}, {share:.0%} of the budget")

test_x = digits.test.pixels.permute(0, 3, 1, 2).float() / 255
print(f"accuracy of the small network: {accuracy(model, [(test_x, digits.test.labels)]):.1%}")
