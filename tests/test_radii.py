"""`smallest_radius`, `first_order_radius` and `szegedy` on random linear models and odd input: the certificate holds for every set, and the model is left as it was."""
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from robust_nb.perturbation import log_odds, perturb
from robust_nb.sets import Ellipsoid, Group, Lp, Masked, Subspace
from robust_nb.radii import first_order_radius, smallest_radius, szegedy
from robust_nb.solvers import frank_wolfe, lbfgs, multi_targeted
from robust_nb.uncertainty import L1, L2, Linf


def linear(seed, d, K, dtype=torch.float64):
    net = nn.Linear(d, K, dtype=dtype)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad(): net.weight.normal_(generator=g), net.bias.normal_(generator=g)
    x = torch.rand(40, d, generator=g, dtype=dtype)
    return net, x, net(x).argmax(1)


def certified(net, x, y, U, r, moved, box):
    hit = r.isfinite()
    assert (net(moved).argmax(1) != y)[hit].all() and torch.equal(moved[~hit], x[~hit])
    delta = moved - x
    assert U.with_radius(torch.where(hit, r, 0)).contains(delta).all()
    if box: assert (moved >= box[0]).all() and (moved <= box[1]).all()


KINDS = [lambda: Linf(9.), lambda: L2(9.), lambda: L1(30.), lambda: Lp(1.5, 20.), lambda: Lp(4, 9.), lambda: Group(1, torch.inf, 1, 30.),
         lambda: Ellipsoid(torch.linspace(0.5, 2., 6, dtype=torch.float64), 20.), lambda: Masked(L2(20.), torch.tensor([[True] + 5 * [False]]))]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: repr(k()))
@pytest.mark.parametrize("box", [None, (0., 1.)], ids=["no box", "box"])
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_two_classes_are_exact(kind, box, seed):
    net, x, y = linear(seed, 6, 2)
    exact = first_order_radius(net, x, y, kind(), box=box)
    r, moved = smallest_radius(net, x, y, kind(), box=box)
    found = r.isfinite() | exact.isfinite()
    torch.testing.assert_close(r[found], exact[found], rtol=2e-3, atol=1e-9)
    certified(net, x, y, kind(), r, moved, box)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), K=st.integers(3, 6))
def test_attack_is_never_below_the_exact_radius_of_many_classes(seed, K):
    net, x, y = linear(seed, 8, K)
    for U in (Linf(9.), L2(9.), L1(30.)):
        r, moved = smallest_radius(net, x, y, U, steps=5)
        assert (r >= first_order_radius(net, x, y, U) * (1 - 1e-9)).all()
        certified(net, x, y, U, r, moved, (0., 1.))


def test_subspace_moves_in_its_plane_alone():
    net, x, y = linear(3, 6, 2)
    U = Subspace(torch.eye(6, dtype=torch.float64)[:2], 20.)
    r, moved = smallest_radius(net, x, y, U, box=None)
    w = (net.weight[0] - net.weight[1]).detach()
    torch.testing.assert_close(r, (net(x)[:, 0] - net(x)[:, 1]).abs().detach() / w[:2].norm(), rtol=2e-3, atol=1e-9)
    assert torch.equal(moved[:, 2:], x[:, 2:])


def test_radius_per_sample_tensor_box_and_samples_that_are_misread():
    net, x, y = linear(5, 6, 3)
    wrong = torch.arange(40) % 4 == 0
    y = torch.where(wrong, (y + 1) % 3, y)
    limit = torch.linspace(0, 2, 40, dtype=torch.float64)
    r, moved = smallest_radius(net, x, y, L2(limit), box=(torch.zeros(40, 6, dtype=torch.float64), torch.ones(6, dtype=torch.float64)))
    assert torch.equal(r == 0, wrong) and torch.equal(moved[wrong], x[wrong])
    assert ((r <= limit) | r.isinf())[~wrong].all() and r.isinf().any() and (r > 0).any()
    alone, _ = smallest_radius(net, x[7:8], y[7:8], L2(limit[7:8]))
    torch.testing.assert_close(alone, r[7:8])
    first, each = (first_order_radius(net, x, y, L2(v)) for v in (2., limit))
    assert torch.equal(each, torch.where(first <= limit, first, torch.inf)) and each.isinf().any() and each.isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_is_left_as_it_was(dtype):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 3)).to(dtype).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, y = torch.rand(9, 6, dtype=dtype), torch.zeros(9, dtype=torch.int64)
    with torch.inference_mode():
        r, moved = smallest_radius(net, x, y, Linf(0.5), steps=3)
        first_order_radius(net, x, y, Linf(0.5))
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and all(p.grad is None for p in net.parameters())
    assert moved.dtype == dtype and r.dtype == torch.float32
    if dtype == torch.float32: assert (net.eval()(moved.clone()).argmax(1) != y)[r.isfinite()].all()


