"""Claims: the paper's own numbers pass their rules, verdicts follow the stated logic, intervals are right."""

import time

import bootstrap
import claims
import fake_results
import numpy as np
import pytest
import stages

from mmduet2kit.errors import UserError
from mmduet2kit.files import read_csv, write_csv, write_json
from mmduet2kit.report import scripts
from tables import Run


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return fake_results.make(tmp_path_factory.mktemp("run"), (1, 2, 3))


def change(results, to, name, edit):
    """A copy of the results in `to`, in which edit(row) changes the rows of one file (None drops it)."""
    for path in results.glob("*.csv"):
        rows = read_csv(path)
        if path.name == name:
            rows = [row for row in rows if edit(row) is not None]
        write_csv(to / path.name, rows, read_csv(path)[0].keys())
    return {entry["id"]: entry for entry in claims.judge_all(to)}


def test_the_papers_own_numbers(results):
    entries = claims.judge_all(results)
    by_id = {entry["id"]: entry for entry in entries}
    assert len(by_id) == len(entries) >= 35
    for entry in entries:
        ours = entry["source"].startswith(("ours", "Figure 5"))
        fails = entry["id"] in ("no-in_span-multiplies-EGO", "sft-1s-collapses-1", "sft-1s-collapses-2")
        assert entry["paper_verdict"] == ("NOT RUN" if ours else "FAIL-AS-PAPER" if fails else "MATCH"), (
            entry["id"]
        )
        assert entry["verdict"] in claims.VERDICTS and entry["reason"] and entry["rule"]
    assert (
        by_id["rl-above-sft-WEB"]["paper"] == 15.7
        and by_id["plain-generation-is-affordable"]["paper"] == 1.17
    )
    assert by_id["rl-interval-matters-less-EGO"]["paper"] == 0.1
    assert len(by_id["rl-above-sft-WEB"]["kit"]) == 3 and "3 seeds" in by_id["rl-above-sft-WEB"]["reason"]


def test_verdicts_of_the_fake_run(results):
    found = {entry["id"]: entry["verdict"] for entry in claims.judge_all(results)}
    assert found["rl-above-sft-WEB"] in ("MATCH", "TREND") and found["threshold-wins-ego"] == "DIFFERS"
    assert found["no-in_span-multiplies-EGO"] == "FAIL-AS-PAPER" == found["sft-1s-collapses-1"]
    assert found["dynamics-dip-pauc"] == "TREND"


def test_lucky_guesses_break_the_latency_claim(results, tmp_path):
    def edit(row):
        if (
            row["experiment"] == "T2"
            and row["model"] == "rl"
            and row["domain"] == "WEB"
            and row["question_id"] < "WEB-2"
        ):
            row["lucky"] = 1
        return row

    found = change(results, tmp_path, "per_video.csv", edit)
    assert (
        found["rl-speaks-sooner-WEB"]["verdict"] == "DIFFERS"
        and "lucky" in found["rl-speaks-sooner-WEB"]["reason"]
    )
    assert found["rl-speaks-sooner-EGO"]["verdict"] == "TREND"


def test_few_multiple_replies_give_no_duplicate_figure(results, tmp_path):
    def edit(row):
        return row.update(multi_spans=9 if row["domain"] == "TV" else 20) or row

    found = change(results, tmp_path, "table2.csv", edit)
    assert found["duplicates-stay-low-TV"]["verdict"] == "NOT RUN"
    assert "fewer than 10" in found["duplicates-stay-low-TV"]["reason"]
    assert found["duplicates-stay-low-WEB"]["verdict"] in ("MATCH", "TREND")


def test_a_missing_table_is_not_run(results, tmp_path):
    found = change(results, tmp_path, "table6.csv", lambda row: None)
    assert found["no-rep-duplicates-WEB"]["verdict"] == "NOT RUN" != found["rl-above-sft-WEB"]["verdict"]
    assert all(entry["verdict"] == "NOT RUN" for entry in claims.judge_all(tmp_path / "nothing"))


def test_a_ratio_to_nothing_is_not_run_and_says_so(results, tmp_path):
    """A model that says nothing at all on a domain: no number, and no word of damaged data (the first run of tiny had this)."""
    def silent(row):
        if (row["model"], row["domain"]) == ("rl", "WEB"):
            row["reply_turns"] = 0.0
        return row

    found = change(results, tmp_path, "table6.csv", silent)["no-in_span-multiplies-WEB"]
    assert (found["verdict"], found["reason"]) == ("NOT RUN", "no ratio: what it is divided by is 0 in this run")


