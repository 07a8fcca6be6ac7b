"""Decoding many files: a ledger of what was left out, a cache of frames that a kill does not spoil."""

import math
import os

import numpy as np
import pytest

from mmduet2kit.corpus.video import FilterLedger, decode_many, frames
from mmduet2kit.errors import UserError

from test_video import counted, write


def test_ledger():
    ledger = FilterLedger(examples=2)
    assert [ledger.check("short", i, i > 2, "too long") for i in range(5)] == [False] * 3 + [True] * 2
    ledger.check("talk", "x", True)
    rows = ledger.rows()
    assert rows == [{"rule": "short", "in": 5, "out": 2, "examples": [{"item": "0", "reason": "too long"},
                                                                      {"item": "1", "reason": "too long"}]},
                    {"rule": "talk", "in": 1, "out": 1, "examples": []}]


class Bomb(str):
    """A path that ends the process it is sent to, as a file that crashes the decoder would."""

    def __reduce__(self):
        return os._exit, (1,)


@pytest.mark.parametrize("workers", [1, 2])
def test_decode_many(tmp_path, workers):
    paths = [write(tmp_path / f"{n}.mp4", counted(n)) for n in (10, 25)]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    paths.insert(1, tmp_path / "bad.mp4")
    out, ledger, seen = tmp_path / "cache", FilterLedger(), []
    index = decode_many(paths, 0.5, 4, out, workers, ledger, lambda *args: seen.append(args))
    assert list(index) == [str(paths[0]), str(paths[-1])] and seen[-1] == (len(paths), len(paths))
    row, = ledger.rows()
    assert (row["in"], row["out"]) == (len(paths), 2) and "bad.mp4" in row["examples"][0]["reason"]
    for n, path in ((10, paths[0]), (25, paths[-1])):
        cached = np.load(index[str(path)], mmap_mode="r")
        assert isinstance(cached, np.memmap) and cached.dtype == np.uint8 and len(cached) == math.ceil(n / 5)
        assert np.array_equal(cached, [image for _, image in frames(path, 0.5, max_tokens=4)])
    assert len(list(out.iterdir())) == 2  # nothing half done


def test_a_file_that_kills_its_process_is_named(tmp_path):
    with pytest.raises(UserError, match="bomb.mp4"):
        decode_many([Bomb(tmp_path / "bomb.mp4")], 1, 4, tmp_path / "cache", 2, FilterLedger())


def test_decode_many_takes_up_where_it_was_killed(tmp_path):
    paths = [write(tmp_path / f"{n}.mp4", counted(n)) for n in (10, 20, 30)]

    def decode(interval, progress=None):
        return decode_many(paths, interval, 4, tmp_path / "cache", 1, FilterLedger(), progress)

    def kill(done, total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode(1, kill)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    index = decode(1)
    assert len(before) == 2 and len(index) == 3
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert set(decode(2).values()).isdisjoint(index.values())
    write(paths[0], counted(50))  # another file of the same name
    assert len(np.load(decode(1)[str(paths[0])])) == 5
