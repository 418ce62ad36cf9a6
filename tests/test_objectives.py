"""The surrogate in training: the shipped net, `fit`, half precision, no waiting for a device. The page holds the rest."""
import copy
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from robust_nb.data import load
from robust_nb.models import MNISTNet, pretrained
from robust_nb.objectives import AdversarialMix, Robust, Standard, Surrogate
from robust_nb.training import fit
from robust_nb.uncertainty import L1, L2, Linf

BOX = (0., 1.)
sets = pytest.mark.parametrize('U', [Linf(0.05), L2(0.5), L1(0.5)], ids=repr)
boxes = pytest.mark.parametrize('box', [None, BOX], ids=['free', 'box'])

@pytest.fixture(scope='module')
def digits(): return load('mnist5k', device='cpu')

def gradients(objective, net, x, y, **kw): return torch.autograd.grad(objective(net, x, y, **kw), list(net.parameters()))

@boxes
@sets
def test_the_shipped_net_in_float32_as_in_float64(U, box, digits):
    "In float32 the first layer has its own backward pass, which is differentiated again; in float64 it is PyTorch's"
    net, x, y = pretrained('linf'), digits.test.x[:20], digits.test.y[:20]
    surrogate = Surrogate(U, box=box)
    wide = gradients(surrogate, copy.deepcopy(net).double(), x.double(), y)
    assert_close(surrogate(net, x, y), surrogate(copy.deepcopy(net).double(), x.double(), y).float(), rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(surrogate, net, x, y), wide): assert (a - b).norm() < 1e-3 * b.norm()

@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_fit_lowers_the_surrogate(precision, digits):
    torch.manual_seed(0)
    net = MNISTNet()
    surrogate = Surrogate(L2(torch.full((4000,), 0.3)))
    x, y = digits.train.x[:300], digits.train.y[:300]
    measure = Surrogate(L2(0.3))
    before = measure(net, x, y).item()
    history = fit(net, digits, surrogate, epochs=1, lr=0.05, precision=precision, progress=False)
    assert 0 < history[0]['accuracy'] <= 1 and measure(net, x, y).item() < 0.5 * before

def test_radii_are_picked_by_index(digits):
    net, x, y = pretrained('baseline'), digits.test.x[:8], digits.test.y[:8]
    r = torch.linspace(0, 1, 8)
    i = torch.tensor([5, 0, 2])
    alone = [Surrogate(L2(r[k].item()))(net, x[k:k + 1], y[k:k + 1]) for k in i]
    assert_close(Surrogate(L2(r))(net, x[i], y[i], i), torch.stack(alone).mean())

def test_without_a_graph(digits):
    net, x, y = pretrained('baseline'), digits.test.x[:8], digits.test.y[:8]
    with torch.no_grad(): value = Surrogate(Linf(0.1))(net, x, y)
    assert not value.requires_grad
    assert_close(value, Surrogate(Linf(0.1))(net, x, y).detach())
    assert not x.requires_grad and all(p.grad is None for p in net.parameters())
