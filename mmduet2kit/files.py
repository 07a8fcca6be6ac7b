"""Reading and writing small files: every write goes to a temporary name first, so that a kill leaves no half file."""

import csv
import hashlib
import io
import json
import os
import shutil
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

SAMPLED = 262_144  # bytes: files up to twice as large, as subtitles are, are read whole
STAMP = "made_for.txt"


@contextmanager
def halfway(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`, to be written and then renamed to it; after an error it goes, and `path` stays as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomic(path: Path | str, data: str | bytes | Iterable[bytes]) -> Path:
    """Write `data` (or its parts, one after another) to `path` through a temporary file in the same folder, then rename it into place."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is no ordinary file, and is not written over: give another name.")
    with halfway(path) as partial, open(partial, "wb") as into:
        into.writelines([data.encode(errors="backslashreplace")] if isinstance(data, str) else [data] if isinstance(data, bytes) else data)
    return path


def write_json(path: Path | str, value) -> Path:
    """Write `value` as indented JSON with a final newline."""
    return write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def _text(path: Path | str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: check the name, or run the stage that makes it.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8, or make it anew.") from None


def _parsed(text: str, where: str):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not valid JSON ({error}): mend it or make it anew.") from None


def read_json(path: Path | str):
    """Read a JSON file; a missing or broken one raises UserError."""
    return _parsed(_text(path), str(path))


def write_jsonl(path: Path | str, rows: Iterable[Mapping]) -> Path:
    """Write one JSON object a line."""
    return write_atomic(path, ((json.dumps(row, ensure_ascii=False) + "\n").encode(errors="backslashreplace") for row in rows))


def read_jsonl(path: Path | str) -> list[dict]:
    """Read one JSON object a line; a broken line raises UserError naming it."""
    lines = enumerate(_text(path).split("\n"), start=1)  # JSON may hold other ends of lines
    return [_parsed(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def each_row(path: Path | str) -> Iterator[dict]:
    """The rows of a JSONL file, one after another: memory holds one."""
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _parsed(line, f"{path}, line {number}")


class Lines(Sequence):
    """The rows of a JSONL file, each read when it is asked for, as `make(row)`: in memory there is only where they begin."""

    def __init__(self, path: Path | str, make: Callable = dict):
        self.path, self.make, at = Path(path), make, 0
        if not self.path.is_file():
            raise UserError(f"{path} does not exist: check the name, or run the stage that makes it.")
        starts = array("q")
        with open(self.path, "rb") as lines:
            for line in lines:
                if line.strip():
                    starts.append(at)
                at += len(line)
        self.starts = starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, which):
        if isinstance(which, slice):
            return [self[k] for k in range(*which.indices(len(self)))]
        with open(self.path, "rb") as lines:
            lines.seek(self.starts[which])
            line = lines.readline()
        return self.make(_parsed(line.decode(errors="replace"), f"{self.path}, row {which + 1}"))


def write_csv(path: Path | str, rows: Sequence[Mapping], columns: Sequence[str] | None = None) -> Path:
    """Write rows as CSV; `columns` fixes the header (needed when there are no rows)."""
    columns = list(columns or rows[0].keys())
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n", extrasaction="raise")
    writer.writeheader()
    writer.writerows(rows)
    return write_atomic(path, out.getvalue())


def read_csv(path: Path | str) -> list[dict[str, str]]:
    """Read a CSV file with a header; values stay text. A missing or broken file raises UserError."""
    try:
        return list(csv.DictReader(io.StringIO(_text(path), newline="")))
    except csv.Error as error:
        raise UserError(f"{path} is not a valid CSV file ({error}): make it anew.") from None


def made_for(folder: Path | str, key: str) -> Path:
    """Empty `folder` unless it was made for the same `key` (a digest of all that it is made from); returns it.

    So a killed job goes on where it stopped, and one whose profile or input changed begins anew instead of mixing the two.
    A folder with something in it and no stamp is not the kit's: UserError.
    """
    folder = Path(folder)
    if not is_made_for(folder, key):
        if folder.is_dir() and not (folder / STAMP).exists() and any(not p.name.startswith(".") for p in folder.iterdir()):
            raise UserError(f"{folder} was not made by this command: move it away, it would be emptied.")
        shutil.rmtree(folder, ignore_errors=True)
        write_atomic(folder / STAMP, key)
    return folder


def is_made_for(folder: Path, key: str) -> bool:
    """Was the folder made for this key (see `made_for`)?"""
    return (folder / STAMP).is_file() and (folder / STAMP).read_bytes() == key.encode()


def sha256_file(path: Path | str) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(path: Path | str) -> str:
    """Tells a file from another without reading all of a large one: its size, and SAMPLED bytes at its begin, middle and end.

    A film that was cut or encoded anew differs there (MP4's index lies at one of its ends). "" for a file that cannot be read.
    """
    try:
        with open(path, "rb") as handle:
            size = handle.seek(0, os.SEEK_END)
            parts = [handle.read(SAMPLED) for at in (0, size // 2, max(0, size - SAMPLED)) if handle.seek(at) == at]
    except OSError:
        return ""
    return f"{size}-{hashlib.sha256(b''.join(parts)).hexdigest()}"


def sha256_text(text: str) -> str:
    """Hex digest of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()
