"""A results folder with invented numbers, for tests of what is drawn from results; never data."""

from pathlib import Path

import numpy as np
from matplotlib.image import imsave

from mmduet2kit.files import write_csv, write_json
from mmduet2kit.profile import load_profile

DOMAINS = {"WEB": 48, "EGO": 24, "TV": 24, "VAD": 20}
LEVEL = {
    "base": 0.20,
    "sft": 0.38,
    "threshold": 0.40,
    "rl": 0.55,
    "rl-no_rep": 0.57,
    "rl-no_pfx": 0.50,
    "rl-no_in_span": 0.60,
    "rl-no_pauc": 0.30,
    "sft2s-rl1s": 0.5,
    "sft2s-rl2s": 0.52,
}


def make(run_dir: Path, seeds=(1,), profile="tiny") -> Path:
    """Write a whole run into `run_dir`; returns its results folder."""
    results, rng = run_dir / "results", np.random.default_rng(0)
    videos = []

    def measured(experiment, model, domain, seed, level=None, silent=False, keys=None):
        rows = []
        for k in range(DOMAINS[domain]):
            spans = 3
            pauc = float(
                np.clip(spans * (LEVEL[model] if level is None else level) + rng.normal(0, 0.3), 0.1, 2.9)
            )
            turns = 0 if silent else int(rng.integers(2, 5)) + (8 if "in_span" in model else 0)
            heavy = model in ("threshold", "rl-no_rep")
            rows.append(
                {
                    "experiment": experiment,
                    "model": model,
                    **{f"{part}_interval": "" for part in ("sft", "rl", "test")},
                    **(keys or {}),
                    "domain": domain,
                    "seed": seed,
                    "question_id": f"{domain}-{k}",
                    "spans": spans,
                    "pauc_sum": round(pauc, 4),
                    "dup_spans": 0 if silent else 2,
                    "dup_sum": 0 if silent else 1.4 if heavy else round(float(rng.random() * 0.1), 3),
                    "multi_spans": 0 if silent else 1,
                    "reply_turns": turns,
                    "correct": 0 if silent else 2,
                    "lucky": 0,
                    "latency_sum": 2 * (4.0 - 3 * LEVEL[model] + rng.normal(0, 0.1)),
                    "latency_n": 0 if silent else 2,
                }
            )
        videos.extend(rows)
        total = {
            key: sum(row[key] for row in rows) for key in rows[0] if isinstance(rows[0][key], (int, float))
        }
        return {
            "pauc": 100 * total["pauc_sum"] / total["spans"],
            "duplicate": 100 * total["dup_sum"] / total["dup_spans"] if total["dup_spans"] else "",
            "reply_turns": total["reply_turns"] / len(rows),
            "multi_spans": total["multi_spans"],
            "latency_s": total["latency_sum"] / total["latency_n"] if total["latency_n"] else "",
        }

    t2 = [
        {
            "model": m,
            "domain": d,
            "seed": s,
            **measured("T2", m, d, s),
            "quantum_s": 1,
            "lucky_share": 0.01,
            "correct": 90,
            "spans": 3 * DOMAINS[d],
            "status": "ok",
        }
        for m in ("base", "sft", "threshold", "rl")
        for d in DOMAINS
        for s in seeds
    ]
    write_csv(
        results / "table2.csv",
        t2,
        "model domain seed pauc duplicate reply_turns latency_s quantum_s lucky_share "
        "correct spans multi_spans status".split(),
    )
    t6 = []
    for m in ("rl", "rl-no_rep", "rl-no_pfx", "rl-no_in_span", "rl-no_pauc"):
        for d in ("WEB", "EGO"):
            for s in seeds:
                if (m, d) == ("rl-no_in_span", "EGO"):
                    t6.append({"model": m, "domain": d, "seed": s, "status": "FAIL"})
                else:
                    row = measured("T6", m, d, s)
                    t6.append(
                        {
                            "model": m,
                            "domain": d,
                            "seed": s,
                            "status": "ok",
                            **{k: row[k] for k in ("pauc", "duplicate", "reply_turns")},
                        }
                    )
    write_csv(results / "table6.csv", t6, "model domain seed pauc duplicate reply_turns status".split())
    t7 = []
    for s in seeds:
        for test in (1.0, 2.0):
            for a, b, d in (
                (1.0, "", "WEB"),
                (2.0, 1.0, "WEB"),
                (2.0, 2.0, "WEB"),
                (2.0, 1.0, "EGO"),
                (2.0, 2.0, "EGO"),
            ):
                name = f"sft{a:g}s" + (f"-rl{b:g}s" if b else "")
                key = {"sft_interval": a, "rl_interval": b, "test_interval": test, "domain": d, "seed": s}
                if not b:
                    t7.append({**key, "reply_turns": 0.0, "status": "ok"})
                    continue
                level = LEVEL[name] - (0.08 if test == 2 else 0)
                keys = {"model": "", "sft_interval": a, "rl_interval": b, "test_interval": test}
                row = measured("T7", name, d, s, level, keys=keys)
                t7.append(
                    {**key, **{k: row[k] for k in ("pauc", "duplicate", "reply_turns")}, "status": "ok"}
                )
    write_csv(
        results / "table7.csv",
        t7,
        "sft_interval rl_interval test_interval domain seed pauc duplicate reply_turns status".split(),
    )
    write_csv(results / "per_video.csv", videos)
    write_csv(
        results / "table1.csv",
        [
            {
                "type": "Web Videos",
                "videos": 576,
                "video_length_s": 92.1,
                "questions": 2,
                "answer_turns": 6.1,
                "source": "FAKE",
            },
            {
                "type": "Ego Centric",
                "videos": 56,
                "video_length_s": 82.0,
                "questions": 2,
                "answer_turns": 5.2,
                "source": "FAKE",
            },
        ],
    )
    write_csv(
        results / "table3.csv",
        [
            {
                "model": m,
                "seed": s,
                "reply_turns": 3.1,
                "reply_turns_std": 1.2,
                "wall_s": w + s,
                "videos": 64,
                "decisions": 1000,
                "status": "ok",
            }
            for m, w in (("threshold", 100), ("rl", 115))
            for s in seeds
        ],
    )
    write_csv(
        results / "table4.csv",
        [
            {"model": m, "seed": s, "task": t, "accuracy": a + s, "n": 200, "status": "ok"}
            for m, a in (("base", 80), ("sft", 80.5), ("rl", 81))
            for t in ("caption", "attribute_qa")
            for s in seeds
        ],
    )
    write_csv(
        results / "table5.csv",
        [
            {
                "model": m,
                "seed": s,
                "accuracy_first_reply": a,
                "accuracy_time": a - 2,
                "accuracy_time_content": a - 5,
                "n": 50,
                "status": "ok",
            }
            for m, a in (("threshold", 30), ("sft", 22), ("rl", 60))
            for s in seeds
        ],
    )
    curve = [40, 37, 36, 40, 46, 52, 56, 57, 57]
    write_csv(
        results / "figure5.csv",
        [
            {
                "seed": s,
                "step": 15 * k,
                "domain": d,
                "pauc": v - (8 if d == "EGO" else 0) + 0.3 * s,
                "duplicate": 2 + k,
                "reply_turns": v / 15,
            }
            for s in seeds
            for d in ("WEB", "EGO")
            for k, v in enumerate(curve)
        ],
    )
    write_csv(
        results / "threshold_sweep.csv",
        [
            {
                "seed": s,
                "domain": d,
                "threshold": t / 20,
                "pauc": 45 - 60 * (t / 20 - 0.4) ** 2 - (d == "EGO") * 5,
                "duplicate": 90 - 4 * t,
                "reply_turns": 12 - t / 2,
                "chosen": int(t == 8),
            }
            for s in seeds
            for d in ("WEB", "EGO")
            for t in range(1, 20)
        ],
    )
    write_csv(
        results / "variants.csv",
        [
            {"variant": variant, "group": g, "rollout": k, "replies": 2, "total": total, "weighted_pauc": total,
             **{f"weighted_{term}": 0.0 for term in ("rep", "in_span", "pfx")}}
            for variant, totals in (("paper", ((1, 2, 3, 6), (1, 1, 1, 1))), ("upstream", ((2, 1, 3, 6), (0, 0, 0, 4))))
            for g, group in enumerate(totals)
            for k, total in enumerate(group)
        ],
    )  # fmt: skip
    write_csv(
        results / "formats.csv",
        [
            {"chat_form": form, "domain": domain, "seed": s, "pauc": 40 + s, "duplicate": 5.0, "reply_turns": 2.0,
             "tokens_per_min": 600.0 / (1 + (form == "frames")), "ms_per_turn": 30.0 if domain == "WEB" else "",
             "ms_per_turn_ahead": 12.5 if domain == "WEB" else "", "status": "ok"}
            for form in ("turns", "frames") for domain in ("WEB", "EGO") for s in seeds
        ],
    )  # fmt: skip
    write_csv(
        results / "silence.csv",
        [
            {"sft_interval": interval, "no_reply_weight": weight, "silent_turns": 300 * (3 - interval), "answer_turns": 100,
             "test_interval": 1.0, "domain": "WEB", "seed": s, "pauc": 50 - 20 * weight, "reply_turns": 2.0 / weight, "status": "ok"}
            for interval in (1.0, 2.0) for weight in (0.25, 0.5, 1.0) for s in seeds
        ],
    )  # fmt: skip
    frames = []
    for k in range(20):
        image = np.full((56, 56, 3), 30 + 8 * k, np.uint8)
        image[10:30, (2 * k) : (2 * k + 16)] = (220, 60 + 6 * k, 40)
        (results / "frames").mkdir(exist_ok=True)
        imsave(results / "frames" / f"{k}.png", image)
        frames.append({"time": 2.0 * k, "image": f"frames/{k}.png"})
    answers = [
        {"start": 2.0, "end": 12.0, "text": "A red square moves to the right.", "question": 0},
        {
            "start": 15.0,
            "end": 24.0,
            "text": "A blue circle grows, then a green star and a yellow ring come into the "
            "picture from the left and turn around each other.",
            "question": 0,
        },
        {"start": 27.0, "end": 30.0, "text": "A star.", "question": 0},
    ]
    write_json(
        results / "figure1.json",
        {
            "title": "fake",
            "types": {
                "1QnA": {
                    "duration": 40.0,
                    "frames": frames,
                    "questions": [{"time": 2.0, "text": "What is moving?"}],
                    "replies": answers,
                    "immediate": [],
                },
                "nQnA": {
                    "duration": 40.0,
                    "frames": frames,
                    "questions": [
                        {"time": 2.0, "text": "What is moving?"},
                        {"time": 25.0, "text": "Which shapes are there?"},
                    ],
                    "replies": answers,
                    "immediate": [{"time": 25.0, "text": "A square and a circle."}],
                },
            },
        },
    )
    pads = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
    write_json(
        results / "figure2.json",
        {
            "segments": [
                {
                    "role": "system",
                    "text": "<|im_start|>system\nYou are a helpful assistant. Your task is to answer "
                    "questions based on continuously incoming video frames. If the information in it "
                    'cannot answer the question, output "NO REPLY".<|im_end|>\n',
                },
                {"role": "user", "text": f"<|im_start|>user\n{pads}{pads}What is moving?<|im_end|>\n"},
                {"role": "assistant", "text": "<|im_start|>assistant\nNO REPLY<|im_end|>\n"},
                {"role": "user", "text": f"<|im_start|>user\n{pads}{pads}<|im_end|>\n"},
                {
                    "role": "assistant",
                    "text": "<|im_start|>assistant\nA red square moves to the right.<|im_end|>\n",
                },
            ]
        },
    )
    write_json(
        results / "figure3.json",
        {
            "frames": [{**f, "in_scene": 8 <= f["time"] <= 18} for f in frames[:16]],
            "caption": "A red square moves to the right.",
            "span": [8.0, 19.0],
            "onset": 11.5,
        },
    )
    write_json(
        results / "before_after.json",
        {
            "question": "What moves?",
            "interval": 1.0,
            "decisions": [float(t) for t in range(1, 17)],
            "frames": frames[:16],
            "gold": [
                {"start": 2.0, "end": 6.0, "text": "A red square moves.", "onset": 3.2},
                {"start": 8.0, "end": 12.0, "text": "A blue circle falls.", "onset": None},
            ],
            "models": {
                "sft": {"replies": [{"time": 6.0, "text": "A red square moves.", "right": True}], "first_right": [[3.2, 6.0]]},
                "rl": {"replies": [{"time": 4.0, "text": "A red square moves.", "right": True},
                                   {"time": 9.0, "text": "A square. " * 12, "right": False}], "first_right": [[3.2, 4.0]]},
            },
        },
    )  # fmt: skip
    write_json(results / "dataset.json", {"fake": True})
    attempt = {
        "started": "2026-01-01T00:00:00+00:00",
        "minutes": 4.2,
        "peak_gb": 1.1,
        "exit": 0,
        "reason": "",
        "status": "done",
    }
    write_json(
        run_dir / "manifest.json",
        {
            "kit": "0.1.0",
            "commit": "fake",
            "dirty": True,
            "profile": profile,
            "profile_hash": "fake",
            "settings": load_profile(profile).model_dump(mode="json"),
            "python": "3.11",
            "platform": "FAKE <platform>",
            "cpu": "fake",
            "cores": 2,
            "gpu": [],
            "versions": {"numpy": "0"},
            "seeds": list(seeds),
            "stages": {
                "03_base_and_sft": [
                    {**attempt, "minutes": 1.0, "exit": 137, "status": "failed", "reason": "killed"},
                    attempt,
                ],
                "06_evaluation": [
                    {**attempt, "minutes": None, "peak_gb": None, "exit": None, "status": "terminated"}
                ],
            },
        },
    )
    return results
