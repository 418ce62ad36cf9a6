"""Properties of the further uncertainty sets, on random instances: against solvers of cvxpy, 10,000 rivals, and each other.

What a reader learns from is asserted on the page; here are the ranges, types, shapes and corners, for every set alike.
"""
import math, warnings
import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from robust_nb.evaluation import accuracy_curve, robust_accuracy
from robust_nb.objectives import Robust
from robust_nb.perturbation import perturb
from robust_nb.sets import Ellipsoid, Group, Lp, Masked, Subspace
from robust_nb.uncertainty import L1, L2, Linf

BOX, SHAPE, D = (0., 1.), (3, 2, 2), 12
INF = math.inf
seeds = st.integers(0, 2**32 - 1)

def numbers(*shape, seed=0): return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

DIAGONAL = numbers(*SHAPE).abs() * (numbers(*SHAPE, seed=1) > -1)            # some entries may not move
FULL, LOW, PLANE, FIXED = numbers(D, D), numbers(D, 4).abs(), numbers(3, *SHAPE), numbers(1, *SHAPE, seed=5) > 0.8
PLANE = torch.cat([PLANE, PLANE[:1] - PLANE[1:2]])                           # one vector depends on others

def groups(D, dim):
    "The groups of a flat cvxpy variable"
    index = np.arange(12).reshape(SHAPE)
    index = np.moveaxis(index, dim - 1, -1).reshape(-1, 3) if isinstance(dim, int) else index.reshape(3, 4)
    return [D[rows] for rows in index]

def mixed(outer, inner, dim):
    norm = lambda v, p: cp.norm(v, 'inf' if p == INF else p)
    return lambda D, r: [norm(cp.hstack([norm(v, inner) for v in groups(D, dim)]), outer) <= r]

def within(T):
    def constraints(D, r):
        u = cp.Variable(T.shape[1])
        return [D == T.numpy() @ u, cp.norm2(u) <= r]
    return constraints

# name: (radius -> set, (cvxpy variable, radius) -> constraints)
SETS = {
    'p1.3': (lambda r: Lp(1.3, r), lambda D, r: [cp.pnorm(D, 1.3, approx=False) <= r]),
    'p3': (lambda r: Lp(3, r), lambda D, r: [cp.pnorm(D, 3, approx=False) <= r]),
    'p20': (lambda r: Lp(20, r), lambda D, r: [cp.pnorm(D, 20, approx=False) <= r]),
    'diagonal': (lambda r: Ellipsoid(DIAGONAL, r), within(DIAGONAL.flatten().diag())),
    'full': (lambda r: Ellipsoid(FULL, r), within(FULL)),
    'low': (lambda r: Ellipsoid(LOW, r), within(LOW)),
    'plane': (lambda r: Subspace(PLANE, r), within(torch.linalg.qr(PLANE[:3].flatten(1).T)[0])),
    '1inf': (lambda r: Group(1, INF, 1, r), mixed(1, INF, 1)),
    '12': (lambda r: Group(1, 2, 1, r), mixed(1, 2, 1)),
    '21': (lambda r: Group(2, 1, (2, 3), r), mixed(2, 1, (2, 3))),
    '2inf': (lambda r: Group(2, INF, 1, r), mixed(2, INF, 1)),
    'inf1': (lambda r: Group(INF, 1, 1, r), mixed(INF, 1, 1)),
    'inf2': (lambda r: Group(INF, 2, (2, 3), r), mixed(INF, 2, (2, 3))),
    'masked l1': (lambda r: Masked(L1(r), FIXED), lambda D, r: [cp.norm1(D) <= r, D[np.flatnonzero(FIXED)] == 0]),
    'masked group': (lambda r: Masked(Group(1, INF, 1, r), FIXED), lambda D, r: mixed(1, INF, 1)(D, r) + [D[np.flatnonzero(FIXED)] == 0]),
}
LINEAR = ('full', 'low', 'plane')                                            # with the box: an iteration, up to a gap
every = pytest.mark.parametrize('name', SETS)
boxes = pytest.mark.parametrize('box', [None, BOX], ids=['free', 'box'])

def many(n): return settings(max_examples=n, deadline=None, derandomize=True, database=None)

