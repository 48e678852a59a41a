"""Calibration on known distributions: Platt's parameters, and thresholds that hold on fresh reals."""

import json

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression

from fastdetect.errors import DataError, ShapeError
from fastdetect.evaluation import calibration as cal
from fastdetect.evaluation.scoring import AGGREGATION


def fit(reals, fakes, identities=None, **options):
    who = identities if identities is not None else [f"r{i}" for i in range(len(reals))]
    return cal.fit_calibration(
        reals,
        who,
        fakes,
        [f"f{i}" for i in range(len(fakes))],
        sampling="uniform:16",
        aggregation=AGGREGATION,
        data_sha256="0" * 64,
        **options,
    )


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.35, -1.2), (4.0, 2.0)])
def test_platt_recovers_known_parameters(a: float, b: float) -> None:
    # Scores symmetric about the point of equal likelihood, so both classes are equally common.
    rng = np.random.default_rng(0)
    scores = rng.normal(-b / a, 2 / a, 200_000)
    labels = rng.random(scores.size) < expit(a * scores + b)
    fitted = cal.fit_platt(scores, labels.astype(int))
    assert fitted == pytest.approx((a, b), rel=0.02, abs=0.02)


def test_platt_ignores_the_share_of_classes_and_survives_separable_data() -> None:
    rng = np.random.default_rng(1)
    reals, fakes = rng.normal(-1, 1, 20_000), rng.normal(1, 1, 1_000)
    a, b = cal.fit_platt(np.r_[reals, fakes], np.r_[np.zeros(20_000), np.ones(1_000)])
    assert (a, b) == pytest.approx((2.0, 0.0), abs=0.12)  # the log likelihood ratio of these two is 2 s
    # two scores, so the curve goes through Platt's targets for 3 reals and 8 fakes: 1 / 5 and 9 / 10
    a, b = cal.fit_platt([0.0] * 3 + [1.0] * 8, [0] * 3 + [1] * 8)
    assert expit([b, a + b]) == pytest.approx([0.2, 0.9], abs=1e-6)


def test_isotonic_against_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    scores = np.round(rng.normal(size=400), 1)
    labels = (rng.random(400) < expit(2 * scores)).astype(int)
    weights = np.where(labels == 1, 1 / labels.sum(), 1 / (1 - labels).sum())
    x, y = cal.fit_isotonic(scores, labels)
    oracle = IsotonicRegression().fit(scores, labels, weights)
    grid = np.linspace(-2, 2, 41)
    np.testing.assert_allclose(
        np.interp(grid, x, y),
        oracle.predict(np.clip(grid, *scores[[scores.argmin(), scores.argmax()]])),
        atol=1e-9,
    )


@pytest.mark.parametrize("target", [0.01, 0.05])
def test_order_statistic_holds_on_fresh_reals(target: float) -> None:
    realised, inside, runs = [], 0, 200
    for run in range(runs):
        rng = np.random.default_rng(run)
        found = cal.fit_threshold(rng.standard_t(4, size=300), [str(i) for i in range(300)], target)
        assert found["method"] == "order_statistic"
        fpr = stats.t.sf(found["threshold"], 4)
        realised.append(fpr)
        inside += found["fpr_interval"][0] <= fpr <= found["fpr_interval"][1]
    assert np.mean(realised) <= target * 1.06  # conservative on average, but for the 200 runs' noise
    assert np.mean(realised) > target * 0.6
    assert inside / runs > 0.9


def test_order_statistic_is_the_conformal_rank() -> None:
    # 19 identities are the fewest that have a 5 % quantile: it is the highest score.
    found = cal.fit_threshold(np.arange(19.0), [str(i) for i in range(19)], 0.05)
    assert found["method"] == "order_statistic"
    assert found["rank"] == 19
    assert 18 < found["threshold"] < 18.01
    fewer = cal.fit_threshold(np.arange(18.0), [str(i) for i in range(18)], 0.05)
    assert fewer["method"] == "exponential_tail"
    assert fewer["threshold"] > 17
    # the highest of 19 uniforms leaves Beta(1, 19) above it
    assert found["fpr_interval"] == pytest.approx([1 - 0.975 ** (1 / 19), 1 - 0.025 ** (1 / 19)])


def test_equal_scores_at_the_threshold_count_as_reached() -> None:
    scores = np.r_[np.arange(37.0), 50, 50]  # the 38th of 39 is wanted, and the 39th is as high
    found = cal.fit_threshold(scores, [str(i) for i in range(39)], 0.05)
    assert found["rank"] == 39
    assert found["threshold"] > 50
    assert found["fpr_interval"] == pytest.approx(stats.beta.ppf([0.025, 0.975], 1, 39).tolist())


