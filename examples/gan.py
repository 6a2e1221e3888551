"""Two networks that are trained against each other, with an optimizer each.

Each update is a step of the run. Layers and parameters carry the name of the variable that holds
their network: ``generator.0``, ``discriminator.0``.

Example:
    analyzer record examples/gan.py
    analyzer show latest
"""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
discriminator = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
optimizers = {
    network: torch.optim.Adam(network.parameters(), lr=2e-3)
    for network in (generator, discriminator)
}
ones, zeros = torch.ones(32, 1), torch.zeros(32, 1)
loss = nn.functional.binary_cross_entropy_with_logits

for _ in range(20):
    angle = 6.28 * torch.rand(32, 1)
    real = torch.cat([angle.cos(), angle.sin()], dim=1)
    fake = generator(torch.randn(32, 4))

    optimizers[discriminator].zero_grad()
    (loss(discriminator(real), ones) + loss(discriminator(fake.detach()), zeros)).backward()
    optimizers[discriminator].step()

    optimizers[generator].zero_grad()
    loss(discriminator(fake), ones).backward()
    optimizers[generator].step()
