"""Properties of the robust programs, on random instances: against linear programs of scipy, closed forms and 10,000 rivals.

What a reader learns from is asserted on the pages; here are the ranges, shapes, corners and bad input.
"""
import math, subprocess, sys
import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import linprog
from robust_nb import programs
from robust_nb.programs import (RowBall, RowBudget, RowEllipsoid, cutting_planes, least_squares, linear_program, robust_least_squares,
                                svm, worst_matrix, worst_rows, worst_samples)

INF = math.inf
DUAL = {1: INF, 2: 2, INF: 1}
BUDGETS = ["frobenius", "columns", "rows"]
seeds = st.integers(0, 2**32 - 1)
norms = pytest.mark.parametrize("norm", [1, 2, INF])
budgets = pytest.mark.parametrize("budget", BUDGETS)

def many(n): return settings(max_examples=n, deadline=None, derandomize=True, database=None)

def ball(rng, norm, radius, count, n):
    "Random points of a ball, shape (count, n): many on its surface, many of them sparse"
    z = rng.normal(size=(count, n)) * 10. ** rng.integers(-3, 4, size=(count, n)) * (rng.random((count, n)) < rng.random((count, 1)))
    size = np.maximum(np.linalg.norm(z, norm, axis=1, keepdims=True), 1e-300)
    return radius * z / size * np.where(rng.random((count, 1)) < 0.5, 1, rng.random((count, 1)))

def row_set(rng, kind, n):
    "(a set, 10,000 of its members)"
    radius, draw = rng.uniform(0.01, 3), lambda norm, count=10_000, k=n: ball(rng, norm, 1., count, k)
    if kind == "ellipsoid":
        P = radius * rng.normal(size=(n, k := rng.integers(1, n + 2)))
        return RowEllipsoid(P), draw(2, k=k) @ P.T
    if kind == "budget":
        sigma, gamma = radius * rng.random(n), rng.uniform(0, n + 1)
        u = draw(1) * gamma
        return RowBudget(sigma, gamma), sigma * u.clip(-1, 1)
    return RowBall(kind, radius), radius * draw(kind)

KINDS = [1, 2, INF, "ellipsoid", "budget"]
kinds = pytest.mark.parametrize("kind", KINDS)


# Sets of a row

@kinds
@many(30)
@given(seed=seeds, n=st.integers(1, 9), rounded=st.booleans())
def test_support_is_attained_and_not_exceeded(kind, seed, n, rounded):
    rng = np.random.default_rng(seed)
    s, members = row_set(rng, kind, n)
    x = rng.normal(size=n) * 10. ** rng.integers(-3, 4)
    if rounded: x = x.round()  # ties and zeros
    best = s.support(x)
    assert isinstance(best, float) and best >= 0
    assert math.isclose(s.worst(x) @ x, best, rel_tol=1e-12, abs_tol=1e-300)
    assert (members @ x).max() <= best * (1 + 1e-9) + 1e-12

@norms
@many(30)
@given(seed=seeds, n=st.integers(1, 9), exponent=st.integers(-250, 250))
def test_worst_of_a_ball(norm, seed, n, exponent):
    "On the surface, with the dual norm as value, at any scale"
    x = np.random.default_rng(seed).normal(size=n)
    delta = RowBall(norm, 0.7).worst(x * 10. ** exponent)
    assert math.isclose(np.linalg.norm(delta, norm), 0.7, rel_tol=1e-12)
    assert math.isclose(delta @ x, 0.7 * np.linalg.norm(x, DUAL[norm]), rel_tol=1e-12)

@many(30)
@given(seed=seeds, n=st.integers(1, 9))
def test_budget_against_a_linear_program(seed, n):
    "max Σ σⱼ|xⱼ|uⱼ over 0 ≤ u ≤ 1, Σu ≤ Γ; and the worst error is a member"
    rng = np.random.default_rng(seed)
    sigma, gamma, x = rng.random(n) * (rng.random(n) < 0.8), rng.uniform(0, n + 1), rng.normal(size=n)
    best = -linprog(-sigma * abs(x), np.ones((1, n)), [gamma], bounds=(0, 1)).fun
    s = RowBudget(sigma, gamma)
    assert math.isclose(s.support(x), best, rel_tol=1e-9, abs_tol=1e-12)
    assert (abs(s.worst(x)) <= sigma + 1e-15).all()
    assert np.divide(abs(s.worst(x)), sigma, out=np.zeros(n), where=sigma > 0).sum() <= gamma + 1e-12