def test_a_fail_where_the_paper_has_a_number(results, tmp_path):
    found = change(
        results,
        tmp_path,
        "table7.csv",
        lambda row: (
            row.update(
                status="FAIL" if row["sft_interval"] == "2.0" and row["domain"] == "EGO" else row["status"]
            )
            or row
        ),
    )
    assert found["test-1s-no-worse-ego-2"]["verdict"] == "DIFFERS"


def test_another_failure_is_not_the_papers(results, tmp_path):
    found = change(
        results,
        tmp_path,
        "table7.csv",
        lambda row: (
            row.update(**({"status": "FAIL", "reply_turns": 30} if row["sft_interval"] == "1.0" else {}))
            or row
        ),
    )
    assert found["sft-1s-collapses-1"]["verdict"] == "DIFFERS"


def test_one_seed_says_what_its_interval_covers(tmp_path):
    found = {entry["id"]: entry for entry in claims.judge_all(fake_results.make(tmp_path))}
    assert "one seed: interval over videos only" in found["rl-above-sft-WEB"]["reason"]
    assert found["plain-generation-is-affordable"]["interval"] is None
    low, high = found["rl-above-sft-WEB"]["interval"]
    assert low < found["rl-above-sft-WEB"]["kit"][0] < high


def test_smoke_is_not_judged(tmp_path):
    for entry in claims.judge_all(fake_results.make(tmp_path, (1,), "smoke")):
        assert entry["verdict"] == "NOT RUN" and entry["kit"] == [] and entry["interval"] is None


def test_a_difference_that_is_not_shown_differs():
    kit = {"failed": False, "guard": True, "rule": True, "held": 0.9, "value": 1.0}
    assert claims.verdict({"tolerance": 5}, kit, None)[0] == "DIFFERS"
    assert claims.verdict({"tolerance": 5}, {**kit, "held": 0.99}, None)[0] == "TREND"
    paper = {"value": 2.0, "failed": False}
    assert claims.verdict({"tolerance": 5}, {**kit, "held": 0.99}, paper)[0] == "MATCH"
    assert claims.verdict({"tolerance": 0.5}, {**kit, "held": 0.99}, paper)[0] == "TREND"
    assert claims.verdict({"tolerance": 5}, {**kit, "rule": False, "value": float("inf")}, None) == (
        "DIFFERS", "the rule does not hold: a seed has no number for it (FAIL, or no growth that the end could be measured by)")  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["__import__('os')", "open", "unknown > 1", "t9('pauc')", "t2(*a)", "1 +", "t2 > 1"],
)
def test_a_rule_with_a_mistake_is_named(text):
    with pytest.raises(UserError):
        claims.evaluate(text, {"t2": lambda *a: 0.0})


def test_expressions_work_on_arrays():
    assert claims.evaluate(
        "(value > 1) & (abs(-t(3)) <= 3)", {"t": float}, value=np.array([0, 2])
    ).tolist() == [False, True]


def test_bootstrap_matches_a_plain_loop():
    rng = np.random.default_rng(3)
    rows = [
        {
            "experiment": "T2",
            "model": m,
            "sft_interval": "",
            "rl_interval": "",
            "test_interval": "",
            "domain": "WEB",
            "seed": s,
            "question_id": str(q),
            "spans": 2,
            "pauc_sum": rng.random() + (m == "rl"),
        }
        for m in ("sft", "rl")
        for s in (1, 2)
        for q in range(30)
    ]
    sampler = bootstrap.Resampler(rows)
    many = {}
    for m in ("sft", "rl"):
        values = {
            str(s): 100 * np.mean([r["pauc_sum"] / 2 for r in rows if (r["model"], r["seed"]) == (m, s)])
            for s in (1, 2)
        }
        assert values["1"] == pytest.approx(sampler.per_seed(2, "pauc", {"model": m, "domain": "WEB"}, "1"))
        many[m], kind = sampler.cell(2, "pauc", {"model": m, "domain": "WEB"}, values)
        assert kind == "videos" and many[m].shape == (10_000,)
        assert many[m].mean() == pytest.approx(np.mean(list(values.values())), abs=0.3)
    table = np.array(
        [
            [[r["pauc_sum"] for r in rows if (r["model"], r["seed"]) == (m, s)] for s in (1, 2)]
            for m in ("sft", "rl")
        ]
    )
    loop = []
    for _ in range(4000):
        seeds, videos = rng.integers(2, size=2), rng.integers(30, size=30)
        loop.append(50 * (table[1][seeds][:, videos].mean() - table[0][seeds][:, videos].mean()))
    difference = many["rl"] - many["sft"]
    assert np.percentile(difference, [2.5, 97.5]) == pytest.approx(np.percentile(loop, [2.5, 97.5]), abs=0.4)