def test_no_gradient_never_flips():
    class Flat(nn.Module):
        def forward(self, x): return 0 * x.flatten(1)[:, :2] + torch.tensor([2., 0.])
    x, y = torch.rand(4, 6), torch.zeros(4, dtype=torch.int64)
    with pytest.warns(UserWarning, match="exactly 0"): r, moved = smallest_radius(Flat(), x, y, Linf(0.5))
    assert r.isinf().all() and torch.equal(moved, x) and first_order_radius(Flat(), x, y, Linf(0.5)).isinf().all()


@pytest.mark.parametrize("change, error, text", [
    (dict(U=0.1), TypeError, "U must be an UncertaintySet"), (dict(y=torch.full((40,), 7)), ValueError, "y must lie in 0 … 1"), (dict(y=torch.zeros(3, dtype=torch.int64)), ValueError, "y must have shape"),
    (dict(x=torch.full((40, 6), torch.nan, dtype=torch.float64)), ValueError, "x must be finite"), (dict(x=torch.full((40, 6), 2., dtype=torch.float64)), ValueError, "x must lie in box"),
    (dict(x=torch.zeros(40, 6)), TypeError, "x must have the type and device"), (dict(box=(1., 0.)), ValueError, "box must")])
def test_bad_input(change, error, text):
    net, x, y = linear(0, 6, 2)
    given = dict(x=x, y=y, U=L2(1.)) | change
    for f in (smallest_radius, first_order_radius):
        with pytest.raises(error, match=text): f(net, **given)


@pytest.mark.parametrize("tol", [0, 1, -1, True, "a", float("nan")])
def test_bad_tol(tol):
    net, x, y = linear(0, 6, 2)
    with pytest.raises(ValueError, match="tol must be a number between 0 and 1"): smallest_radius(net, x, y, L2(1.), tol=tol)


def test_large_limits_tiny_radii_and_odd_models():
    net, x, y = linear(1, 6, 2)
    exact = first_order_radius(net, x, y, L2(1e3), box=None)
    for limit in (1e3, 1e6, 1e8):
        r, moved = smallest_radius(net, x, y, L2(limit), box=None)
        torch.testing.assert_close(r, exact, rtol=2e-3, atol=1e-12)

    class Odd(nn.Module):
        def __init__(self, f): super().__init__(); self.f = f
        def forward(self, x): return torch.stack([2 + 0 * x[:, 0], self.f(x)], 1)
    x, y = torch.full((3, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    holes = Odd(lambda x: torch.where(x[:, 0] > 0.7, torch.nan, x[:, 0]))
    with pytest.raises(ValueError, match="finite logits"): smallest_radius(holes, x, y, Linf(0.4))
    kink = Odd(lambda x: (x - 0.5).square().sum(1).sqrt())
    for f in (smallest_radius, first_order_radius):
        with pytest.raises(ValueError, match="the gradient of"): f(kink, x, y, Linf(0.4))
        with pytest.raises(ValueError, match="radius must"): f(kink, x, y, Linf(torch.ones(2)))


def test_step_size_per_sample_and_bad_attack():
    net, x, y = linear(2, 6, 3)
    r, moved = smallest_radius(net, x, y, L2(4.), steps=3, step_size=torch.full((40,), 0.5))
    certified(net, x, y, L2(4.), r, moved, (0., 1.))
    with pytest.raises(ValueError, match="steps must be"): smallest_radius(net, x, (y + 1) % 3, L2(4.), steps=0)


@pytest.mark.parametrize("solver", [frank_wolfe, lbfgs, multi_targeted], ids=lambda s: s.__name__)
def test_radius_by_other_solvers(solver):
    net, x, y = linear(4, 6, 2)
    for U in (Linf(9.), L2(9.), L1(30.)):
        r, moved = smallest_radius(net, x[:10], y[:10], U, solver=solver, steps=2)
        torch.testing.assert_close(r, first_order_radius(net, x[:10], y[:10], U), rtol=2e-3, atol=1e-9)
        certified(net, x[:10], y[:10], U, r, moved, (0., 1.))
    with pytest.raises(TypeError, match="solver must be a function"): smallest_radius(net, x, y, L2(1.), solver="pgd")


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), boxed=st.booleans())
def test_szegedy_is_exact_for_two_linear_classes(seed, boxed):
    net, x, y = linear(seed, 6, 2)
    x, y, box = x[:8], y[:8], (0., 1.) if boxed else None
    exact = first_order_radius(net, x, y, L2(20.), box=box)
    r, moved = szegedy(net, x, 1 - y, box=box, tol=1e-4)
    assert torch.equal(r.isinf(), exact.isinf()) and (r >= exact * (1 - 1e-9)).all()
    hit = r.isfinite()
    torch.testing.assert_close(r[hit], exact[hit], rtol=1e-3, atol=1e-3)
    assert torch.equal(net(moved).argmax(1)[hit], (1 - y)[hit]) and torch.equal(moved[~hit], x[~hit])
    if boxed: assert (moved >= 0).all() and (moved <= 1).all()