@kinds
def test_cvxpy_sees_the_same_support(kind):
    rng = np.random.default_rng(0)
    for n in 1, 3, 6:
        s, _ = row_set(rng, kind, n)
        x, unknown = rng.normal(size=n), cp.Variable(n)
        expression = s.support(unknown)
        assert expression.is_convex()
        assert math.isclose(cp.Problem(cp.Minimize(expression), [unknown == x]).solve(solver="CLARABEL"), s.support(x), rel_tol=1e-6, abs_tol=1e-7)

def test_budgets_between_a_diamond_and_a_box():
    x = np.array([1., -2., 0.5])
    assert math.isclose(RowBudget(np.full(3, 0.3), 1).support(x), RowBall(1, 0.3).support(x))
    assert math.isclose(RowBudget(np.full(3, 0.3), 3).support(x), RowBall(INF, 0.3).support(x))
    assert math.isclose(RowBudget(np.full(3, 0.3), 99).support(x), RowBall(INF, 0.3).support(x))
    assert math.isclose(RowEllipsoid(0.3 * np.eye(3)).support(x), RowBall(2, 0.3).support(x))


# Linear programs

def instance(rng, m=5, n=3):
    "A bounded program whose feasible set holds a ball around 0"
    return rng.normal(size=n), np.vstack([rng.normal(size=(m, n)), np.eye(n), -np.eye(n)]), rng.uniform(0.5, 1.5, m + 2 * n)

@kinds
@many(8)
@given(seed=seeds)
def test_robust_linear_program(kind, seed):
    "Feasible for the worst rows and for 10,000 others, dearer than the nominal one, and cutting planes agree"
    rng = np.random.default_rng(seed)
    c, A, b = instance(rng)
    s, members = row_set(rng, kind, 3)
    rows = [s if rng.random() < 0.7 else None for _ in b]
    rows[0] = s
    robust = linear_program(c, A, b, rows)
    for i, row in enumerate(rows): assert ((A[i] + (members if row else 0 * members)) @ robust.x).max() <= b[i] + 1e-6
    assert ((A + worst_rows(A, robust.x, rows)) @ robust.x <= b + 1e-6).all()
    assert robust.status == "optimal" and math.isclose(c @ robust.x, robust.value, rel_tol=1e-6, abs_tol=1e-7)
    assert robust.value >= linear_program(c, A, b).value - 1e-7
    found, history = cutting_planes(c, A, b, rows, tol=1e-7)
    assert abs(found.value - robust.value) < 1e-6 * max(1, abs(robust.value))
    assert history.shape[1] == 2 and (np.diff(history[:, 0]) > -1e-6).all() and history[-1, 1] <= 1e-7

@many(15)
@given(seed=seeds, scale=st.sampled_from([1., 1e-9, 1e6]))
def test_nominal_program_against_scipy(seed, scale):
    c, A, b = instance(np.random.default_rng(seed))
    x = linear_program(scale * c, A, b, lower=-0.4, upper=[0.1, 0.2, 1.])
    reference = linprog(c, A, b, bounds=[(-0.4, 0.1), (-0.4, 0.2), (-0.4, 1.)])
    assert math.isclose(x.value / scale, reference.fun, rel_tol=1e-6, abs_tol=1e-7)

@many(15)
@given(seed=seeds, units=st.tuples(*[st.integers(-6, 6)] * 3))
def test_units_do_not_matter(seed, units):
    "c, A with its errors, and b in other units"
    c, A, b = instance(np.random.default_rng(seed))
    kc, kA, kb = (10. ** k for k in units)
    for r in 0., 0.2:
        one, other = linear_program(c, A, b, RowBall(2, r)), linear_program(kc * c, kA * A, kb * b, RowBall(2, kA * r))
        assert math.isclose(other.value / (kc * kb / kA), one.value, rel_tol=1e-6)