@st.composite
def instances(draw, n=st.just(3), kinds=('smooth', 'ties', 'zeros'), shape=SHAPE):
    "(g, x): gradients with ties and zeros, samples that often lie on the boundary of the box"
    n, gen = draw(n), torch.Generator().manual_seed(draw(seeds))
    g = torch.randn((n, *shape), generator=gen, dtype=torch.float64)
    kind = draw(st.sampled_from(kinds))
    if kind == 'ties': g = g.round()
    if kind == 'zeros': g = g * (torch.rand(g.shape, generator=gen) < 0.3)
    if kind == 'scales': g = g * 10. ** torch.randint(-8, 1, g.shape, generator=gen)
    return g, (torch.rand(g.shape, generator=gen, dtype=torch.float64) * 1.6 - 0.3).clamp(0, 1)

def given_box(x, box): return {} if box is None else dict(x=x, box=box)

def solver(name, r, x, box, goal):
    "The optimum of `goal`, (variable) -> cvxpy objective, over U ∩ box; an instance on which the solver gives up is passed over"
    v = cp.Variable(D)
    limits = [] if box is None else [v >= -x.numpy().ravel(), v <= 1 - x.numpy().ravel()]
    problem = cp.Problem(goal(v), SETS[name][1](v, r) + limits)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try: problem.solve(solver='CLARABEL', tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
        except cp.error.SolverError: assume(False)
    assume(problem.status == 'optimal')
    return problem.value, torch.tensor(v.value)

def rivals(name, r, x, box, count, seed):
    "Random points of U ∩ box of one sample, shape (count, *SHAPE)"
    rng = np.random.default_rng(seed)
    def sparse(shape): return torch.tensor(rng.normal(size=shape) * 10. ** rng.integers(-3, 2, shape) * (rng.random(shape) < rng.random((shape[0], 1))))
    spans = dict(full=FULL, low=LOW, plane=PLANE[:3].flatten(1).T)
    z = sparse((count, D)) if name not in LINEAR else sparse((count, spans[name].shape[1])) @ spans[name].T
    if name == 'diagonal': z = z * (DIAGONAL.flatten() > 0)
    if 'masked' in name: z = z * ~FIXED.flatten()
    z = z.reshape(-1, *SHAPE)
    U = SETS[name][0](1.)
    for _ in range(3):
        z = z * (r / U.norm(z).clamp_min(1e-300)).reshape(-1, 1, 1, 1).nan_to_num(0)
        if box is None: continue
        if name in LINEAR:
            room = torch.where(z > 0, 1 - x, x)
            z = z * (room / z.abs()).nan_to_num(1, posinf=1).flatten(1).amin(1).clamp_max(1).reshape(-1, 1, 1, 1)
        else: z = z.clamp(-x, 1 - x)
    return z

# The maximum

@boxes
@every
@many(6)
@given(data=instances(st.just(1)), r=st.floats(0.02, 3))
def test_maximum_agrees_with_a_solver(name, box, data, r):
    "Relative to r‖g‖*, 1e-6 in float64 and 1e-4 in float32"
    g, x = data
    U, given_x = SETS[name][0](r), given_box(x, box)
    step, free = U.steepest_ascent(g, **given_x), U.support(g).item()
    best, _ = solver(name, r, x, box, lambda v: cp.Maximize(g.numpy().ravel() @ v))
    assert abs((g * step).sum().item() - best) <= 1e-6 * free + 1e-9
    assert U.contains(step, **given_x, tol=1e-7).all()
    narrow = U.steepest_ascent(g.float(), **given_box(x.float(), box))
    assert narrow.dtype == torch.float32 and abs((g.float() * narrow).sum().item() - best) <= 1e-4 * free + 1e-9

@many(20)
@given(data=instances(kinds=('smooth', 'ties', 'zeros', 'scales')), r=st.one_of(st.floats(1e-3, 5), st.sampled_from([1e-9, 1e-4, 100., 1e6])), p=st.floats(1.001, 300))
def test_values_without_a_box_are_dual_norms(data, r, p):
    g, _ = data
    flat, rows = g.flatten(1), g.movedim(1, -1).reshape(3, 4, 3)
    norm = lambda a, q: torch.linalg.vector_norm(a, q, dim=-1)
    def largest(a, q): return a.abs().amax(-1) * norm(a / a.abs().amax(-1, keepdim=True).clamp_min(1e-300), q)
    for U, value in [(Lp(p, r), largest(flat, p / (p - 1))), (Ellipsoid(DIAGONAL, r), norm(flat * DIAGONAL.flatten(), 2)), (Ellipsoid(FULL, r), norm(flat @ FULL, 2)),
                     (Subspace(PLANE, r), norm(flat @ torch.linalg.qr(PLANE[:3].flatten(1).T)[0], 2)), (Group(1, INF, 1, r), norm(norm(rows, 1), INF)),
                     (Group(INF, 2, 1, r), norm(norm(rows, 2), 1)), (Group(2, 1, 1, r), norm(norm(rows, INF), 2)), (Masked(Linf(r), FIXED), norm(flat * ~FIXED.flatten(), 1))]:
        assert_close(U.support(g), r * value, rtol=1e-9, atol=0)
        assert U.contains(U.steepest_ascent(g), tol=1e-10).all()

@boxes
@every
@many(3)
@given(data=instances(st.just(1)), r=st.floats(0.02, 5), seed=seeds)
def test_step_beats_10000_points(name, box, data, r, seed):
    g, x = data
    U = SETS[name][0](r)
    others = rivals(name, r, x, box, 10_000, seed)
    assert U.contains(others, x.expand_as(others), box, tol=1e-6).all()
    value = U.support(g, **given_box(x, box)).item()
    assert (others.flatten(1) @ g.flatten()).max().item() <= value + 1e-8 * U.support(g).item()

@boxes
@every
@many(5)
@given(data=instances(), r=st.floats(0.05, 3))
def test_step_is_where_projected_ascent_stands_still(name, box, data, r):
    "The conditions of optimality, as a residual: P(Δ̂ + g) = Δ̂"
    g, x = data
    U, given_x = SETS[name][0](r), given_box(x, box)
    step = U.steepest_ascent(g, **given_x)
    still = U.project(step + g, **given_x)
    value = ((still - step) * g).flatten(1).sum(1)
    assert (value <= 1e-6 * (1 + U.support(g))).all() and (still - step).abs().max() < 1e-3

@many(10)
@given(data=instances(), r=st.floats(0.05, 3), full=st.sampled_from(LINEAR))
def test_gap_bounds_what_is_missing(data, r, full):
    g, x = data
    U = SETS[full][0](r)
    gap = U.gap(g, x, BOX)
    assert (gap <= 1e-6 * U.support(g) + 1e-12).all() and (gap >= -1e-12 * (1 + U.support(g))).all()
    assert not U.gap(g).any() and not Ellipsoid(DIAGONAL, r).gap(g, x, BOX).any()

@pytest.mark.parametrize('p, ball', [(1, L1), (2, L2), (INF, Linf)], ids=str)
@boxes
def test_plain_p_gives_the_same_numbers(p, ball, box):
    g, x = numbers(5, *SHAPE), numbers(5, *SHAPE, seed=1).abs().clamp(0, 1)
    for name in 'steepest_ascent', 'support', 'project': assert torch.equal(getattr(Lp(p, 0.7), name)(g, **given_box(x, box)), getattr(ball(0.7), name)(g, **given_box(x, box)))
    draw = lambda U: U.sample(x, **given_box(x, box), generator=torch.Generator().manual_seed(0))
    assert torch.equal(Lp(p, 0.7).norm(g), ball(0.7).norm(g)) and torch.equal(draw(Lp(p, 0.7)), draw(ball(0.7)))

@boxes
def test_p_near_1_and_large_p_meet_the_plain_balls(box):
    g, x = numbers(20, 30), numbers(20, 30, seed=1).abs().clamp(0, 1)
    for p, ball in (1 + 1e-9, L1(0.7)), (1 + 1e-5, L1(0.7)), (1e5, Linf(0.7)), (1e9, Linf(0.7)):
        U, given_x = Lp(p, 0.7), given_box(x, box)
        step = U.steepest_ascent(g, **given_x)
        assert U.contains(step, **given_x).all() and U.contains(U.project(g, **given_x), **given_x).all()
        assert_close(U.support(g, **given_x), ball.support(g, **given_x), rtol=1e-3, atol=0)
        assert_close(U.project(g, **given_x), ball.project(g, **given_x), rtol=0, atol=1e-3)

@boxes
@pytest.mark.parametrize('same', [1, 2, INF])
def test_group_of_one_norm_is_a_plain_ball(same, box):
    g, x = numbers(5, *SHAPE), numbers(5, *SHAPE, seed=1).abs().clamp(0, 1)
    for name in 'steepest_ascent', 'project':
        assert_close(getattr(Group(same, same, 1, 0.7), name)(g, **given_box(x, box)), getattr(Lp(same, 0.7), name)(g, **given_box(x, box)))
    assert_close(getattr(Group(1, 2, (1, 2, 3), 0.7), name)(g, **given_box(x, box)), L2(0.7).project(g, **given_box(x, box)), rtol=1e-9, atol=1e-9)   # one group

@boxes
def test_ellipsoid_of_the_identity_is_the_l2_ball(box):
    g, x = numbers(5, D), numbers(5, D, seed=1).abs().clamp(0, 1)
    x[0, :4] = torch.tensor([0., 1, 0, 1])
    for T in torch.ones(D), torch.eye(D), torch.linalg.qr(FULL)[0]:
        for name in 'steepest_ascent', 'project':
            assert_close(getattr(Ellipsoid(T, 0.7), name)(g, **given_box(x, box)), getattr(L2(0.7), name)(g, **given_box(x, box)), rtol=0, atol=1e-6)

@pytest.mark.parametrize('outer, inner', [(1, INF), (1, 2), (2, 1), (2, INF), (INF, 1), (INF, 2)])
def test_groups_in_the_box_over_all_ranges(outer, inner):
    "Gradients that span up to 12 decades, radii from tiny to more than there is room for: feasible, and above the clipped step"
    g, x = numbers(40, 3, 5), (numbers(40, 3, 5, seed=1) / 2 + 0.5).clamp(0, 1)
    for spread in (0, 4, 12):
        wide = g * 10 ** (-spread * torch.rand(g.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
        for r in (1e-9, 1e-3, 0.3, 2., 1e3, 1e12):
            U = Group(outer, inner, 1, r)
            step = U.steepest_ascent(wide, x, BOX)
            assert step.isfinite().all() and U.contains(step, x, BOX, tol=1e-9).all()
            clipped = U.steepest_ascent(wide).clamp(-x, 1 - x)
            assert ((wide * step).flatten(1).sum(1) >= (wide * clipped).flatten(1).sum(1) * (1 - 1e-9)).all()
            if r >= 1e3: assert_close(step, torch.where(wide > 0, 1 - x, -x))

# Projection

@boxes
@every
@many(4)
@given(data=instances(), r=st.floats(0.05, 3), seed=seeds)
def test_projection_is_feasible_idempotent_and_non_expansive(name, box, data, r, seed):
    z, x = data
    U, given_x = SETS[name][0](r), given_box(x, box)
    rough = 2e-5 * (1 + r * U.lengths.max().item()) if box and name in LINEAR else 1e-9    # the root of the gap: a square is flat at its optimum
    p = U.project(z, **given_x)
    assert U.contains(p, **given_x, tol=1e-7).all()
    assert_close(U.project(p, **given_x), p, rtol=0, atol=rough)
    w = z + 10. ** -(seed % 3) * numbers(*z.shape, seed=seed)
    far, near = (w - z).flatten(1).norm(dim=1), (U.project(w, **given_x) - p).flatten(1).norm(dim=1)
    assert (near <= far + rough).all()
    inner = (z - p)[:1].flatten() @ (rivals(name, r, x[:1], box, 1000, seed) - p[:1]).flatten(1).T    # ⟨z - p, w - p⟩ ≤ 0: the nearest
    assert inner.max() <= 10 * rough * (1 + r)

@boxes
@every
@many(3)
@given(data=instances(st.just(1)), r=st.floats(0.05, 3))
def test_projection_agrees_with_a_solver(name, box, data, r):
    z, x = data
    p = SETS[name][0](r).project(z, **given_box(x, box)).flatten()
    _, best = solver(name, r, x, box, lambda v: cp.Minimize(cp.sum_squares(v - z.numpy().ravel())))
    assert (p - z.flatten()).norm() <= (best - z.flatten()).norm() + 1e-6
    assert_close(p, best, rtol=0, atol=2e-4)

@every
def test_a_point_inside_is_its_own_projection(name):
    U, x = SETS[name][0](1.), torch.full((4, *SHAPE), 0.5, dtype=torch.float64)
    z = U.with_radius(1e-3).sample(x, generator=torch.Generator().manual_seed(0))
    assert_close(U.project(z), z, rtol=0, atol=1e-15)
    assert_close(U.project(z, x, BOX), z, rtol=0, atol=1e-9)

# Scale, batch, radius

@boxes
@every
def test_the_scale_of_the_gradient_does_not_matter(name, box):
    g, x = numbers(3, *SHAPE).float(), torch.full((3, *SHAPE), 0.4)
    U, given_x = SETS[name][0](0.6), given_box(x, box)
    step = U.steepest_ascent(g, **given_x)
    for scale in (1e-30, 1e-12, 1e12, 1e30): assert_close(U.steepest_ascent(g * scale, **given_x), step, rtol=1e-4, atol=1e-5)
    assert_close(U.support(g * 1e-30, **given_x) * 1e30, U.support(g, **given_x), rtol=1e-4, atol=0)

@boxes
@every
@many(2)
@given(data=instances(kinds=('smooth', 'zeros')), r=st.floats(0.05, 3))
def test_a_sample_alone_equals_the_sample_in_a_batch(name, box, data, r):
    "For the step and the projection; and a radius per sample equals that radius as a number"
    g, x = data
    rs, atol = r * torch.tensor([0.3, 1., 2.], dtype=torch.float64), 1e-6 if box and name in LINEAR else 1e-10
    make = SETS[name][0]
    for method in 'steepest_ascent', 'project':
        whole = getattr(make(rs), method)(g, **given_box(x, box))
        for i in range(3):
            one = getattr(make(rs[i].item()), method)(g[i:i+1], **given_box(x[i:i+1], box))
            assert_close(whole[i:i+1], one, rtol=0, atol=atol)
            assert_close(getattr(make(rs).at(torch.tensor([i])), method)(g[i:i+1], **given_box(x[i:i+1], box)), one, rtol=0, atol=atol)

@boxes
@every
def test_radius_0_gives_exactly_0(name, box):
    g, x = numbers(3, *SHAPE), torch.full((3, *SHAPE), 0.4, dtype=torch.float64)
    for r in (0, torch.zeros(3)):
        U = SETS[name][0](r)
        for method in 'steepest_ascent', 'project', 'sample': assert not getattr(U, method)(g, **given_box(x, box)).any()
        assert U.contains(torch.zeros_like(g), **given_box(x, box)).all() and not U.support(g).any()

@every
def test_other_sizes_of_a_set(name):
    U, g = SETS[name][0](0.5), numbers(3, *SHAPE)
    for V in (U.with_radius(1.), U.scaled(2.)): assert_close(V.steepest_ascent(g), 2 * U.steepest_ascent(g))
    assert U.radius == 0.5 and type(V) is type(U) and '0.5' in repr(U)
    assert U.at(torch.tensor([1])).steepest_ascent(g[:1]).shape == g[:1].shape

# Types and shapes

@boxes
@every
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_types(name, box, dtype):
    g, x = numbers(5, *SHAPE).to(dtype), (numbers(5, *SHAPE, seed=1) / 3 + 0.5).clamp(0, 1).to(dtype)
    for r in (0.6, torch.linspace(0, 2, 5)):
        U, given_x = SETS[name][0](r), given_box(x, box)
        for method in 'steepest_ascent', 'project', 'sample':
            out = getattr(U, method)(g, **given_x)
            assert out.dtype == dtype and out.shape == g.shape and U.contains(out, **given_x).all()
        exact = U.steepest_ascent(g.double(), **given_box(x.double(), box))
        assert_close(U.steepest_ascent(g, **given_x).double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
        assert U.support(g, **given_x).dtype == U.norm(g).dtype == torch.promote_types(dtype, torch.float32)

@boxes
@every
def test_channels_last_and_other_strides(name, box):
    g, x = numbers(4, *SHAPE), numbers(4, *SHAPE, seed=1).abs().clamp(0, 1)
    for method in 'steepest_ascent', 'project':
        plain = getattr(SETS[name][0](0.7), method)(g, **given_box(x, box))
        last = dict(memory_format=torch.channels_last)
        assert_close(getattr(SETS[name][0](0.7), method)(g.contiguous(**last), **given_box(x.contiguous(**last), box)), plain)
        turned = g.transpose(2, 3).contiguous().transpose(2, 3)
        assert_close(getattr(SETS[name][0](0.7), method)(turned, **given_box(x, box)), plain)

@boxes
@every
@pytest.mark.parametrize('n', [0, 1])
def test_empty_batch(name, box, n):
    x = torch.full((n, *SHAPE), 0.5)
    for r in (0.3, torch.full((n,), 0.3)):
        U, given_x = SETS[name][0](r), given_box(x, box)
        for method in 'steepest_ascent', 'project', 'sample': assert getattr(U, method)(x, **given_x).shape == x.shape
        for method in 'support', 'contains': assert getattr(U, method)(x, **given_x).shape == (n,)
        assert U.norm(x).shape == (n,)

@pytest.mark.parametrize('shape', [(4, 1), (2, 3), (2, 3, 4), (2, 3, 4, 5, 2)], ids=str)
@boxes
def test_shapes(shape, box):
    x, d = torch.full(shape, 0.5), math.prod(shape[1:])
    for U in (Lp(1.5, 0.3), Ellipsoid(torch.ones(d), 0.3), Ellipsoid(torch.eye(d), 0.3), Subspace(torch.ones(1, *shape[1:]), 0.3), Group(1, 2, 1, 0.3),
              Group(2, INF, tuple(range(1, len(shape))), 0.3), Masked(L2(0.3), torch.zeros(1, *shape[1:], dtype=torch.bool))):
        for method in 'steepest_ascent', 'project', 'sample':
            out = getattr(U, method)(x, **given_box(x, box))
            assert out.shape == shape and U.contains(out, **given_box(x, box)).all()

@boxes
@every
def test_zero_gradient_touches_its_own_sample_only(name, box):
    g, x = numbers(3, *SHAPE), torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    g[1] = 0
    step = SETS[name][0](0.1).steepest_ascent(g, **given_box(x, box))
    assert not step[1].any() and step.isfinite().all() and step[0].any() and step[2].any()

@boxes
@every
def test_nan_stays_in_its_own_sample_when_values_are_not_checked(name, box):
    g, x = numbers(3, *SHAPE), torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    g[1, 0], g[2, 0, 0, 0] = math.nan, math.inf
    for method in 'steepest_ascent', 'project':
        out = getattr(SETS[name][0](0.1), method)(g, **given_box(x, box), check=False)
        assert_close(out[:1], getattr(SETS[name][0](0.1), method)(g[:1], **given_box(x[:1], box)))

@boxes
@every
def test_autograd_goes_through(name, box):
    "The derivative of the maximum is the maximiser (Danskin)"
    g, x = numbers(3, *SHAPE).requires_grad_(), torch.full((3, *SHAPE), 0.5, dtype=torch.float64)
    U = SETS[name][0](0.3)
    slope, = torch.autograd.grad(U.support(g, **given_box(x, box)).sum(), g)
    assert_close(slope, U.steepest_ascent(g.detach(), **given_box(x, box)), rtol=1e-6, atol=1e-9)

@every
def test_boxes_of_tensors_and_open_boxes(name):
    g, x = numbers(4, *SHAPE), (numbers(4, *SHAPE, seed=1) / 3 + 0.5).clamp(0, 1)
    U = SETS[name][0](0.8)
    plain = U.steepest_ascent(g, x, BOX)
    for box in [(torch.zeros(3, 1, 1), torch.ones(3, 2, 2)), (torch.zeros(4, 3, 2, 2).double(), torch.tensor(1.)), (0, 1)]:
        assert_close(U.steepest_ascent(g, x, box), plain, rtol=0, atol=1e-9)
    assert_close(U.steepest_ascent(g, x, (-INF, INF)), U.steepest_ascent(g), rtol=0, atol=1e-6)

# Sampling and membership

@every
def test_draws_are_uniform(name):
    "A set of s times the radius has s^k of the volume, k the dimension of its span"
    U, k = SETS[name][0](0.7), dict(diagonal=int((DIAGONAL > 0).sum()), low=4, plane=3).get(name, D)
    z = U.sample(torch.empty(20_000, *SHAPE), generator=torch.Generator().manual_seed(0))
    assert U.contains(z).all() and (z.mean(0).abs() < 0.05 * z.abs().amax(0) + 1e-9).all()
    if 'masked' in name: return                                             # U's draw with zeros: documented, and not uniform
    for s in (0.8, 0.95): assert abs((U.norm(z) <= s * 0.7).double().mean() - s ** k) < 4 * math.sqrt(s ** k * (1 - s ** k) / len(z))

@boxes
@every
def test_draws_repeat_by_generator_and_lie_inside(name, box):
    x = torch.full((30, *SHAPE), 0.4)
    one, two = (SETS[name][0](0.6).sample(x, **given_box(x, box), generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and one.any() and SETS[name][0](0.6).contains(one, **given_box(x, box)).all()

def test_membership_of_what_lies_off_the_set():
    x = torch.full((1, *SHAPE), 0.5)
    inside = Subspace(PLANE, 1.).sample(x, generator=torch.Generator().manual_seed(0))
    for U, off in (Subspace(PLANE, 1.), inside + 0.01 * torch.eye(D)[0].reshape(1, *SHAPE)), (Masked(Linf(1.), FIXED), 0.1 * FIXED.float()), (Ellipsoid(DIAGONAL, 1.), 0.1 * (DIAGONAL[None] == 0)):
        assert not U.contains(off.float()).any() and not U.contains(off.float(), x, BOX).any() and U.norm(off.float()).isinf().all()
        assert U.contains(0 * off).all()
    small = Subspace(PLANE, 1e-4).sample(x, generator=torch.Generator().manual_seed(0))
    assert Subspace(PLANE, 1e-4).contains((x + small) - x, x).all()          # rounding of x + Δ leaves the plane

# Sets that differ between samples

def test_bases_and_masks_per_sample():
    bases, fixed, g = numbers(5, 2, *SHAPE), numbers(5, *SHAPE, seed=3) > 0, numbers(5, *SHAPE, seed=4)
    index = torch.tensor([3, 0])
    for U, one in (Subspace(bases, torch.linspace(0.1, 1, 5), per_sample=True), lambda i: Subspace(bases[i], 0.1 + 0.225 * i)), (Masked(L2(0.3), fixed), lambda i: Masked(L2(0.3), fixed[i:i+1])):
        for V, a, rows in (U, g, range(5)), (U.at(index), g[index], index.tolist()), (U.at(slice(1, 3)), g[1:3], (1, 2)), (U.at(4), g[4:], (4,)), (U.at(None), g, range(5)):
            assert_close(V.steepest_ascent(a), torch.cat([one(i).steepest_ascent(g[i:i+1]) for i in rows]), rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match='5'): Subspace(bases, 0.3, per_sample=True).steepest_ascent(g[:2])
    with pytest.raises(ValueError, match='fixed must broadcast to samples'): Masked(L2(0.3), fixed).steepest_ascent(g[:2])
    zeros = torch.zeros(2, 1, *SHAPE)
    assert not Subspace(zeros, 1., per_sample=True).steepest_ascent(g[:2]).any()

# In use, unchanged

def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(D, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))

@boxes
@every
def test_perturb_robust_and_curves_take_it(name, box):
    net, x = model(), (numbers(12, *SHAPE) / 3 + 0.5).clamp(0.05, 0.95).float()
    y = torch.arange(12) % 3                                                 # some are wrong already: no error
    U = SETS[name][0](0.4)
    loss = lambda z: torch.nn.functional.cross_entropy(net(z), y, reduction='none')
    last = loss(x)
    for steps in (1, 5):
        z = perturb(net, x, y, U, steps=steps, box=box)
        assert U.contains(z - x, x, box).all() and (loss(z).mean() >= last.mean() - 1e-4)
        last = loss(z)
    z = perturb(net, x, y, U.with_radius(torch.linspace(0, 1, 12)), steps=3, restarts=2, box=box, generator=torch.Generator().manual_seed(0))
    assert torch.equal(z[0], x[0]) and U.with_radius(torch.linspace(0, 1, 12)).contains(z - x, x, box).all()
    value = Robust(U, box=box)(net, x, y)
    assert value > torch.nn.functional.cross_entropy(net(x), y)
    curve = accuracy_curve(net, x, y, U, [0., 0.3], box=box)
    assert curve[0] == robust_accuracy(net, x, y, U.with_radius(0.), box=box)

# No waiting for a device

class NoSynchronisation(TorchDispatchMode):
    "Fails where a value is read back to the host"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ('_local_scalar_dense', 'item', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'unique_dim', '_unique2'):
            raise AssertionError(f'{func} waits for the device')
        return func(*args, **(kwargs or {}))

@boxes
@every
@pytest.mark.parametrize('per_sample', [False, True], ids=['number', 'tensor'])
def test_without_checks_nothing_is_read(name, box, per_sample):
    g, x, index = numbers(6, *SHAPE), torch.full((6, *SHAPE), 0.4).double(), torch.arange(6)
    U = SETS[name][0](torch.linspace(0, 2, 6) if per_sample else 0.5)
    with NoSynchronisation():
        V = U.at(index).scaled(0.5)
        for method in 'steepest_ascent', 'support', 'project', 'sample': getattr(V, method)(g, **given_box(x, box), check=False)
        V.contains(g, **given_box(x, box))
        with pytest.raises(AssertionError): V.steepest_ascent(g, **given_box(x, box))  # the test can fail

# Errors that name the argument

@pytest.mark.parametrize('make, error, text', [
    (lambda: Lp(0.5, 1.), ValueError, 'p must be a number of at least 1, or infinity, got 0.5'), (lambda: Lp('2', 1.), ValueError, 'p must be a number'),
    (lambda: Lp(math.nan, 1.), ValueError, 'p must be'), (lambda: Lp(3, -1.), ValueError, 'radius must be finite and at least 0'),
    (lambda: Ellipsoid([1.], 1.), TypeError, 'transform must be a floating-point tensor, got list'), (lambda: Ellipsoid(torch.ones(3, 0), 1.), ValueError, 'transform must have'),
    (lambda: Ellipsoid(torch.tensor([1., math.nan]), 1.), ValueError, 'transform must be finite'), (lambda: Subspace(torch.ones(3), 1.), ValueError, 'basis must have 2 or more dimensions'),
    (lambda: Subspace(torch.ones(2, 3), 1., per_sample=True), ValueError, 'basis must have 3 or more dimensions'), (lambda: Subspace(torch.ones(2, 3).long(), 1.), TypeError, 'basis must be a floating-point tensor, got torch.int64'),
    (lambda: Group(3, 2, 1, 1.), ValueError, 'outer must be 1, 2 or infinity, got 3'), (lambda: Group(1, 'inf', 1, 1.), ValueError, "inner must be 1, 2 or infinity, got 'inf'"),
    (lambda: Group(1, 2, 0, 1.), ValueError, 'dim must be one or more dimensions of x after the first'), (lambda: Group(1, 2, (1, 1), 1.), ValueError, 'dim must be'),
    (lambda: Group(1, 2, 'x', 1.), ValueError, 'dim must be'), (lambda: Masked(Subspace(torch.ones(1, 3), 1.), torch.ones(1, 3) > 0), TypeError, 'ball must be Linf, L2, L1, Lp or Group, got Subspace'),
    (lambda: Masked(L1(1.), torch.ones(1, 3)), TypeError, 'fixed must be a boolean tensor, got torch.float32'),
    (lambda: Ellipsoid(torch.ones(5, 2), 1.).steepest_ascent(torch.ones(2, 3)), ValueError, 'samples of 5 entries, but these have 3'),
    (lambda: Group(1, 2, 2, 1.).steepest_ascent(torch.ones(2, 3)), ValueError, 'dim must be dimensions of grad, of shape (2, 3), got (2,)'),
])
def test_bad_sets(make, error, text):
    with pytest.raises(error) as e: make()
    assert text in str(e.value), str(e.value)

@every
def test_bad_arguments(name):
    U, x = SETS[name][0](0.3), torch.full((2, *SHAPE), 0.5)
    bad = x.clone()
    bad[0] = math.nan
    for method, arg in dict(steepest_ascent='grad', support='grad', project='delta').items():
        f = getattr(U, method)
        for error, text, args in [(TypeError, f'{arg} must be a tensor, got list', ([[1.]],)), (TypeError, f'{arg} must be floating point', (x.long(),)),
            (ValueError, f'{arg} must be finite, got NaN or infinity in 1 of 2 samples', (bad,)), (ValueError, 'x must be given with a box', (x, None, BOX)),
            (ValueError, f'x must have the shape of {arg}', (x, x[:1], BOX)), (ValueError, 'x must lie in box', (x, 3 * x, BOX)), (TypeError, 'box must be None or a pair', (x, x, 1.))]:
            with pytest.raises(error) as e: f(*args)
            assert text in str(e.value), str(e.value)

# Radii far beyond the box

@pytest.mark.parametrize('r', [1e3, 1e5, 1e12, 1e100])
def test_large_radius_in_the_box(r):
    "The box alone binds: the maximum is a corner, a point inside is its own projection, and draws stay inside"
    x, d = torch.full((2, 2), 0.5, dtype=torch.float64), torch.tensor([[0.3, 0.2], [-0.4, 0.1]], dtype=torch.float64)
    for U in (Subspace(torch.eye(2, dtype=torch.float64), r), Ellipsoid(torch.tensor([[2., 1.], [0., 3.]], dtype=torch.float64), r)):
        assert_close(U.steepest_ascent(d, x, BOX), 0.5 * d.sign(), rtol=1e-6, atol=1e-6)
        assert torch.equal(U.project(d, x, BOX), d)
        draw = U.sample(x, x, BOX, torch.Generator().manual_seed(0))
        assert ((x + draw >= -1e-9) & (x + draw <= 1 + 1e-9)).all() and torch.equal(U.project(draw, x, BOX), draw)

def test_scaled_radius_stays_finite():
    with pytest.raises(ValueError, match='radius must be finite'): Linf(1e300).scaled(1e300)
    for tol in (-1, math.nan, math.inf, True, 'a'):
        for U in (L2(1.), Lp(3, 1.), Ellipsoid(torch.ones(2), 1.), Subspace(torch.eye(2), 1.), Masked(L2(1.), torch.tensor([[True, False]]))):
            with pytest.raises(ValueError, match='tol must be'): U.contains(torch.ones(1, 2), tol=tol)