def test_all_claims_take_seconds(results):
    started = time.monotonic()
    claims.judge_all(results)
    assert time.monotonic() - started < 20


def test_stages_find_a_dip_growth_and_plateau():
    steps = list(range(0, 500, 25))
    curve = [40 - 5 * s / 150 if s < 150 else 35 + 20 * (s - 150) / 250 if s < 400 else 55 for s in steps]
    found = stages.stages(steps, curve)
    assert (found["first"], found["second"]) == (150, 400)
    assert (
        found["dip"] == pytest.approx(5) and found["growth"] == pytest.approx(20) and found["plateau"] < 0.01
    )
    with pytest.raises(ValueError, match="six"):
        stages.stages([0, 1, 2], [1, 2, 3])


def test_paper_tables_are_read_as_a_source():
    source = claims.Source(Run(claims.PAPER))
    assert source.values(
        7, "pauc", {"sft_interval": 2, "rl_interval": 1, "test_interval": 1, "domain": "EGO"}
    )[0] == {"": 34.7}
    value, failed, _ = source.values(6, "pauc", {"model": "rl-no_in_span", "domain": "EGO"})
    assert failed and np.isnan(value[""])


def test_what_differs_is_explained_by_the_runs_own_experiments(results, tmp_path):
    """Numbers of other tables and of training logs; where the experiment was not run nothing is said."""
    def worse(row):
        if (row["model"], row["domain"]) == ("rl-no_in_span", "WEB"):
            row["reply_turns"] = 0.1
        return row

    name = "no-in_span-multiplies-WEB"
    found = change(results, tmp_path / "a", "table6.csv", worse)[name]
    assert found["verdict"] == "DIFFERS" and found["explained"] == ""  # no training log there
    write_json(tmp_path / "b" / "manifest.json", {"seeds": [1, 2], "profile": "study", "settings": {"meaningful": True}})
    for seed, share in ((1, 0.1), (2, 0.3)):
        rows = [{"step": k} | {f"share_{term}": share for term in ("pauc", "rep", "in_span", "pfx")} for k in range(3)]
        write_csv(tmp_path / "b" / f"train_rl_seed{seed}.csv", rows)
    found = change(results, tmp_path / "b", "table6.csv", worse)[name]
    assert "r_in_span brings 20 percent" in found["explained"] and "{" not in found["explained"]
    held = claims.judge_all(results)
    assert not any(entry["explained"] for entry in held if entry["verdict"] != "DIFFERS")


def test_whatever_differs_in_the_committed_run_is_explained():
    assert [entry["id"] for entry in claims.judge_all(claims.STUDY) if entry["verdict"] == "DIFFERS" and not entry["explained"]] == []


def test_explanations_read_parts_of_a_training_and_the_baselines_thresholds(tmp_path):
    write_json(tmp_path / "manifest.json", {"seeds": [1], "profile": "study"})
    write_csv(tmp_path / "train_rl_seed1.csv", [{"step": k, "reply_turns": k} for k in range(8)])
    write_csv(tmp_path / "threshold_sweep.csv", [{"seed": 1, "domain": domain, "threshold": at, "pauc": pauc, "chosen": int(at == 0.2)}
                                                 for domain, paucs in (("WEB", (5, 20, 30)), ("EGO", (9, 7, ""))) for at, pauc in zip((0.1, 0.2, 0.3), paucs)])  # fmt: skip
    source = claims.Source(claims.Run(tmp_path))
    assert [source.values("log", "reply_turns", {"model": "rl", "quarter": k})[0]["1"] for k in range(5)] == [3.5, 0.5, 2.5, 4.5, 6.5]
    assert source.values("log", "reply_turns", {"model": "rl", "steps": 3})[0]["1"] == 1
    assert [source.values("sweep", "pauc", {"domain": "WEB", one: 1})[0]["1"] for one in ("chosen", "best")] == [20, 30]
    assert [source.values("sweep", "threshold", {"domain": "EGO", one: 1})[0]["1"] for one in ("chosen", "best")] == [0.2, 0.1]


