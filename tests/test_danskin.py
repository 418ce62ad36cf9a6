"Danskin's theorem (claim 17 of tests/claims.toml) for a net whose worst perturbation is found to the last digits"
import math
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from robust_nb.perturbation import cross_entropy

X = torch.tensor([[0.3, 0.6]], dtype=torch.float64)

def rim(net, angle, r=0.5):
    "J at the points X + r(cos, sin)"
    angle = torch.as_tensor(angle, dtype=torch.float64).reshape(-1)
    z = X + r * torch.stack([angle.cos(), angle.sin()], 1)
    return cross_entropy(net(z), torch.zeros(len(z), dtype=torch.long))

def worst(net):
    "The angle of the maximiser of J on the rim"
    angles = torch.linspace(0, 2 * math.pi, 721, dtype=torch.float64)
    k = angles[rim(net, angles).argmax()].item()
    return minimize_scalar(lambda a: -rim(net, a).item(), bounds=(k - 0.02, k + 0.02), method='bounded', options=dict(xatol=1e-12)).x

def test_gradient_of_the_worst_loss_is_that_at_the_maximiser():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    angle = worst(net)
    inside = torch.cat([rim(net, torch.linspace(0, 2 * math.pi, 73), r) for r in torch.linspace(0, 0.49, 50)])
    assert inside.max() < rim(net, angle).item()                               # the disc's maximum is on its rim
    gradient = parameters_to_vector(torch.autograd.grad(rim(net, angle).sum(), list(net.parameters())))
    theta, h = parameters_to_vector(net.parameters()).detach(), 1e-5
    for v in torch.nn.functional.normalize(torch.randn(3, len(theta), dtype=torch.float64), dim=1):
        ends = []
        for s in (h, -h):
            vector_to_parameters(theta + s * v, net.parameters())
            ends.append(rim(net, worst(net)).item())
        torch.testing.assert_close((gradient @ v).item(), (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-8)
