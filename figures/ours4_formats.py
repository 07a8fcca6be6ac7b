"""Ours: the paper's Appendix A (its future work), silence without tokens, beside the paper's chat template."""

import drawings


@drawings.table
def draw(run):
    """Ours: a line a chat format; SFT models of the same steps."""
    run.need("formats.csv")
    lines = [
        ("NO REPLY as a turn of its own (section 4.1)", None, {"chat_form": "turns"}),
        ("one more frame or a reply (Appendix A)", None, {"chat_form": "frames"}),
    ]
    columns = [
        *((f"[{domain}] PAUC / duplicates", ("pauc", "duplicate"), {"domain": domain}, 1) for domain in ("WEB", "EGO")),
        *((f"[{domain}] {head}", key, {"domain": domain}, digits)
          for head, key, digits in (("replies", "reply_turns", 1), ("context tokens a minute", "tokens_per_min", 0))
          for domain in ("WEB", "EGO")),
        ("[WEB] ms a turn, silence decoded", "ms_per_turn", {"domain": "WEB"}, 1),
        ("[WEB] ms a turn, silence verified", "ms_per_turn_ahead", {"domain": "WEB"}, 1),
    ]  # fmt: skip
    return drawings.beside(
        run,
        "ours4_formats",
        "Ours. Two chat formats after SFT",
        lines,
        columns,
        [
            "Context tokens: what the cache holds at the end of a video, for each minute of it. Times: one stream at a "
            "time on this run's machine. The paper proposes the second format in Appendix A and reports nothing of it.",
            drawings.FEW,
        ],
        "formats.csv",
    )


if __name__ == "__main__":
    drawings.main(draw)