@many(10)
@given(seed=seeds)
def test_errors_of_the_cost(seed):
    "The worst cost is attained, and as good as the epigraph form"
    rng = np.random.default_rng(seed)
    c, A, b = instance(rng)
    s = RowBudget(rng.random(3), 1.5)
    robust = linear_program(c, A, b, cost=s)
    assert math.isclose((c + s.worst(robust.x)) @ robust.x, robust.value, rel_tol=1e-6, abs_tol=1e-7)
    rows = np.vstack([np.append(c, -1), np.hstack([A, np.zeros((len(b), 1))])])
    lifted = linear_program([0, 0, 0, 1], rows, np.append(0, b), [RowBudget(np.append(s.sigma, 0), 1.5), *[None] * len(b)])
    assert abs(lifted.value - robust.value) < 1e-6

@many(20)
@given(far=st.integers(0, 15), near=st.booleans())
def test_bounds_of_another_size(far, near):
    "max x₁ + x₂ with one of the two limits 10^far away: right to 10⁻³, or an error; never a plan that breaks a bound"
    bound, limit = (1., 10. ** far) if near else (10. ** far, 1.)
    try: s = linear_program([-1., -1.], [[1., 1.]], [limit], lower=0., upper=bound)
    except (RuntimeError, ValueError) as e:
        assert far > 5 and ("try data of similar sizes" in str(e) or "too far off" in str(e))
    else: assert math.isclose(-s.value, min(2 * bound, limit), rel_tol=1e-3) and s.x.max() <= bound * (1 + 1e-3)

def test_infeasible_for_every_larger_radius():
    "x must fulfil a row that an error can turn around; the solver decides, never gives up"
    for kind in 1, 2, INF:
        for r in np.linspace(1, 30, 59):
            with pytest.raises(ValueError, match="the program is infeasible"):
                linear_program([1., 1.], [[-1., -1.]], [-1.], RowBall(kind, r if kind == INF else 2 * r), lower=0.)

def test_cuts_of_an_unbounded_relaxation():
    "The robust program has a solution, the nominal one has none: bounds are needed, and the error says so"
    with pytest.raises(ValueError, match="unbounded: .* a bound on x is missing"): cutting_planes([-1.], [[0.]], [1.], RowBall(2, 0.5))
    assert math.isclose(cutting_planes([-1.], [[0.]], [1.], RowBall(2, 0.5), upper=10.)[0].x[0], 2., rel_tol=1e-6)
    assert math.isclose(linear_program([-1.], [[0.]], [1.], RowBall(2, 0.5)).x[0], 2., rel_tol=1e-6)


# Least squares

def residual(A, b, x, radius, budget, norm=2):
    r = A @ x - b
    if budget == "rows": return np.linalg.norm(abs(r) + radius * np.linalg.norm(x, DUAL[norm]))
    return np.linalg.norm(r) + radius * np.linalg.norm(x, 1 if budget == "columns" else 2)

def errors(rng, budget, norm, radius, m, n, count=10_000):
    "Random members of the set of ΔA, shape (count, m, n)"
    if budget == "frobenius": return ball(rng, 2, radius, count, m * n).reshape(count, m, n)
    if budget == "rows": return ball(rng, norm, radius, count * m, n).reshape(count, m, n)
    return ball(rng, 2, radius, count * n, m).reshape(count, n, m).swapaxes(1, 2)