def test_the_exponential_tail_by_hand() -> None:
    # The upper half of 18 identities, 9 to 17, lies 5 above 8 in the mean; a fresh one lies there with 9 / 19.
    wanted = 8 + 5 * 9 * ((9 / 19 / 0.02) ** (1 / 9) - 1)
    scores, who = np.arange(18.0), [str(i) for i in range(18)]
    found = cal.fit_threshold(scores, who, 0.02)
    assert found["threshold"] == pytest.approx(wanted)
    assert found["tail"] == pytest.approx({"start": 8, "identities_above": 9, "share_above": 9 / 19, "mean_excess": 5})
    twice = cal.fit_threshold([*scores, 17.0, 17.0], [*who, "17", "17"], 0.02)
    assert twice["threshold"] == pytest.approx(wanted)  # more videos of one of them change nothing
    many = cal.fit_threshold(np.arange(60.0), [str(i) for i in range(60)], 0.01)
    assert many["tail"]["identities_above"] == pytest.approx(15)  # a quarter, where that is ten or more
    top = cal.fit_threshold([1, 9, 9, 9, 9], list("abcde"), 0.05)  # equal ones are the whole tail
    assert top["threshold"] > 9
    assert top["tail"] == pytest.approx({"start": 1, "identities_above": 4, "share_above": 4 / 6, "mean_excess": 8})


def test_an_identity_counts_once() -> None:
    # One person's hundred high videos are one of forty identities, not 72 % of the reals.
    rng = np.random.default_rng(3)
    others = rng.normal(size=39)
    scores = np.r_[others, rng.normal(50, 0.1, 100)]
    who = [f"p{i}" for i in range(39)] + ["loud"] * 100
    crowd = cal.fit_threshold(scores, who, 0.1)["threshold"]
    assert crowd < 5
    assert cal.fit_threshold(scores, [str(i) for i in range(139)], 0.1)["threshold"] > 49


@pytest.mark.parametrize(
    "law", [stats.norm(), stats.expon(), stats.logistic()], ids=["normal", "exponential", "logistic"]
)
def test_extrapolated_one_percent(law) -> None:
    realised, inside, above, runs = [], 0, 0, 400
    for run in range(runs):
        scores = law.rvs(40, random_state=run)
        found = cal.fit_threshold(scores, [str(i) for i in range(40)], 0.01)
        assert found["method"] == "exponential_tail"
        assert found["threshold"] > scores.max()
        fpr = law.sf(found["threshold"])
        realised.append(fpr)
        low, high = found["fpr_interval"]
        inside += low <= fpr <= high
        above += fpr > high
    assert np.mean(realised) < 0.0115  # 0.01 but for the noise of 400 runs; less where the tail is lighter
    assert above / runs < 0.05
    if law.dist.name == "expon":
        assert np.mean(realised) > 0.0085
        assert 0.925 < inside / runs < 0.975  # two deviations of 400 runs around what is stated


def test_block_is_complete_json_and_says_what_is_extrapolated() -> None:
    rng = np.random.default_rng(4)
    reals, fakes = rng.normal(-1, 1, 40), rng.normal(1, 1, 30)
    block = fit(reals, fakes, notes=["fakes: self-blended"])
    again = json.loads(json.dumps(block))
    assert again == block
    assert set(block) >= {
        "method", "a", "b", "thresholds", "target_fpr", "n_real", "n_identities", "sampling", "aggregation",
        "data_sha256", "id", "method_notes",
    }  # fmt: skip
    assert len(block["id"]) == 12
    assert block["thresholds"]["0.01"] > block["thresholds"]["0.05"]
    assert block["method_notes"][0] == "fakes: self-blended"
    assert (block["n_real"], block["n_fake"], block["n_identities"]) == (40, 30, 40)
    assert any(
        "because 40 identities have no such quantile (at least 99 are needed)" in note for note in block["method_notes"]
    )
    assert any("5 % FPR: order statistic over 40" in note for note in block["method_notes"])
    assert fit(reals, fakes, notes=["fakes: self-blended"])["id"] == block["id"]
    assert fit(reals, fakes)["id"] != block["id"]


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_realised_fpr_of_a_block_on_fresh_reals(method: str) -> None:
    rng = np.random.default_rng(5)
    block = fit(rng.normal(-1, 1, 500), rng.normal(1, 1, 500), method=method)
    fresh = rng.normal(-1, 1, 100_000)
    for key in ("0.01", "0.05"):
        fpr, _ = cal.check_fpr(cal.calibrate(block, fresh), block["thresholds"][key])
        raw, _ = cal.check_fpr(fresh, block["raw_thresholds"][key])
        low, high = block["fits"][key]["fpr_interval"]
        assert low <= fpr <= high
        assert fpr == pytest.approx(raw, abs=2e-5)  # the calibrated threshold cuts where the raw one does


