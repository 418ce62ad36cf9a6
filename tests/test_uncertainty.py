"""Properties of the uncertainty sets, on random instances: against solvers of scipy and cvxpy, bisection in numpy, and 10,000 rivals.

What a reader learns from is asserted on the page; here are the ranges, types, shapes and corners.
"""
import math, warnings
import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from scipy.optimize import linprog
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from robust_nb import uncertainty
from robust_nb.uncertainty import L1, L2, Linf, NormBall, UncertaintySet, check_batch, check_box, check_inside

BALLS = [Linf, L2, L1]
DUAL = {Linf: 1, L2: 2, L1: math.inf}
NORM = {Linf: math.inf, L2: 2, L1: 1}
BOX = (0., 1.)
sets = pytest.mark.parametrize('ball', BALLS)
boxes = pytest.mark.parametrize('box', [None, BOX], ids=['free', 'box'])
radii = st.one_of(st.floats(1e-3, 5), st.sampled_from([1e-9, 1e-4, 100., 1e6]))
seeds = st.integers(0, 2**32 - 1)

def many(n): return settings(max_examples=n, deadline=None, derandomize=True, database=None)

@st.composite
def instances(draw, shapes=st.sampled_from([(1, 1), (1, 7), (5, 3), (3, 40), (2, 1, 6, 6)]), dtype=torch.float64, kinds=('smooth', 'ties', 'zeros', 'scales')):
    "(g, x): gradients with ties, zeros and several scales in one sample, samples that often lie on the boundary of the box"
    shape, gen = draw(shapes), torch.Generator().manual_seed(draw(seeds))
    g = torch.randn(shape, generator=gen, dtype=torch.float64)
    kind = draw(st.sampled_from(kinds))
    if kind == 'ties': g = g.round()
    if kind == 'zeros': g = g * (torch.rand(shape, generator=gen) < 0.3)
    if kind == 'scales': g = g * 10. ** torch.randint(-8, 1, shape, generator=gen)
    x = (torch.rand(shape, generator=gen, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)
    return g.to(dtype), x.to(dtype)

def given_box(x, box): return {} if box is None else dict(x=x, box=box)

def limits(x, box, d):
    "What Δ may be in each coordinate, as numpy arrays"
    return (np.full(d, -1e3), np.full(d, 1e3)) if box is None else (-x.numpy().ravel(), 1 - x.numpy().ravel())

def rivals(ball, r, x, box, count, seed):
    "Random points of U ∩ box of one sample, shape (count, d), made without the module: many on the boundary of both"
    rng, d = np.random.default_rng(seed), x[0].numel()
    z = rng.normal(size=(count, d)) * 10. ** rng.integers(-3, 4, size=(count, d)) * (rng.random((count, d)) < rng.random((count, 1)))
    p = NORM[ball]
    lo, hi = limits(x, box, d)
    for _ in range(3):  # onto the sphere, into the box: smaller sizes, so still in the ball; again, to use what was freed
        z *= (r / np.maximum(np.linalg.norm(z, p, axis=1, keepdims=True), 1e-300))
        z = z.clip(lo, hi)
    return torch.from_numpy(z)

# The maximum

@sets
@many(40)
@given(data=instances(), r=radii)
def test_value_is_the_dual_norm(ball, data, r):
    g, _ = data
    assert_close(ball(r).support(g), r * torch.linalg.vector_norm(g.flatten(1), DUAL[ball], dim=1), rtol=1e-10, atol=0)

@boxes
@sets
@many(20)
@given(data=instances(), r=radii, seed=seeds)
def test_step_is_feasible_and_beats_10000_points(ball, box, data, r, seed):
    g, x = data[0][:1], data[1][:1]
    U = ball(r)
    step = U.steepest_ascent(g, **given_box(x, box))
    assert U.contains(step, **given_box(x, box), tol=1e-12).all()
    others = rivals(ball, r, x, box, 10_000, seed)
    best, value = (others @ g.flatten()).max().item(), (g * step).sum().item()
    assert best <= value + 1e-12 * abs(value) + 1e-300
    assert_close(U.support(g, **given_box(x, box)), torch.tensor([value], dtype=g.dtype))

def solved(problem):
    "The optimum; an instance on which the solver gives up is passed over"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: value = problem.solve(solver='CLARABEL')
        except cp.error.SolverError: assume(False)
    assume(problem.status == 'optimal')
    return value

def solver_maximum(ball, g, r, lo, hi):
    "max ⟨g, Δ⟩ by scipy's linear programs and by cvxpy"
    d = len(g)
    if ball is Linf: return -linprog(-g, bounds=np.c_[lo.clip(-r), hi.clip(max=r)]).fun
    if ball is L1: return -linprog(np.r_[-g, g], np.ones((1, 2 * d)), r, bounds=np.c_[np.zeros(2 * d), np.r_[hi, -lo]]).fun
    D = cp.Variable(d)
    return solved(cp.Problem(cp.Maximize(g @ D), [cp.norm2(D) <= r, D >= lo, D <= hi]))

SMALL = instances(st.sampled_from([(1, 2), (1, 5), (1, 8)]), kinds=('smooth', 'ties', 'zeros'))  # solvers have absolute tolerances

@boxes
@sets
@many(30)
@given(data=SMALL, r=st.floats(0.01, 3))
def test_maximum_agrees_with_solvers(ball, box, data, r):
    g, x = data
    value = ball(r).support(g, **given_box(x, box)).item()
    assert abs(value - solver_maximum(ball, g[0].numpy(), r, *limits(x, box, g.numel()))) < (1e-9 if ball is not L2 else 1e-6)

@many(60)
@given(seed=seeds, r=st.sampled_from([1e-30, 1e-12, 1e-5, 0.3, 3., 20., 1e10, 1e30]), spread=st.sampled_from([0, 3, 12, 30]), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_l2_in_the_box_over_all_ranges(seed, r, spread, dtype):
    "Against bisection in t, for image-sized samples whose gradients span up to 30 decades"
    rng, d = np.random.default_rng(seed), 784
    g = torch.tensor(rng.normal(size=(1, d)) * 10. ** rng.uniform(-spread, 0, (1, d)), dtype=dtype)
    x = torch.tensor(rng.uniform(-0.5, 1.5, (1, d)).clip(0, 1), dtype=dtype)
    step = L2(r).steepest_ascent(g, x, BOX)
    a, b = g[0].abs().numpy().astype(np.longdouble), torch.where(g > 0, 1 - x, x)[0].numpy().astype(np.longdouble)
    size = lambda t: np.minimum(np.longdouble(10) ** t * a, b)
    if np.sqrt((b[a > 0] ** 2).sum()) <= r: expected = np.where(a > 0, b, 0)
    else:
        lo, hi = -100., 100.
        for _ in range(200):
            mid = (lo + hi) / 2
            lo, hi = (mid, hi) if np.sqrt((size(mid) ** 2).sum()) <= r else (lo, mid)
        expected = size(lo)
    assert_close(step[0].abs().double(), torch.tensor(expected.astype(float)), rtol=3e-6 if dtype == torch.float32 else 1e-9, atol=1e-12 * min(r, 30.))
    assert (step.sign() * g.sign() >= 0).all()

def test_l2_in_the_box_where_everything_coincides():
    "Few values for gradient, room and radius, so that bounds, radius and breakpoints fall together; bisection in numpy"
    rng, n = np.random.default_rng(0), 60_000
    g = rng.choice([0, 0, 1, 0.5, 0.3, 1e-4, 1e-9, 1.7], (n, 3)) * rng.choice([-1, 1], (n, 3))
    x, r = rng.choice([0, 0.25, 0.5, 0.75, 1], (n, 3)), rng.choice([0.25, 0.5, 0.75, 1, 0.5 ** 0.5, 0.3125 ** 0.5, 1.5, 2], n)
    a, b = np.abs(g), np.where(g > 0, 1 - x, x) * (g != 0)
    lo, hi = np.full((n, 1), -30.), np.full((n, 1), 30.)
    for _ in range(120):
        mid = (lo + hi) / 2
        fits = np.linalg.norm(np.minimum(10 ** mid * a, b), axis=1, keepdims=True) <= r[:, None]
        lo, hi = np.where(fits, mid, lo), np.where(fits, hi, mid)
    expected = np.sign(g) * np.minimum(10 ** lo * a, b)
    for dtype, tol in (torch.float64, 1e-7), (torch.float32, 1e-3):  # the root of a rounding error, where two pixels differ by 1e-9
        step = L2(torch.tensor(r, dtype=dtype)).steepest_ascent(torch.tensor(g, dtype=dtype), torch.tensor(x, dtype=dtype), BOX)
        value, best = (step.double().numpy() * g).sum(1), (expected * g).sum(1)
        assert np.abs(value - best).max() < tol * 1e-3 and np.abs(step.double().numpy() - expected).max() < tol
        assert (step.norm(dim=1) <= torch.tensor(r) * (1 + tol * 1e-3)).all()

@boxes
@sets
def test_every_bound_is_met_when_the_radius_is_huge(ball, box):
    g, x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)), torch.rand(3, 50, generator=torch.Generator().manual_seed(1))
    for r in (1e3, 1e20, 1e38, 1e300):
        step = ball(r).steepest_ascent(g, **given_box(x, box))
        assert step.isfinite().all()
        if box: assert torch.equal(step, torch.where(g > 0, 1 - x, -x))

