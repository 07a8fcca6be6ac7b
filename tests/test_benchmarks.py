"""The benchmarks of tests/benchmarks run as their docstrings say, and write what README and doctor read. No times are asserted."""

import json
import subprocess
import sys
from math import isfinite
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "benchmarks"
pytestmark = pytest.mark.all_only


def ran(name: str, out: Path, *words: str) -> dict:
    """The JSON that a benchmark prints; what it writes is the same."""
    words = (*words, "--out", str(out))
    ended = subprocess.run([sys.executable, HERE / name, *words], capture_output=True, text=True, timeout=1500)
    assert ended.returncode == 0, ended.stderr[-3000:]
    told = json.loads(ended.stdout[ended.stdout.index("{\n") :])
    assert json.loads(out.read_text()) == told
    return told


def numbers(value):
    """All numbers in it."""
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from numbers(one)
    if isinstance(value, int | float):
        yield value


def test_a_part_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(HERE)
    import told

    def fails():
        raise ValueError("no room")

    out = {"first": {"kept": 1}}
    with pytest.raises(SystemExit) as ended:
        told.run(out, "ab", {"a": ("first", fails), "b": ("second", lambda: {"seconds": 1})}, tmp_path / "out.json")
    assert ended.value.code == 1 and "no room" in capsys.readouterr().err
    assert json.loads((tmp_path / "out.json").read_text()) == {"first": {"kept": 1, "failed": "ValueError: no room"}, "second": {"seconds": 1}}


def test_what_a_turn_costs(tmp_path, capsys):
    """The stream against its alternatives: all parts there, the same work done by each way."""
    told = ran("engine.py", tmp_path / "engine.json")
    a, b, c, d, n = (told[part] for part in "abcdn")
    assert all(map(isfinite, numbers(told)))
    assert b["kit_alone"]["counts"]["decisions"] == b["kit_batched"]["counts"]["decisions"] == 64 * 17
    assert b["kit_batched"]["counts"]["forwards"] < b["kit_alone"]["counts"]["forwards"] / 10
    assert a["kit"]["cache_mb"] == a["released"]["cache_mb"] and "re-encoded" not in d["silent_turn_counts"]
    assert d["silent_turn_graphs_counts"]["replayed"] > 100 and b["kit_alone_graphs"]["counts"]["replayed"] > 2000
    assert n["every_margin_below_the_noise"] is True
    with capsys.disabled():
        print(f"\nturn 200: {a['full_over_kit_at_the_last_turn']} times faster than full re-encoding (target 20); 64 streams alone "
              f"{b['kit_alone']['times_faster_than_full_by_generate']} (bare forwards {b['kit_alone']['times_faster_than_full']}, compiled "
              f"{b['kit_alone_graphs']['times_faster_than_full']}; target 4), "
              f"batched {b['kit_batched']['times_faster_than_full']} (10); TRL's rollout {c['trl_over_kit']} (5)")  # fmt: skip


def test_the_gpu_check_runs_at_tiny_size(tmp_path):
    """What waits for a GPU is the same code, here with the tiny model; the smoke profile has its own tests."""
    told = ran("gpu_check.py", tmp_path / "gpu.json", "--size", "tiny", "--parts", "sgbd")
    assert {"sft", "grpo", "streams_64", "stream_alone"} < set(told)
    assert told["sft"]["padding_share"] == 0 and told["sft"]["mfu"] is None and told["sft"]["seconds_a_step"] > 0
    assert told["grpo"]["logprob_gap_max"] < 1e-4 and told["grpo"]["rollouts"] == 32 and told["grpo"]["replies_a_rollout"] == 5


def test_the_cost_model_says_what_is_counted_at_the_papers_size(tmp_path):
    """An SFT step of the 3B, kernel by kernel, without values; its memory is below what is planned, and most of that."""
    told = ran("paper_size.py", tmp_path / "size.json", "--parts", "s")["sft_step"]
    assert told["tokens"] > 9000 and 0.9 < told["tflop"] / told["tflop_by_the_cost_model"] < 1.1
    assert 0.6 < told["peak_gb"] / told["peak_gb_by_the_cost_model"] < 1


def test_building_and_scoring_at_scale(tmp_path):
    built = ran("pipeline_speed.py", tmp_path / "pipeline.json", "--videos", "8")
    assert built["all"]["videos"] == 8 and built["quarter"]["videos"] == 2 and built["all"]["tokens"] > 3 * built["quarter"]["tokens"]
    scored = ran("score_speed.py", tmp_path / "score.json")
    assert scored["questions"] == 1500 and scored["calls"] > 1500


def test_a_stream_without_end(tmp_path):
    if not Path("runs/smoke/models/rl-seed1/config.json").exists():
        pytest.skip("NOT RUN: it needs the smoke profile's models (./run_all.sh run --profile smoke)")
    told = ran("endless.py", tmp_path / "endless.json", "--profile", "smoke", "--limits", "512", "--turns", "100")
    limits = told["one_stream_without_end"]
    assert limits["none"]["re_encoded"] == 0 and limits["512"]["context_tokens_at_the_end"] <= 512 and told["flat"]["limit"] == 512