def test_the_slope_counts_an_identity_once() -> None:
    rng = np.random.default_rng(7)
    reals, fakes = rng.normal(-1, 1, 200), rng.normal(1, 1, 200)
    once, who = fit(reals, fakes), [f"r{i}" for i in range(200)]
    loud = fit(np.r_[reals, np.full(600, reals.max())], fakes, who + [who[reals.argmax()]] * 600)
    assert (loud["a"], loud["b"]) == pytest.approx((once["a"], once["b"]), abs=0.05)


def test_isotonic_scores_rise_where_its_steps_are_flat() -> None:
    rng = np.random.default_rng(8)
    block = fit(rng.normal(-1, 1, 100), rng.normal(1, 1, 100), method="isotonic")
    p = cal.calibrate(block, np.linspace(-6, 6, 200))
    assert (np.diff(p) > 0).all()
    assert 0 <= p[0] < p[-1] <= 1


def test_a_threshold_that_no_score_passes_is_refused() -> None:
    rng = np.random.default_rng(9)
    with pytest.raises(DataError, match=r"calibrates to 1\.0"):
        fit(rng.normal(0, 0.1, 40), rng.normal(3, 0.1, 40), target_fpr=(1e-15,))


def test_a_block_is_read_by_the_verdict() -> None:
    verdict = pytest.importorskip("fastdetect.screening.verdict")
    rng = np.random.default_rng(6)
    block = fit(rng.normal(-1, 1, 100), rng.normal(1, 1, 100))
    loaded = verdict.Calibration.from_config(json.loads(json.dumps(block)))
    assert loaded.probability(0.3) == pytest.approx(float(cal.calibrate(block, [0.3])[0]), abs=1e-12)
    limits = loaded.limits(verdict.VerdictConfig())
    assert [row.score for row in limits] == [block["thresholds"]["0.05"], block["thresholds"]["0.01"]]


def test_check_fpr_is_clopper_pearson() -> None:
    fpr, (low, high) = cal.check_fpr([0.1] * 95 + [0.9] * 5, 0.9)
    assert fpr == 0.05
    assert low == pytest.approx(stats.beta.ppf(0.025, 5, 96))
    assert high == pytest.approx(stats.beta.ppf(0.975, 6, 95))
    assert cal.check_fpr([0.1] * 20, 0.9)[1] == pytest.approx((0.0, 1 - 0.025 ** (1 / 20)))


def test_hash_data_does_not_depend_on_order() -> None:
    rows = [("a", "p1", 0), ("b", "p2", 1)]
    assert cal.hash_data(rows) == cal.hash_data(rows[::-1])
    assert cal.hash_data(rows) != cal.hash_data([("a", "p1", 1), ("b", "p2", 1)])


def test_errors() -> None:
    with pytest.raises(DataError, match="no higher than reals"):
        cal.fit_platt([1.0, 2.0, 0.0, -1.0], [0, 0, 1, 1])
    with pytest.raises(DataError, match="labels \\[0\\]"):
        cal.fit_platt([1.0, 2.0], [0, 0])
    with pytest.raises(DataError, match="not finite"):
        cal.fit_platt([1.0, np.inf], [0, 1])
    with pytest.raises(ShapeError, match="one length"):
        cal.fit_platt([1.0, 2.0], [0, 1, 1])
    with pytest.raises(DataError, match="three identities"):
        cal.fit_threshold([1.0, 2.0, 3.0, 4.0], ["a", "a", "b", "b"], 0.05)
    with pytest.raises(DataError, match="scores that differ"):
        cal.fit_threshold([1.0] * 5, list("abcde"), 0.05)
    with pytest.raises(ShapeError, match="target_fpr"):
        cal.fit_threshold([1.0, 2.0, 3.0], list("abc"), 0.0)
    with pytest.raises(ShapeError, match=r"below 0\.5"):
        cal.fit_threshold([1.0, 2.0, 3.0], list("abc"), 0.5)
    with pytest.raises(DataError, match="method 'beta'"):
        cal.calibrate({"method": "beta", "a": 1.0, "b": 0.0}, [0.0])
    with pytest.raises(DataError, match="finite scores"):
        cal.check_fpr([], 0.5)