@sets
def test_a_sample_with_no_room_stays(ball):
    x = torch.tensor([[0., 1., 0., 1.]])
    g = torch.tensor([[-1., 1., -1e-20, 3e20]])
    assert not ball(0.5).steepest_ascent(g, x, BOX).any()
    assert torch.equal(x + ball(1e9).steepest_ascent(-g, x, BOX), 1 - x)

def test_l1_spends_no_more_than_the_radius():
    "Room far below the radius' rounding, and far above it"
    g, x = torch.tensor([[3., 2., 1.]]), torch.tensor([[1 - 2.**-24, 0., 0.]])
    for r in (1e-9, 2.**-24, 1e-7, 0.5, 2.5): assert_close(L1(r).norm(L1(r).steepest_ascent(g, x, BOX)), torch.tensor([min(r, 2.)]), rtol=1e-6, atol=0)

@sets
@boxes
def test_ties_go_to_the_first_index_and_repeat(ball, box):
    g, x = torch.tensor([[2., -2., 2., 0.]]), torch.tensor([[0.9, 0.5, 0.5, 0.5]])
    step = ball(0.3).steepest_ascent(g, **given_box(x, box))
    assert torch.equal(step, ball(0.3).steepest_ascent(g, **given_box(x, box)))
    if ball is L1: assert_close(step, torch.tensor([[0.1, -0.2, 0., 0.] if box else [0.3, 0., 0., 0.]]))

