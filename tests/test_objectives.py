"""The surrogate in training, and what objectives refuse when they are called directly. The page holds the rest."""
import copy
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from robust_nb.data import load
from robust_nb.models import MNISTNet, pretrained
from robust_nb.objectives import AdversarialMix, Robust, Standard, Surrogate
from robust_nb.relatives.trades import Trades
from robust_nb.training import fit
from robust_nb.uncertainty import L1, L2, Linf
from robust_nb.variants import Free

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

# What every objective refuses, without waiting for a device

OBJECTIVES = [Standard(), Robust(Linf(0.1)), Surrogate(L2(0.1)), AdversarialMix(L1(0.1)), AdversarialMix(Linf(0.1), 1)]
objectives = pytest.mark.parametrize('objective', OBJECTIVES, ids=repr)

class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        assert f.overloadpacket not in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.equal), f'{f} waits for the device'
        return f(*args, **(kwargs or {}))

@objectives
def test_a_step_waits_for_nothing(objective):
    torch.manual_seed(0)
    net, x, y = MNISTNet(), torch.rand(4, 1, 28, 28), torch.arange(4)
    with NoWaiting(): objective(net, x, y).backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())

@objectives
def test_no_label_is_ignored(objective, digits):
    "PyTorch's cross-entropy leaves out samples with the label -100"
    net, x, y = pretrained('baseline'), digits.test.x[:8], digits.test.y[:8]
    for bad in (-100, -1, 10):
        wrong = y.clone()
        wrong[3] = bad
        with NoWaiting(), pytest.raises(ValueError, match='y must lie in 0 … 9'): objective(net, x, wrong)

@objectives
def test_types_that_differ(objective, digits):
    with pytest.raises(TypeError, match="the model's weights, torch.float32 on cpu, got torch.float64 on cpu"): objective(pretrained('baseline'), digits.test.x[:8].double(), digits.test.y[:8])

def test_boxes_and_step_sizes_per_sample_are_refused(digits):
    "`index` picks radii alone: such a box would be that of other samples"
    net, x, y = pretrained('baseline'), digits.test.x[:8], digits.test.y[:8]
    for make in (Robust, Surrogate, AdversarialMix):
        each = make(Linf(0.1), box=(torch.zeros(8, 1, 1, 1), 1.))
        with pytest.raises(ValueError, match=r'box must be one for all samples, got a tensor of shape \(8, 1, 1, 1\)'): each(net, x, y)
        with pytest.raises(ValueError, match='box must be one for all samples'): each.prepare(x, y)
        assert_close(make(Linf(0.1), box=(torch.zeros(1, 28, 28), 1.))(net, x, y), make(Linf(0.1))(net, x, y))
    for each in (Free(Linf(0.1), box=(torch.zeros(8, 1, 1, 1), 1.)), Trades(Linf(0.1), 1., box=(torch.zeros(8, 1, 1, 1), 1.))):
        with pytest.raises(ValueError, match='box must be one for all samples'): each(net, x, y)
    with pytest.raises(ValueError, match='step_size must be one number for all samples'): Robust(Linf(0.1), steps=2, step_size=torch.ones(8))
    with pytest.raises(ValueError, match='box must satisfy lo <= hi'): Robust(Linf(0.1), box=(torch.ones(1, 28, 28), 0.)).prepare(x, y)
