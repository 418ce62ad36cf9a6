"""Inner solvers and virtual perturbations on random nets and odd input: never below one step, always feasible, and the model is left as it was."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from robust_nb.perturbation import log_odds, perturb
from robust_nb.sets import Ellipsoid, Group, Lp, Masked, Subspace
from robust_nb.solvers import dlr, frank_wolfe, lbfgs, margin, multi_targeted
from robust_nb.uncertainty import L1, L2, Linf
from robust_nb.virtual import divergence, kl_hessian, virtual_adversarial

BALLS = [Linf(0.3), L2(0.5), L1(0.8), Lp(1.5, 0.6), Lp(4, 0.4), Group(1, torch.inf, 1, 0.8)]
OTHERS = [Ellipsoid(torch.linspace(0.5, 2., 6, dtype=torch.float64), 0.3), Masked(L2(0.5), torch.tensor([[True] + 5 * [False]])), Subspace(torch.eye(6, dtype=torch.float64)[:2], 0.3)]
SOLVERS = [frank_wolfe, lbfgs, multi_targeted]
named = dict(ids=lambda f: getattr(f, "__name__", None) or repr(f))


def net_of(seed, K=3, dtype=torch.float64, n=6):
    g = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, K)).to(dtype)
    with torch.no_grad():
        for p in net.parameters(): p.copy_(torch.randn(p.shape, generator=g))
    x = torch.rand(n, 6, generator=g, dtype=torch.float64).to(dtype)
    return net, x, net(x).argmax(1)


@pytest.mark.parametrize("box", [None, (0., 1.)], ids=["no box", "box"])
@pytest.mark.parametrize("U", BALLS + OTHERS, **named)
@pytest.mark.parametrize("solver", [frank_wolfe, lbfgs], **named)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10**6), targeted=st.booleans())
def test_feasible_and_never_below_one_step(solver, U, box, seed, targeted):
    net, x, y = net_of(seed)
    if solver is lbfgs and U in OTHERS:
        with pytest.raises(TypeError, match="U must be Linf, L2, L1, Lp or Group"): solver(net, x, y, U, box=box)
        return
    sign = -1 if targeted else 1
    value = lambda moved: sign * log_odds(net(moved), y).detach()
    moved, one = solver(net, x, y, U, steps=8, box=box, targeted=targeted), perturb(net, x, y, U, box=box, targeted=targeted)
    assert (value(moved) >= torch.maximum(value(x), value(one)) - 1e-9).all()
    assert U.contains(moved - x, x, box).all() and not moved.requires_grad


@pytest.mark.parametrize("U", BALLS + OTHERS, **named)
def test_multi_targeted_flips_what_perturb_flips(U):
    net, x, y = net_of(1, n=40)
    moved, plain = multi_targeted(net, x, y, U, steps=5), perturb(net, x, y, U, steps=5)
    flips = lambda z: net(z).argmax(1) != y
    assert (flips(moved) | ~flips(plain)).all() and U.contains(moved - x, x, (0., 1.)).all()
    assert (margin(net(moved), y) >= margin(net(plain), y)).all()


@pytest.mark.parametrize("solver", SOLVERS, **named)
def test_a_sample_alone_radius_per_sample_and_empty_batch(solver):
    net, x, y = net_of(2)
    r = torch.linspace(0, 0.5, 6, dtype=torch.float64)
    lo, hi = x * 0.5, torch.ones(6, dtype=torch.float64)
    moved = solver(net, x, y, L2(r), steps=4, box=(lo, hi))
    assert torch.equal(moved[0], x[0])                                  # radius 0
    for i in range(6): torch.testing.assert_close(solver(net, x[i:i+1], y[i:i+1], L2(r[i].item()), steps=4, box=(lo[i:i+1], hi))[0], moved[i], rtol=1e-6, atol=1e-8)
    assert solver(net, x[:0], y[:0], L2(0.1)).shape == (0, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("solver", SOLVERS + [virtual_adversarial], **named)
def test_model_is_left_as_it_was(solver, dtype):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)).to(dtype).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, y = torch.rand(5, 6).to(dtype), torch.zeros(5, dtype=torch.int64)
    given = (x,) if solver is virtual_adversarial else (x, y)
    for mode in (dict(mode="eval"), dict(mode="train"), {}):
        if mode and solver is not frank_wolfe: continue
        with torch.inference_mode(): moved = solver(net, *given, Linf(0.2), steps=3, **mode)
        assert moved.dtype == dtype and Linf(0.2).contains(moved.clone() - x, x, (0., 1.)).all()
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("change, error, text", [
    (dict(U=0.1), TypeError, "U must be an UncertaintySet"), (dict(y=torch.full((6,), 7)), ValueError, "y must lie in 0 … 2"), (dict(steps=0), ValueError, "steps must be"), (dict(box=(1., 0.)), ValueError, "box must"),
    (dict(x=torch.full((6, 6), torch.nan, dtype=torch.float64)), ValueError, "x must be finite"), (dict(x=torch.full((6, 6), 2., dtype=torch.float64)), ValueError, "x must lie in box"),
    (dict(x=torch.zeros(6, 6)), TypeError, "x must have the type and device"), (dict(mode="test"), ValueError, "mode must be")])
@pytest.mark.parametrize("solver", SOLVERS + [virtual_adversarial], **named)
def test_bad_input(solver, change, error, text):
    net, x, y = net_of(0)
    given = dict(x=x, y=y, U=L2(1.)) | change
    if "mode" in change and solver is not frank_wolfe: error, text = TypeError, "mode"
    if solver is virtual_adversarial:
        del given["y"]
        if "y" in change: return
    with pytest.raises(error, match=text): solver(net, **given)


@pytest.mark.parametrize("name", ["loss", "targeted", "mode"])
def test_multi_targeted_chooses_its_own_losses(name):
    net, x, y = net_of(0)
    with pytest.raises(TypeError, match=f"{name} must not be given"): multi_targeted(net, x, y, L2(1.), **{name: margin})


def test_losses_against_their_definitions():
    z, y = torch.tensor([[3., 1., 0.], [0., 2., 5.]]), torch.tensor([0, 1])
    assert margin(z, y).tolist() == [-2., 3.] and torch.allclose(dlr(z, y), torch.tensor([-2 / 3, 3 / 5]))
    assert dlr(torch.zeros(1, 3), torch.tensor([0])).item() == 0


# Virtual perturbations

@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), K=st.integers(2, 6))
def test_hessian_product_against_two_derivatives(seed, K):
    net, x, _ = net_of(seed, K, n=2)
    v = torch.randn(2, 6, dtype=torch.float64)
    p = net(x).softmax(1).detach()
    for i in range(2):
        H = torch.autograd.functional.hessian(lambda a: -(p[i] * net(a).log_softmax(0)).sum(), x[i])
        torch.testing.assert_close(kl_hessian(net, x)(v)[i], H @ v[i], rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("box", [None, (0., 1.)], ids=["no box", "box"])
@pytest.mark.parametrize("U", BALLS + OTHERS, **named)
def test_virtual_ascends_inside_the_set(U, box):
    "Written out: no product steps down, and of the last step both ways the end with the larger divergence comes out"
    net, x, _ = net_of(3)
    H, values = kl_hessian(net, x), []
    def end(slope): return U.steepest_ascent(slope, x, box)
    def kl(delta): return divergence(net(x), net(x + delta)).detach()
    delta = U.sample(x, x, box, torch.Generator().manual_seed(0))
    for k in range(1, 9):
        slope = H(delta)
        delta = end(slope)
        values.append((delta * H(delta)).sum(1))
        found = virtual_adversarial(net, x, U, steps=k, box=box, generator=torch.Generator().manual_seed(0)) - x
        assert U.contains(found, x, box).all()
        torch.testing.assert_close(kl(found), torch.maximum(kl(delta), kl(end(-slope))), rtol=1e-6, atol=1e-12)
    assert (torch.stack(values).diff(dim=0) >= -1e-9).all() and (values[-1] > 0).any()


def test_virtual_on_confident_samples_in_float32():
    net, x, _ = net_of(4, dtype=torch.float32)
    with torch.no_grad(): net[2].weight.mul_(20), net[2].bias.mul_(20)
    v = torch.randn(6, 6)
    exact = kl_hessian(net.double(), x.double())(v.double())
    ours = kl_hessian(net.float(), x)(v).double()
    unit = lambda a: a / a.norm(dim=1, keepdim=True)
    assert ((unit(ours) * unit(exact)).sum(1) > 0.9999).all() and exact.norm(dim=1).min() < 1e-6
    assert virtual_adversarial(net, x, L2(0.1), box=None).sub(x).norm(dim=1).min() > 0.0999


def test_virtual_needs_a_model_that_depends_on_x():
    class Constant(nn.Module):
        def forward(self, x): return torch.tensor([[1., 2.]]).expand(len(x), 2)
    with pytest.raises(ValueError, match="model must depend on x"): virtual_adversarial(Constant(), torch.rand(3, 6), L2(0.1))


def test_what_lbfgs_asks_of_a_loss():
    net, x, y = net_of(5)
    with pytest.raises(ValueError, match="loss must return one value per sample"): lbfgs(net, x, y, L2(0.3), loss=lambda z, y: log_odds(z, y).sum())
    with pytest.raises(TypeError, match="loss must be a function"): frank_wolfe(net, x, y, L2(0.3), loss=None)
    for f in (margin, dlr):
        with pytest.raises(ValueError, match="y must lie in 0 … 2"): f(net(x), y + 3)


def test_virtual_bad_input_and_saturated_nets():
    net, x, _ = net_of(6)
    for bad in (None, 3, x.numpy(), (x * 9).long()):
        with pytest.raises(TypeError, match="x must be"): virtual_adversarial(net, bad, L2(0.1))
        with pytest.raises(TypeError, match="x must be"): kl_hessian(net, bad)
    with pytest.raises(ValueError, match="v must have the shape of x"): kl_hessian(net, x)(x[:2])
    with pytest.raises(ValueError, match="v must be finite"): kl_hessian(net, x)(x * torch.nan)
    sure = nn.Linear(6, 3)
    with torch.no_grad(): sure.weight.mul_(1e6)
    with pytest.warns(UserWarning, match="Hessian is exactly 0"): virtual_adversarial(sure, x.float(), L2(0.3))
    normed = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    before = normed[1].running_mean.clone()
    kl_hessian(normed, x.float())
    assert torch.equal(normed[1].running_mean, before) and normed.training
