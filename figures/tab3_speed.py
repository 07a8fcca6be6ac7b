"""Table 3: wall time of inference on WEB."""

import drawings


@drawings.table
def draw(run):
    """Table 3: reply turns and wall time, plain generation per decision against a threshold."""
    lines = [
        ("MMDuet; kit: threshold baseline", *[{"model": "threshold"}] * 2),
        ("MMDuet2 rl", *[{"model": "rl"}] * 2),
    ]
    columns = [
        ("reply turns", "reply_turns", {}, 1),
        ("deviation over videos", "reply_turns_std", {}, 1),
        ("wall time, s", "wall_s", {}, 1),
        ("videos", "videos", {}, 0),
        ("decisions", "decisions", {}, 0),
    ]
    return drawings.beside(
        run,
        "tab3_speed",
        "Table 3. Inference wall time on [WEB]",
        lines,
        columns,
        [
            "Paper: one H100, 64 samples. Kit: both models of the same size on this run's machine, the "
            "shortcut for silent turns off. Compare the ratio of the two lines, not the seconds."
        ],
    )


if __name__ == "__main__":
    drawings.main(draw)