@pytest.mark.parametrize("budget, norm", [("frobenius", 2), ("columns", 2), ("rows", 1), ("rows", 2), ("rows", INF)])
@many(10)
@given(seed=seeds, m=st.integers(1, 6), n=st.integers(1, 4), case=st.sampled_from(["any", "r = 0", "x = 0", "sparse"]))
def test_worst_matrix(budget, norm, seed, m, n, case):
    "Within the budget, attains the formula, and no other exceeds it; with r = 0 and x = 0 too"
    rng = np.random.default_rng(seed)
    A, b, x, radius = rng.integers(-3, 4, (m, n)) + 0., rng.normal(size=m), rng.integers(-2, 3, n) + 0., rng.uniform(0.1, 2)
    if case == "x = 0": x = np.zeros(n)
    if case == "sparse": x[0] = 0
    if case == "r = 0": b = A @ x
    change, best = worst_matrix(A, b, x, radius, budget, norm), residual(A, b, x, radius, budget, norm)
    assert math.isclose(np.linalg.norm((A + change) @ x - b), best, rel_tol=1e-12, abs_tol=1e-12)
    size = dict(frobenius=np.linalg.norm(change), columns=np.linalg.norm(change, axis=0).max(), rows=np.linalg.norm(change, norm, axis=1).max())
    assert size[budget] <= radius * (1 + 1e-12)
    others = (A + errors(rng, budget, norm, radius, m, n, 2_000)) @ x - b
    assert np.linalg.norm(others, axis=1).max() <= best * (1 + 1e-12) + 1e-12

@pytest.mark.parametrize("budget, norm", [("frobenius", 2), ("columns", 2), ("rows", 1), ("rows", 2), ("rows", INF)])
@many(10)
@given(seed=seeds, exponents=st.tuples(st.integers(-200, 200), st.integers(-200, 200)))
def test_robust_least_squares(budget, norm, seed, exponents):
    "The value is the worst residual of x, no nearby x has a smaller one, and units do not matter"
    rng = np.random.default_rng(seed)
    A, b, radius = rng.normal(size=(7, 3)), rng.normal(size=7), rng.uniform(0.01, 1)
    solution = robust_least_squares(A, b, radius, budget, norm)
    best = residual(A, b, solution.x, radius, budget, norm)
    assert math.isclose(solution.value, best, rel_tol=1e-6) and solution.value >= least_squares(A, b).value
    for size in 1e-3, 0.1, 1.:
        others = solution.x + size * rng.normal(size=(300, 3))
        assert min(residual(A, b, x, radius, budget, norm) for x in others) >= best * (1 - 1e-7)
    kA, kb = (10. ** k for k in exponents)
    assert math.isclose(robust_least_squares(kA * A, kb * b, kA * radius, budget, norm).value / kb, solution.value, rel_tol=1e-6)

@budgets
def test_radius_zero_and_a_large_one(budget):
    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(9, 3)), rng.normal(size=9)
    assert math.isclose(robust_least_squares(A, b, 0., budget).value, least_squares(A, b).value, rel_tol=1e-7)
    far = robust_least_squares(A, b, 50., budget)
    assert math.isclose(far.value, np.linalg.norm(b), rel_tol=1e-6) and np.abs(far.x).max() < 1e-6

@budgets
def test_degenerate_data(budget):
    "A = 0, b = 0, one unknown, fewer equations than unknowns"
    for A, b in (np.zeros((3, 2)), np.ones(3)), (np.eye(3), np.zeros(3)), (np.ones((4, 1)), np.arange(4.)), (np.ones((1, 4)), np.ones(1)):
        s = robust_least_squares(A, b, 0.1, budget)
        assert s.x.shape == (A.shape[1],) and math.isclose(s.value, residual(A, b, s.x, 0.1, budget), rel_tol=1e-6, abs_tol=1e-7)

def test_least_squares_takes_the_shortest():
    s = least_squares([[1., 1.]], [2.])
    np.testing.assert_allclose(s.x, [1., 1.])
    assert s.value < 1e-12 and s.status == "optimal"


# Support vector machines

def loss(X, y, w, b): return np.maximum(1 - y * (X @ w + b), 0).sum(-1)

@norms
@many(15)
@given(seed=seeds, apart=st.sampled_from([0., 1., 6.]))
def test_worst_samples(norm, seed, apart):
    "Within the budget, and no other exceeds it, for samples that a hyperplane separates too"
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat([-1., 1.], 4))
    X, w, b, c = rng.normal(size=(8, 2)) + apart * y[:, None], np.ones(2) + 0.3 * rng.normal(size=2), rng.normal(), rng.uniform(0, 3)
    delta = worst_samples(X, y, w, b, c, norm)
    best = loss(X + delta, y, w, b)
    assert np.linalg.norm(delta, norm, axis=1).sum() <= c * (1 + 1e-12)
    assert best <= loss(X, y, w, b) + c * np.linalg.norm(w, DUAL[norm]) + 1e-9
    if (y * (X @ w + b) <= 1).any(): assert math.isclose(best, loss(X, y, w, b) + c * np.linalg.norm(w, DUAL[norm]), rel_tol=1e-12)
    share = rng.dirichlet(np.full(8, 0.2), 10_000)
    others = X + c * share[..., None] * ball(rng, norm, 1., 80_000, 2).reshape(10_000, 8, 2)
    assert loss(others, y, w, b).max() <= best + 1e-9