def test_szegedy_box_per_pixel_types_and_empty_batch():
    net, x, y = linear(6, 6, 3, torch.float32)
    lo, hi = x.clone(), x.clone()
    hi[:, :3] = 1.; lo[:, :3] = 0.                                        # the last three pixels may not move
    r, moved = szegedy(net, x[:5], (y[:5] + 1) % 3, box=(lo[:5], hi[:5]))
    assert torch.equal(moved[:, 3:], x[:5, 3:]) and r.dtype == torch.float32 and r.isfinite().any()
    empty, none = szegedy(net, x[:0], y[:0])
    assert empty.shape == (0,) and none.shape == (0, 6)
    held = nn.Sequential(net, nn.BatchNorm1d(3)).train()
    before = {k: v.clone() for k, v in held.state_dict().items()}
    szegedy(held, x[:2], y[:2])
    assert held.training and all(torch.equal(v, before[k]) for k, v in held.state_dict().items()) and all(p.grad is None for p in held.parameters())


@pytest.mark.parametrize("change, error, text", [
    (dict(y=torch.full((40,), 7)), ValueError, "y must lie in 0 … 1"), (dict(x=torch.full((40, 6), torch.nan, dtype=torch.float64)), ValueError, "x must be finite"), (dict(steps=0), ValueError, "steps must be"),
    (dict(x=torch.full((40, 6), 2., dtype=torch.float64)), ValueError, "x must lie in box"), (dict(tol=0), ValueError, "tol must be"), (dict(box=(1., 0.)), ValueError, "box must")])
def test_szegedy_bad_input(change, error, text):
    net, x, y = linear(0, 6, 2)
    with pytest.raises(error, match=text): szegedy(net, **(dict(x=x, y=y) | change))


class Scaled(nn.Module):
    "The same net for samples in other units"
    def __init__(self, net, unit): super().__init__(); self.net, self.unit = net, unit
    def forward(self, x): return self.net(x / self.unit)


def curved(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).to(dtype)
    with torch.no_grad():
        for p in net.parameters(): p.copy_(torch.randn(p.shape, generator=g))
    x = torch.rand(6, 6, generator=g).to(dtype)
    return net, x, net(x).argmax(1), net(x).topk(2, 1).indices[:, 1]