# Projection

@boxes
@sets
@many(25)
@given(data=instances(), r=radii, seed=seeds)
def test_projection_is_feasible_idempotent_and_non_expansive(ball, box, data, r, seed):
    z, x = data
    U, given_x = ball(r), given_box(x, box)
    p = U.project(z, **given_x)
    assert U.contains(p, **given_x, tol=1e-12).all()
    assert_close(U.project(p, **given_x), p, rtol=1e-12, atol=1e-14)
    w = z + 10. ** -(seed % 4) * torch.randn(z.shape, generator=torch.Generator().manual_seed(seed), dtype=z.dtype)
    far, near = (w - z).flatten(1).norm(dim=1), (U.project(w, **given_x) - p).flatten(1).norm(dim=1)
    assert (near <= far * (1 + 1e-12) + 1e-13).all()
    inner = ((z - p)[:1].flatten() @ (rivals(ball, r, x[:1], box, 1000, seed) - p[:1].flatten(1)).T).max()  # ⟨z - p, w - p⟩ ≤ 0 says it is the nearest
    assert inner <= 1e-12 * (1 + z.abs().max() ** 2) * min(1 + r, 10.)

@boxes
@sets
@many(20)
@given(data=SMALL, r=st.floats(0.05, 3))
def test_projection_agrees_with_a_solver(ball, box, data, r):
    z, x = data
    lo, hi = limits(x, box, z.numel())
    D = cp.Variable(z.numel())
    solved(cp.Problem(cp.Minimize(cp.sum_squares(D - z[0].numpy())), [cp.norm(D, 'inf' if ball is Linf else NORM[ball]) <= r, D >= lo, D <= hi]))
    p = ball(r).project(z, **given_box(x, box))[0]
    assert_close(p, torch.tensor(D.value), rtol=0, atol=2e-4)
    assert (p - z[0]).norm() <= (torch.tensor(D.value).clamp(torch.tensor(lo), torch.tensor(hi)) - z[0]).norm() + 1e-6

def test_projection_where_everything_coincides():
    "As for the step: multiplier by bisection in numpy, on few values that fall together"
    rng, n = np.random.default_rng(0), 30_000
    z, x = rng.choice([0, 0.25, -0.25, 0.5, 1, -1, 3, -2], (n, 3)), rng.choice([0, 0.25, 0.5, 0.75, 1], (n, 3))
    r = rng.choice([0, 0.25, 0.5, 0.75, 1, 0.5 ** 0.5, 1.5, 2], n)
    a, b = np.abs(z), np.where(z > 0, 1 - x, x)
    for ball, size, p in (L2, lambda m: np.minimum(a / (1 + m), b), 2), (L1, lambda m: np.minimum(np.maximum(a - m, 0), b), 1):
        lo, hi = np.full((n, 1), -1e-17), np.full((n, 1), 1e18)
        for _ in range(150):
            mid = np.where(lo > 0, np.sqrt(np.abs(lo * hi)), 1e-17)
            fits = np.linalg.norm(size(mid), p, axis=1, keepdims=True) <= r[:, None]
            lo, hi = np.where(fits, lo, mid), np.where(fits, mid, hi)
        step = ball(torch.tensor(r)).project(torch.tensor(z), torch.tensor(x), BOX).numpy()
        assert np.abs(step - np.sign(z) * size(hi)).max() < 1e-9

@boxes
@sets
def test_projection_over_all_ranges(ball, box):
    "Tiny and huge points and radii in float32; an entry without room does not cost the others their digits"
    z, x = torch.tensor([[3e-30, -2e-30, 1e-30]]), torch.tensor([[0.5, 0.5, 0.5]])
    for scale in (1., 1e10, 1e30, 1e60):
        p = ball(1e-30 * scale).project((z.double() * scale).float(), **given_box(x, box))
        assert p.isfinite().all() and p.any() and (p.double() / (1e-30 * scale)).norm(p=NORM[ball]) <= 1 + 1e-6
        if scale == 1.: assert_close(p.double() / scale * 1e30, ball(1.).project(z.double() * 1e30), rtol=1e-5, atol=1e-6)
    z, x = torch.tensor([[1e12, 0.6, -0.5]]), torch.tensor([[1., 0.3, 0.9]])
    assert_close(ball(0.7).project(z, x, BOX)[:, 1:], ball(0.7).project(z[:, 1:], x[:, 1:], BOX))