def test_explanations_tell_seeds_apart_and_compare_what_two_models_answer(tmp_path, monkeypatch):
    """Latency on shared questions by hand: seed 1 (2 + 4) / 3 spans, the unshared 9 s left out; seed 2 has nothing shared."""
    videos = [(1, "rl", "a", 2, 1), (1, "rl", "b", 4, 2), (1, "rl", "c", 9, 1), (1, "sft", "a", 5, 1), (1, "sft", "b", 6, 1), (1, "sft", "c", 0, 0),
              (2, "rl", "a", 1, 1), (2, "sft", "a", 0, 0)]  # fmt: skip
    write_csv(tmp_path / "per_video.csv", [{"experiment": "T2", "seed": seed, "model": model, "domain": "WEB", "question_id": name, "latency_sum": total,
                                            "latency_n": n} for seed, model, name, total, n in videos])  # fmt: skip
    write_csv(tmp_path / "figure5.csv", [{"seed": seed, "domain": "WEB", "step": step, "pauc": seed + step} for seed in (1, 2) for step in (0, 10)])
    write_csv(tmp_path / "offline_share.csv", [{"model": "sft", "seed": seed, "offline_share": 0.2, "task": task, "accuracy": 10 * seed + k}
                                       for seed in (1, 2) for k, task in enumerate(("caption", "attribute_qa"))])  # fmt: skip
    monkeypatch.setattr(claims, "RESULTS", tmp_path)
    source = claims.Source(claims.Run(tmp_path))
    assert source.values("both", "latency_s", {"model": "rl", "other": "sft", "domain": "WEB"})[0] == {"1": 2.0}
    with pytest.raises(claims.NotRun):
        source.values("both", "latency_s", {"model": "rl", "other": "threshold", "domain": "WEB"})
    words = {"words": "{} then {:.1f}, {}", "values": [{"each": 'at("pauc", step=10, domain="WEB")'}, 'at("pauc", step=0, domain="WEB")',
                                                     {"each": 'share("accuracy", model="sft", offline_share=0.2)'}]}  # fmt: skip
    write_json(tmp_path / "manifest.json", {"seeds": [1, 2, 3]})
    assert claims.explained({"because": [words]}, claims.Source(claims.Run(tmp_path))) == "11, 12, - then 1.5, 10.5, 20.5"  # lists line up
    assert source.values("both", "questions", {"model": "rl", "other": "sft", "domain": "WEB"})[0] == {"1": 2}
    assert claims.explained({"because": [words]}, source) == "11, 12 then 1.5, 10.5, 20.5" and claims.explained({"because": [words]}, source, "beside") == ""


def test_targets_are_judged_like_claims_and_each_miss_is_explained():
    found = claims.judge_all(claims.STUDY, claims.TARGETS)
    assert len(found) == 12 and all(entry["verdict"] != "DIFFERS" or entry["explained"] for entry in found)
    assert not {entry["id"] for entry in found} & {entry["id"] for entry in claims.judge_all(claims.STUDY)}


def test_explanations_decide_nothing(tmp_path):
    text = (claims.FIGURES / "claims.yaml").read_text()
    path = tmp_path / "claims.yaml"
    path.write_text(text.replace("Decisions a span", "Something else"))
    assert claims.rules_hash(path) == claims.rules_hash()
    path.write_text(text.replace("rule: value > 0", "rule: value > 1", 1))
    assert claims.rules_hash(path) != claims.rules_hash()


def test_on_real_videos_nothing_is_claimed_of_onsets(tmp_path):
    """Also of a model that FAILs: without an onset there is no latency that could differ."""
    results = fake_results.make(tmp_path)
    write_json(results / "dataset.json", {"best_blind_score": {}})
    found = {entry["id"]: entry for entry in claims.judge_all(results)}
    assert {found[f"rl-speaks-sooner-{domain}"]["verdict"] for domain in ("WEB", "EGO", "TV", "VAD")} == {"NOT RUN"}
    assert "no hidden onsets" in found["rl-speaks-sooner-WEB"]["reason"] and found["rl-above-sft-WEB"]["verdict"] != "NOT RUN"
    assert "Latency and lucky share: NOT RUN" in " ".join(scripts()["tab2_proactive"].draw.table(results).notes)