@pytest.mark.parametrize("unit", [1e-4, 255., 1e5])
def test_units_do_not_matter(unit):
    net, x, y, other = curved()
    here = szegedy(net, x, other, box=(0., 1.))[0]
    assert here.isfinite().any()
    torch.testing.assert_close(szegedy(Scaled(net, unit), x * unit, other, box=(0., unit))[0] / unit, here, rtol=2e-2, atol=1e-4)
    value = lambda net, moved: log_odds(net(moved), y).detach()
    torch.testing.assert_close(value(Scaled(net, unit), lbfgs(Scaled(net, unit), x * unit, y, L2(0.5 * unit), box=(0., unit))), value(net, lbfgs(net, x, y, L2(0.5))), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("distance", [0.1, 1e-3, 1e-8])
def test_szegedy_close_to_the_boundary(distance):
    net = nn.Linear(2, 2).double()
    with torch.no_grad(): net.weight.copy_(torch.tensor([[1., 0], [-1, 0]])), net.bias.zero_()
    r, _ = szegedy(net, torch.tensor([[distance, 0.5]]).double(), torch.tensor([1]), box=None)
    assert distance * (1 - 1e-9) <= r.item() <= distance * (1 + 1e-5)


@pytest.mark.parametrize("tol", [1e-2, 1e-17])
def test_szegedy_comes_to_an_end(tol):
    net, x, _, other = curved(torch.float64)
    r, moved = szegedy(net, x, other, tol=tol, steps=20, box=None)
    assert r.isfinite().all() and torch.equal(net(moved).argmax(1), other)


def test_large_limits_and_tiny_radii():
    net, x, y = linear(3, 6, 3)
    x, y = x[:5], y[:5]
    for limit in (1e9, 1e30, 1e300): torch.testing.assert_close(first_order_radius(net, x, y, Linf(limit)), first_order_radius(net, x, y, Linf(1e3)), rtol=1e-9, atol=0)
    for limit in (1e30, 1e300): torch.testing.assert_close(smallest_radius(net, x, y, L2(limit), box=None)[0], first_order_radius(net, x, y, L2(1e3), box=None), rtol=0.5, atol=0)
    plain = nn.Linear(2, 2).double()
    with torch.no_grad(): plain.weight.copy_(torch.tensor([[1., 0], [-1, 0]])), plain.bias.zero_()
    near = torch.tensor([[1e-60, 0.5]]).double()
    for f in (first_order_radius, lambda *a, **k: smallest_radius(*a, **k)[0]): assert f(plain, near, torch.tensor([0]), L2(1.), box=(-1., 1.)).item() == pytest.approx(1e-60, rel=2e-3)


def test_half_precision_says_what_the_attack_says():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()
    x = torch.rand(8, 6).bfloat16()
    y = net(x).argmax(1)
    flips = net(perturb(net, x, y, L2(5.))).argmax(1) != y
    r, moved = smallest_radius(net, x, y, L2(5.))
    assert flips.sum() >= 4 and (r.isfinite() | ~flips).all() and (net(moved).argmax(1) != y)[r.isfinite()].all()


def test_a_solver_that_cheats_is_found_out():
    net, x, y = linear(0, 6, 2)
    with pytest.raises(ValueError, match="solver must return x . Δ with Δ in U"): smallest_radius(net, x, y, L2(3.), box=None, solver=lambda m, x, y, U, **k: perturb(m, x, y, U.scaled(100), box=None))
    with pytest.raises(TypeError, match="solver must return x . Δ like x"): smallest_radius(net, x, y, L2(3.), solver=lambda *a, **k: None)
    with pytest.raises(TypeError, match="mode must not be given"): smallest_radius(net, x, y, L2(3.), mode="train")


def test_logits_that_are_not_finite_on_the_way():
    class Hole(nn.Module):
        def forward(self, x): return torch.cat([x.sum(1, keepdim=True) * torch.where(x[:, :1] > 0.2, torch.nan, 1.), 5 * x[:, :1]], 1)
    x = torch.full((2, 6), 0.1)
    y = Hole()(x).argmax(1)
    with pytest.raises(ValueError, match="finite"): szegedy(Hole(), x, 1 - y)
    for f in (lbfgs, frank_wolfe):
        with pytest.raises(ValueError, match="finite"): f(Hole(), x, y, L2(1.))


def test_a_model_that_ignores_x():
    class Ignores(nn.Module):
        def __init__(self): super().__init__(); self.b = nn.Parameter(torch.tensor([0., 2., 1.]))
        def forward(self, x): return self.b.expand(len(x), 3)
    x, y = torch.rand(3, 6), torch.ones(3, dtype=torch.int64)
    for f in (perturb, frank_wolfe, lbfgs, multi_targeted, first_order_radius, smallest_radius):
        with pytest.raises(ValueError, match="model must depend on x"): f(Ignores(), x, y, L2(0.1))
    with pytest.raises(ValueError, match="model must depend on x"): szegedy(Ignores(), x, y * 0)