def test_projecting_then_clipping_is_not_projecting():
    z, x = torch.tensor([[1.3, 1.0]]), torch.tensor([[0.7, 0.]])
    for ball in (L2, L1):
        exact, clipped = ball(1.).project(z, x, BOX), (x + ball(1.).project(z)).clamp(0, 1) - x
        assert (exact - z).norm() < (clipped - z).norm() - 0.01

@sets
def test_a_point_inside_is_its_own_projection(ball):
    z = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)) * 0.01
    assert torch.equal(ball(1.).project(z), z)
    assert torch.equal(ball(1.).project(z, torch.full_like(z, 0.5), BOX), z)

def test_float32_alone_is_enough(monkeypatch):
    "Sums are taken in float64; MPS has none, so the same in float32: feasible over 40 decades, and as good to 1e-5"
    gen = torch.Generator().manual_seed(0)
    z = torch.randn(200, 50, generator=gen) * 10. ** (-40 * torch.rand(200, 50, generator=gen))
    x, r = (1.6 * torch.rand(200, 50, generator=gen) - 0.3).clamp(0, 1), 3 * torch.rand(200, generator=gen)
    for ball in (L2, L1):
        U = ball(r)
        step, point = U.steepest_ascent(z, x, BOX), U.project(z, x, BOX)
        with monkeypatch.context() as m:
            m.setattr(uncertainty, '_wide', lambda a: a.float())
            narrow, near = U.steepest_ascent(z, x, BOX), U.project(z, x, BOX)
        assert U.contains(narrow, x, BOX, tol=1e-5).all() and U.contains(near, x, BOX, tol=1e-5).all()
        assert_close((z * narrow).sum(1), (z * step).sum(1), rtol=1e-5, atol=0)
        assert_close(near, point, rtol=1e-4, atol=1e-6)

# Scale, batch, radius

@boxes
@sets
@many(25)
@given(data=instances(dtype=torch.float32), power=st.integers(-100, 90), r=st.floats(0.01, 3))
def test_the_scale_of_the_gradient_does_not_matter(ball, box, data, power, r):
    "Down to 1e-30 in float32: a power of two changes no digit of g, save that tiny entries become denormal"
    g, x = data
    g = torch.where(g.abs() > 1e-6, g, 0)
    U, given_x = ball(r), given_box(x, box)
    assert_close(U.steepest_ascent(g * 2. ** power, **given_x), U.steepest_ascent(g, **given_x), rtol=1e-6, atol=1e-7)

@sets
def test_gradients_of_1e_minus_30(ball):
    g = torch.randn(3, 784, generator=torch.Generator().manual_seed(0)) * 1e-30
    U = ball(0.3)
    assert_close(U.norm(U.steepest_ascent(g)), torch.full((3,), 0.3))
    assert_close(U.support(g) * 1e30, 0.3 * torch.linalg.vector_norm(g * 1e30, DUAL[ball], dim=1), rtol=1e-5, atol=0)