@norms
@many(10)
@given(seed=seeds)
def test_svm_is_the_robust_program(norm, seed):
    rng = np.random.default_rng(seed)
    y = np.repeat([-1., 1.], 10)
    X, c = rng.normal(size=(20, 3)) + 0.3 * y[:, None], rng.uniform(0.1, 3)
    w, b, value, status = svm(X, y, c, norm)
    assert status == "optimal" and w.shape == (3,) and isinstance(b, float)
    assert math.isclose(loss(X + worst_samples(X, y, w, b, c, norm), y, w, b), value, rel_tol=1e-6)
    rivals = ((w + s * rng.normal(size=3), b + s * rng.normal()) for s in (1e-3, 0.1, 1.) for _ in range(100))
    assert min(loss(X, y, v, a) + c * np.linalg.norm(v, DUAL[norm]) for v, a in rivals) >= value - 1e-6
    assert value >= svm(X, y, 0., norm).value - 1e-7

@many(10)
@given(seed=seeds, exponent=st.integers(-100, 100), shift=st.floats(-100, 100))
def test_svm_in_other_units(seed, exponent, shift):
    "w in units of 1/X, the same value, wherever 0 is"
    rng = np.random.default_rng(seed)
    y, k = np.repeat([-1., 1.], 10), 10. ** exponent
    X = rng.normal(size=(20, 2)) + y[:, None]
    one, other = svm(X, y, 1.), svm(k * (X + shift), y, k)
    assert math.isclose(one.value, other.value, rel_tol=1e-6)
    assert math.isclose(loss(k * (X + shift), y, other.w, other.b) + k * np.linalg.norm(other.w), one.value, rel_tol=1e-6)

def test_svm_of_one_class(): assert abs(svm(np.ones((3, 2)), np.ones(3), 1.).value) < 1e-6


# Bad input