@boxes
@sets
def test_gradients_in_float64_span_its_range(ball, box):
    g, x = torch.randn(3, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.full((3, 20), 0.5, dtype=torch.float64)
    step = ball(0.8).steepest_ascent(g, **given_box(x, box))
    for scale in (1e-300, 1e-200, 1e200): assert_close(ball(0.8).steepest_ascent(g * scale, **given_box(x, box)), step)
    wide = g * 10. ** -torch.linspace(0, 300, 20, dtype=torch.float64)
    for r in (0.3, 0.8, 3.): assert ball(r).contains(ball(r).steepest_ascent(wide, **given_box(x, box)), **given_box(x, box), tol=1e-9).all()

@boxes
@sets
@many(25)
@given(data=instances(), r=radii, seed=seeds)
def test_a_sample_alone_equals_the_sample_in_a_batch(ball, box, data, r, seed):
    "For the step and the projection; and a radius per sample equals that radius as a number"
    g, x = data
    rs = r * torch.rand(len(g), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    together = ball(rs)
    for name in 'steepest_ascent', 'project':
        whole = getattr(together, name)(g, **given_box(x, box))
        for i in range(len(g)):
            one = getattr(ball(rs[i].item()), name)(g[i:i+1], **given_box(x[i:i+1], box))
            assert_close(whole[i:i+1], one, rtol=1e-12, atol=1e-15)
            assert_close(getattr(together.at(torch.tensor([i])), name)(g[i:i+1], **given_box(x[i:i+1], box)), one, rtol=1e-12, atol=1e-15)

@boxes
@sets
@many(10)
@given(data=instances())
def test_radius_0_gives_exactly_0(ball, box, data):
    g, x = data
    for r in (0, 0., torch.zeros(len(g)), torch.tensor(0.)):
        for name in 'steepest_ascent', 'project', 'sample':
            assert not getattr(ball(r), name)(g, **given_box(x, box)).any()
    assert not ball(0.).support(g).any()

# Types and shapes

@boxes
@sets
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_types(ball, box, dtype):
    gen = torch.Generator().manual_seed(0)
    g, x = torch.randn(5, 1, 28, 28, generator=gen).to(dtype), torch.rand(5, 1, 28, 28, generator=gen).to(dtype)
    for r in (0.05, 0.55, 3., torch.linspace(0, 2, 5)):
        U, given_x = ball(r), given_box(x, box)
        for name in 'steepest_ascent', 'project', 'sample':
            out = getattr(U, name)(g, **given_x)
            assert out.dtype == dtype and out.shape == g.shape
            assert U.contains(out, **given_x).all()
        exact = U.steepest_ascent(g.double(), **given_box(x.double(), box))
        assert_close(U.steepest_ascent(g, **given_x).double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-6 if dtype != torch.float64 else 1e-14)
        value = U.support(g, **given_x)
        assert value.dtype == torch.promote_types(dtype, torch.float32)
        assert_close(value.double(), (g.double() * exact).flatten(1).sum(1), rtol=1e-5, atol=1e-6)

@boxes
@sets
def test_channels_last_and_other_strides(ball, box):
    gen = torch.Generator().manual_seed(0)
    g, x = torch.randn(4, 3, 8, 6, generator=gen), torch.rand(4, 3, 8, 6, generator=gen)
    last = dict(memory_format=torch.channels_last)
    for name in 'steepest_ascent', 'project':
        plain = getattr(ball(0.7), name)(g, **given_box(x, box))
        assert torch.equal(getattr(ball(0.7), name)(g.contiguous(**last), **given_box(x.contiguous(**last), box)), plain)
        turned = getattr(ball(0.7), name)(g.transpose(2, 3).contiguous().transpose(2, 3), **given_box(x.expand(4, 3, 8, 6), box))
        assert torch.equal(turned, plain)
    assert ball(0.7).sample(x.contiguous(**last), **given_box(x, box)).shape == x.shape

@boxes
@sets
@pytest.mark.parametrize('shape', [(1, 1), (4, 1), (0, 5), (0, 1, 28, 28), (2, 3), (2, 3, 4), (2, 3, 4, 5, 2)], ids=str)
def test_shapes(ball, box, shape):
    x = torch.full(shape, 0.5)
    for r in (0.3, torch.full(shape[:1], 0.3)):
        U, given_x = ball(r), given_box(x, box)
        for name in 'steepest_ascent', 'project', 'sample': assert getattr(U, name)(x, **given_x).shape == shape
        for name in 'support', 'contains': assert getattr(U, name)(x, **given_x).shape == shape[:1]
        assert U.norm(x).shape == shape[:1]

@boxes
@sets
def test_zero_gradient_touches_its_own_sample_only(ball, box):
    g, x = torch.tensor([[1., -2.], [0., 0.], [0., 3.]]), torch.full((3, 2), 0.5)
    step = ball(0.1).steepest_ascent(g, **given_box(x, box))
    assert not step[1].any() and step.isfinite().all() and step[0].any() and step[2].any()

@boxes
@sets
def test_nan_stays_in_its_own_sample_when_values_are_not_checked(ball, box):
    g, x = torch.tensor([[1., -2.], [math.nan, 1.], [math.inf, 3.]]), torch.full((3, 2), 0.5)
    step = ball(0.1).steepest_ascent(g, **given_box(x, box), check=False)
    assert_close(step[:1], ball(0.1).steepest_ascent(g[:1], **given_box(x[:1], box)))

@boxes
@sets
def test_autograd_goes_through(ball, box):
    "A gradient that is part of a graph is no error, and the derivative is finite"
    g, x = torch.randn(3, 9, generator=torch.Generator().manual_seed(0)).requires_grad_(), torch.full((3, 9), 0.5)
    value = ball(0.3).support(g, **given_box(x, box)).sum()
    slope, = torch.autograd.grad(value, g)
    assert_close(slope, ball(0.3).steepest_ascent(g.detach(), **given_box(x, box)), rtol=1e-4, atol=1e-5)  # Danskin

# The box

@sets
def test_boxes_of_tensors_and_half_open_boxes(ball):
    gen = torch.Generator().manual_seed(0)
    g, x = torch.randn(4, 3, 5, generator=gen), torch.rand(4, 3, 5, generator=gen)
    plain = ball(0.8).steepest_ascent(g, x, BOX)
    for box in [(torch.zeros(3, 1), torch.ones(3, 5)), (0, torch.tensor(1.)), [0., 1.], torch.tensor([0., 1.])]:
        assert torch.equal(ball(0.8).steepest_ascent(g, x, box), plain)
    assert_close(ball(0.8).steepest_ascent(g, x, (-math.inf, math.inf)), ball(0.8).steepest_ascent(g))
    U, box = ball(2.), (0., math.inf)
    step = U.steepest_ascent(g, x, box)
    assert (x + step >= -1e-6).all() and U.contains(step, x, box).all()
    assert not U.contains(torch.full_like(x, -1.9 / 15) - x, x, box).any()
    assert U.contains(U.sample(x, x, box, gen), x, box).all() and U.contains(U.project(3 * g, x, box), x, box).all()

@sets
def test_other_units_give_the_same_picture(ball):
    "255 times the image, the box and the radius: 255 times the step"
    gen = torch.Generator().manual_seed(0)
    g, x = torch.randn(4, 30, generator=gen, dtype=torch.float64), torch.rand(4, 30, generator=gen, dtype=torch.float64)
    assert_close(ball(255 * 0.4).steepest_ascent(g, 255 * x, (0., 255.)), 255 * ball(0.4).steepest_ascent(g, x, BOX))

@sets
def test_x_outside_the_box_is_refused_or_kept_in_the_ball(ball):
    x, g = torch.tensor([[1.2, 0.5]]), torch.tensor([[1., 1.]])
    for name in 'steepest_ascent', 'project', 'sample':
        with pytest.raises(ValueError, match='x must lie in box'): getattr(ball(0.1), name)(g, x, BOX)
        assert ball(0.1).contains(getattr(ball(0.1), name)(g, x, BOX, check=False)).all()

# Sampling and membership

@sets
def test_draws_are_uniform(ball):
    "A ball of s times the radius has s^d of the volume; each coordinate and sign is as likely as another"
    gen, r, d = torch.Generator().manual_seed(0), 0.7, 4
    z = ball(r).sample(torch.empty(40_000, d), generator=gen)
    for s in (0.5, 0.8, 0.95): assert abs((ball(r).norm(z) <= s * r).double().mean() - s ** d) < 4 * math.sqrt(s ** d * (1 - s ** d) / len(z))
    assert (z.mean(0).abs() < 0.02).all() and ((z > 0).double().mean(0) - 0.5).abs().max() < 0.01
    assert z.abs().mean(0).max() / z.abs().mean(0).min() < 1.05

def test_draws_of_linf_are_uniform_in_the_box_too():
    x = torch.tensor([[0., 0.9]]).expand(20_000, 2)
    z = Linf(0.5).sample(x, x, BOX, torch.Generator().manual_seed(0))
    assert abs(z[:, 0].mean() - 0.25) < 0.005 and abs(z[:, 1].mean() + 0.2) < 0.005
    assert (z[:, 0] >= 0).all() and (z[:, 1] <= 0.1 + 1e-6).all()

@boxes
@sets
def test_draws_repeat_by_generator_and_lie_inside(ball, box):
    x = torch.rand(50, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    one, two = (ball(0.6).sample(x, **given_box(x, box), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and one.any() and ball(0.6).contains(one, **given_box(x, box)).all()

@sets
def test_membership(ball):
    z = torch.tensor([[0.3, 0.], [0.31, 0.], [-0.3, 0.], [math.nan, 0.]])
    assert ball(0.3).contains(z).tolist() == [True, False, True, False]
    assert ball(torch.tensor([0.2, 0.4, 0.3, 9.])).contains(z).tolist() == [False, True, True, False]
    assert ball(0.3).contains(z, torch.zeros_like(z), BOX).tolist() == [True, False, False, False]
    assert ball(0.3).contains(z, tol=0.1).tolist() == [True, True, True, False]

@boxes
@sets
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@many(40)
@given(power=st.floats(-6, 1), seed=seeds, spread=st.sampled_from([1., 3.]))
def test_an_exact_step_is_a_member_after_rounding(ball, box, dtype, power, seed, spread):
    "x + Δ is rounded to the spacing of numbers near x, which may be far coarser than Δ"
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(4, 60, generator=gen)
    if box is None: x = spread * (x - 0.5)
    g, x, r = torch.randn(4, 60, generator=gen).to(dtype), x.to(dtype), 10. ** power
    step = ball(r).steepest_ascent(g, **given_box(x, box))
    assert ball(r).contains((x + step) - x, x, box).all()

@boxes
@sets
@many(20)
@given(seed=seeds)
def test_one_per_cent_too_large_is_no_member(ball, box, seed):
    gen = torch.Generator().manual_seed(seed)
    x, g = torch.rand(4, 60, generator=gen), torch.randn(4, 60, generator=gen)
    if box: x = 0.25 + x / 2                                                   # room for all of it
    step = 1.01 * ball(0.1).steepest_ascent(g, **given_box(x, box))
    assert not ball(0.1).contains((x + step) - x, x, box).any() and not ball(0.1).contains(step).any()
    assert not ball(0.1).contains(step.bfloat16()).any()                      # without x its rounding plays no part

# No waiting for a device

class NoSynchronisation(TorchDispatchMode):
    "Fails where a value is read back to the host"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ('_local_scalar_dense', 'item', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'unique_dim', '_unique2'):
            raise AssertionError(f'{func} waits for the device')
        return func(*args, **(kwargs or {}))

@pytest.fixture
def unreadable(monkeypatch):
    def refuse(self, *args, **kw): raise AssertionError('a tensor is read')
    # `numpy` is allowed: it does not work on a GPU's tensors, so what calls it runs on CPUs alone (the meta device below checks the rest)
    for name in 'item', 'tolist', '__bool__', '__float__', '__int__', '__index__', '__array__': monkeypatch.setattr(torch.Tensor, name, refuse)

@boxes
@sets
@pytest.mark.parametrize('per_sample', [False, True], ids=['number', 'tensor'])
def test_without_checks_nothing_is_read(ball, box, per_sample, request):
    gen = torch.Generator().manual_seed(0)
    g, x, index = torch.randn(6, 1, 7, 7, generator=gen), torch.rand(6, 1, 7, 7, generator=gen), torch.arange(6)
    U = ball(torch.linspace(0, 2, 6) if per_sample else 0.5)
    request.getfixturevalue('unreadable')
    with NoSynchronisation():
        V = U.at(index).scaled(0.5)
        for name in 'steepest_ascent', 'support', 'project', 'sample': getattr(V, name)(g, **given_box(x, box), check=False)
        V.contains(g, **given_box(x, box))
        with pytest.raises(AssertionError): V.steepest_ascent(g, **given_box(x, box))  # the test can fail

@boxes
@sets
def test_tensors_without_values(ball, box):
    "On the meta device there is nothing to read: shapes and types alone decide what runs"
    g = torch.empty(6, 1, 7, 7, device='meta')
    for name in 'steepest_ascent', 'support', 'project', 'sample': assert getattr(ball(0.5), name)(g, **given_box(g, box), check=False).device.type == 'meta'

def spread(seed):
    "Samples of which a quarter of the pixels lies at each side of the box, gradients of many sizes, with zeros and ties"
    gen = torch.Generator().manual_seed(seed)
    x = torch.rand(50, 300, generator=gen).mul(2).sub(0.5).clamp(0, 1).double()
    g = torch.randn(50, 300, generator=gen, dtype=torch.float64) * torch.randn(50, 300, generator=gen, dtype=torch.float64).exp() ** 3
    g[0], g[1, 5:], g[2] = 0, 0, g[2].sign()
    return g, x

@pytest.mark.parametrize('r', [1e-3, 0.5, 3., 40.])
def test_newton_on_a_cpu_gives_what_sorting_gives(r, monkeypatch):
    g, x = spread(0)
    calls, inner = [], uncertainty._newton
    monkeypatch.setattr(uncertainty, '_newton', lambda *args: calls.append(inner(*args)) or calls[-1])
    quick = L2(r).steepest_ascent(g, x, BOX)
    if r == 0.5: assert calls[0] is not None                                              # else the rounds may not suffice
    monkeypatch.setattr(uncertainty, '_newton', lambda *args: None)
    assert_close(quick, L2(r).steepest_ascent(g, x, BOX), rtol=1e-9, atol=1e-12)

@pytest.mark.parametrize('r, most', [(1e-3, 16), (3., 16), (10., 64), (40., 256)])
def test_few_pixels_on_a_cpu_give_what_sorting_gives(r, most, monkeypatch):
    g, x = spread(1)
    calls, inner = [], uncertainty._order
    monkeypatch.setattr(uncertainty, '_order', lambda *args: calls.append(inner(*args)) or calls[-1])
    plain = torch.arange(50) != 2                                                          # all ties: needs the whole order
    quick = L1(r).steepest_ascent(g[plain], x[plain], BOX)
    assert calls[0].shape[1] == most
    monkeypatch.setattr(uncertainty, '_order', lambda a, room, r: a.sort(dim=1, descending=True, stable=True).indices)
    assert torch.equal(quick, L1(r).steepest_ascent(g[plain], x[plain], BOX))
    monkeypatch.setattr(uncertainty, '_order', inner)
    ties = L1(r).steepest_ascent(g[2:3], x[2:3], BOX)[0]
    used, room = ties != 0, torch.where(g[2] > 0, 1 - x[2], x[2]) > 0
    assert not (room & ~used)[:used.nonzero().max()].any()                                 # the first of equals come first

# Errors that name the argument

BAD_RADII = [(-1, ValueError), (math.nan, ValueError), (math.inf, ValueError), ('0.1', TypeError), (None, TypeError), (True, TypeError), ([0.1], TypeError), (1j, TypeError),
    (np.array([0.1]), TypeError), (torch.tensor([1, 2]), TypeError), (torch.tensor([0.1, math.nan]), ValueError), (torch.tensor([-0.1]), ValueError), (torch.ones(2, 2), TypeError), (torch.tensor(True), TypeError)]

@pytest.mark.parametrize('radius, error', BAD_RADII, ids=[repr(r) for r, _ in BAD_RADII])
def test_bad_radius(radius, error):
    for make in (Linf, L2(1.).with_radius):
        with pytest.raises(error, match='radius must'): make(radius)

@sets
def test_bad_arguments(ball):
    U, x = ball(0.3), torch.full((2, 3), 0.5)
    def fails(error, text, f):
        with pytest.raises(error) as e: f()
        assert text in str(e.value), str(e.value)
    for name, arg in dict(steepest_ascent='grad', support='grad', project='delta').items():
        f = getattr(U, name)
        fails(TypeError, f'{arg} must be a tensor, got list', lambda: f([[1.]]))
        fails(TypeError, f'{arg} must be floating point, got torch.int64', lambda: f(x.long()))
        fails(ValueError, f'{arg} must have shape (n, ...)', lambda: f(x[0]))
        fails(ValueError, f'{arg} must have shape (n, ...)', lambda: f(x[:, :0]))
        for bad in (math.nan, math.inf, -math.inf): fails(ValueError, f'{arg} must be finite, got NaN or infinity in 1 of 2 samples', lambda: f(torch.tensor([[1., bad], [1., 1.]])))
        fails(ValueError, 'x must be given with a box', lambda: f(x, box=BOX))
        fails(ValueError, f'x must have the shape of {arg}, (2, 3), got (1, 3)', lambda: f(x, x[:1], BOX))
        fails(TypeError, 'x must be a floating-point tensor, got list', lambda: f(x, [[1.]], BOX))
        fails(TypeError, 'x must be a floating-point tensor, got torch.uint8', lambda: f(x, x.byte(), BOX))
        fails(ValueError, 'x must lie in box (0.0, 1.0), but ranges over [0.5, 127.5]', lambda: f(x, torch.tensor([[0.5, 1, 1], [1, 1, 127.5]]), BOX))
        fails(ValueError, 'x must lie in box', lambda: f(x, x * math.nan, BOX))
        fails(ValueError, 'box must satisfy lo <= hi', lambda: f(x, x, (1., 0.)))
        fails(ValueError, 'box must hold numbers or tensors that broadcast to x', lambda: f(x[:1], x[:1], (torch.zeros(2, 3), 1.)))
        for box in (1., (0., 1., 2.), 'box'): fails(TypeError, 'box must be None or a pair', lambda: f(x, x, box))
        for box in (('a', 'b'), (0., None), (False, True)): fails(TypeError, 'box must hold numbers or tensors', lambda: f(x, x, box))
        fails(ValueError, 'radius has 3 values, one per sample, but the batch has 2', lambda: getattr(ball(torch.ones(3)), name)(x))
        reversed_, images = torch.tensor([1., 0., 0.]), torch.full((2, 1, 2, 2), 0.5)
        for box in ((reversed_, torch.full((3,), 0.9)), (0.9, reversed_), (torch.tensor(math.nan), 1.)): fails(ValueError, 'box must satisfy lo <= hi', lambda: f(x, x, box))
        fails(ValueError, 'box must satisfy lo <= hi', lambda: f(x[:0], x[:0], (reversed_, 0.9)))
        fails(ValueError, 'dimensions of x or of one sample, got (2,)', lambda: f(images, images, (torch.zeros(2), 1.)))  # one per sample, yet it broadcasts
    fails(TypeError, 'like must be floating point', lambda: U.sample(x.long()))
    fails(ValueError, 'factor must be', lambda: U.scaled(-1))
    fails(ValueError, 'factor must be', lambda: U.scaled(math.nan))
    fails(ValueError, 'x must have the shape of delta', lambda: U.contains(x, x[:1]))
    for huge in (10**400, -10**400):
        fails(ValueError, 'radius must be finite', lambda: ball(huge))
        fails(ValueError, 'factor must be', lambda: U.scaled(huge))
        fails(ValueError, 'box must satisfy lo <= hi', lambda: check_box((huge, -huge) if huge > 0 else (0, huge)))
    assert check_box((0, 10**400)) == (0., math.inf)

def test_small_print():
    assert repr(Linf(1)) == 'Linf(1.0)' and repr(L1(torch.ones(3))) == 'L1(<3 radii>)'
    assert issubclass(L2, NormBall) and issubclass(NormBall, UncertaintySet)
    U = L2(torch.arange(4.))
    for index in (slice(1, 3), [1, 2], torch.tensor([1, 2]), torch.tensor([False, True, True, False])): assert U.at(index).radius.tolist() == [1., 2.]
    assert U.at(3).radius.tolist() == [3.] and U.at(None) is U and U.with_radius(2).radius == 2. and len(U.radius) == 4
    assert L2(np.float32(0.5)).radius == 0.5 and L2(torch.tensor(2)).radius == 2.
    assert check_box(None) is None and check_box([0, 1]) == (0, 1)
    check_batch('x', torch.zeros(0, 3)); check_inside(torch.zeros(0, 3), BOX)