A, b, x, X, y = np.ones((3, 2)), np.ones(3), np.ones(2), np.ones((3, 2)), np.array([1., -1., 1.])
BAD = {
    "nan in A": (lambda: least_squares(A * np.nan, b), "A must be finite, got NaN or infinity in 6 of 6 entries"),
    "inf in b": (lambda: robust_least_squares(A, b * INF, 1.), "b must be finite"),
    "flat A": (lambda: least_squares(b, b), r"A must have shape \(any, any\), got \(3,\)"),
    "long b": (lambda: robust_least_squares(A, np.ones(4), 1.), r"b must have shape \(3\), got \(4,\)"),
    "column b": (lambda: least_squares(A, b[:, None]), r"b must have shape \(3\), got \(3, 1\)"),
    "radius": (lambda: robust_least_squares(A, b, -0.1), "radius must be finite and at least 0, got -0.1"),
    "radius of a matrix": (lambda: worst_matrix(A, b, x, np.nan), "radius must be finite"),
    "norm in a list": (lambda: RowBall([2], 1.), r"norm must be 1, 2 or math.inf, got \[2\]"),
    "radius per row": (lambda: RowBall(2, [0.1, 0.2]), "radius must be a number, got list"),
    "budget of a matrix": (lambda: worst_matrix(A, b, x, 1., "row"), "budget must be"),
    "norm with columns": (lambda: robust_least_squares(A, b, 1., "columns", INF), 'norm=inf is for budget="rows"'),
    "norm": (lambda: RowBall("inf", 1.), "norm must be 1, 2 or math.inf, got 'inf'"),
    "sigma": (lambda: RowBudget([-1.], 1.), "sigma must be at least 0"),
    "gamma": (lambda: RowBudget([1.], INF), "gamma must be finite"),
    "P": (lambda: RowEllipsoid([1., 2.]), r"P must have shape \(any, any\)"),
    "long rows": (lambda: linear_program(x, A, b, RowBudget(b, 1)), r"rows must fit 2 unknowns: x must have shape \(3\)"),
    "long cost set": (lambda: linear_program(x, A, b, cost=RowBudget(b, 1)), r"cost must fit 2 unknowns: x must have shape \(3\)"),
    "cost of a number": (lambda: linear_program(x, A, b, cost=0.1), "cost must be a set such as RowBall or None, got float"),
    "cost in a list": (lambda: linear_program(x, A, b, cost=[RowBall(2, 1.)]), "cost must be a set such as RowBall or None, got list"),
    "an unknown too long": (lambda: RowBudget([1.], 1).support(cp.Variable(3)), r"x must have shape \(1\), got \(3,\)"),
    "an unknown matrix": (lambda: RowBall(2, 1.).support(cp.Variable((2, 2))), r"x must have shape \(any\), got \(2, 2\)"),
    "tolerance": (lambda: cutting_planes(x, A, b, None, tol=math.nan), "tol must be finite and at least 0, got nan"),
    "rounds": (lambda: cutting_planes(x, A, b, None, rounds=0), "rounds must be at least 1, got 0"),
    "text for a bound": (lambda: linear_program(x, A, b, lower="a"), "lower must hold real numbers, got str"),
    "rows": (lambda: linear_program(x, A, b, [None, None]), "rows must be one set or 3, one per row of A, got 2"),
    "rows of numbers": (lambda: worst_rows(A, x, [1, 2, 3]), "rows must be a set such as RowBall or None, got int"),
    "c": (lambda: linear_program(b, A, b), r"A must have shape \(any, 3\), got \(3, 2\)"),
    "upper": (lambda: linear_program(x, A, b, upper=INF), "upper must be finite"),
    "crossed bounds": (lambda: linear_program(x, A, b, lower=1., upper=0.), "the program is infeasible"),
    "unbounded": (lambda: linear_program(-x, -A, b), "the program is unbounded"),
    "labels": (lambda: svm(X, [0., 1., 1.]), r"y must hold labels -1 and 1, got \[0.0, 1.0\]"),
    "radius of samples": (lambda: svm(X, y, -1.), "radius must be finite and at least 0, got -1.0"),
    "radius of worst samples": (lambda: worst_samples(X, y, x, 0., -1.), "radius must be finite and at least 0"),
    "norm of samples": (lambda: svm(X, y, 1., 3), "norm must be 1, 2 or math.inf, got 3"),
    "w": (lambda: worst_samples(X, y, b, 0., 1.), r"w must have shape \(2\), got \(3,\)"),
    "b": (lambda: worst_samples(X, y, x, b, 1.), r"b must have shape \(\), got \(3,\)"),
    "text": (lambda: svm("X", y), "X must hold real numbers, got str"),
    "ragged": (lambda: svm([[1.], [1., 2.]], y), "X must hold real numbers, got list"),
    "complex": (lambda: least_squares(A * 1j, b), "A must hold real numbers, got ndarray"),
}

@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=message): call()

def test_a_solver_that_fails_twice(monkeypatch):
    def fail(*args, **kw): raise cp.SolverError("numbers")
    monkeypatch.setattr(programs.cp.Problem, "solve", fail)
    with pytest.raises(RuntimeError, match="the solver failed; try data of similar sizes"): linear_program(x, A, b)

def test_inputs_are_not_changed():
    rng = np.random.default_rng(0)
    c, A, b = instance(rng)
    copies = c.copy(), A.copy(), b.copy()
    cutting_planes(c, A, b, RowBall(2, 0.1)); robust_least_squares(A, b, 0.1); worst_matrix(A, b, c, 0.1)
    for before, after in zip(copies, (c, A, b)): np.testing.assert_array_equal(before, after)

def test_import_needs_no_torch():
    code = "import sys, robust_nb.programs; print([o for o in ('torch', 'matplotlib') if o in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
