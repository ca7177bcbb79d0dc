"""core/cli.py: whatever ends a command, a person can read it."""

import errno
import io
import math
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, tiny_gpt
from safetensors import SafetensorError

import core.checkpoint
import core.progress
import sample
from core.cli import is_out_of_memory, printable, run_command
from core.draw import Sampling
from core.errors import UserError
from core.files import write_jsonl
from core.progress import Progress
from model import save
from sample import Writer, generate

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: not enough memory: you"
OTHER = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"
ENDS = [
    (UserError("the file is empty."), 2, "error: the file is empty."),
    (OSError(errno.ENOSPC, "No space left on device", "runs/x/M2"), 2, "runs/x/M2: No space left"),
    (PermissionError(errno.EACCES, "Permission denied", "runs"), 2, "runs: Permission denied"),
    (NotADirectoryError(errno.ENOTDIR, "Not a directory", "runs/x"), 2, "runs/x: Not a directory"),
    (OSError("no name"), 2, "error: a file: no name"),
    (MemoryError(), 2, "the memory is full; lower --slots"),
    (RuntimeError(ALLOCATOR), 2, "the memory is full; lower --slots"),
    (RuntimeError(OTHER), 2, "the memory is full; lower --slots"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), 2, "or add --recompute"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), 2, "or add --recompute"),
    (KeyboardInterrupt(), 130, "stopped; this goes on where it can: python train.py --run 'a b'"),
]


@pytest.mark.parametrize("error, code, says", ENDS, ids=lambda value: type(value).__name__)
def test_how_a_command_ends(monkeypatch, capsys, error, code, says):
    """Guards against: a traceback where a sentence would do, and one that does not help."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--run", "a b"])

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_command(main)
    errors = capsys.readouterr().err
    assert end.value.code == code and says in errors and "Traceback" not in errors


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ValueError("x"), KeyError("x")])
def test_faults_of_the_program_stay_visible(error):
    """Guards against: a defect that looks like a mistake of the user."""

    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run_command(main)
    assert not is_out_of_memory(error)


OBEYED = [
    ("plain \n\ttext", "plain \n\ttext"),
    ("ünï 😀 漢字", "ünï 😀 漢字"),
    ("a\x1b[2Jb", "a\\x1b[2Jb"),
    ("a\x00b\x07\x7f\x9b", "a\\x00b\\x07\\x7f\\x9b"),
    ("a\rb", "a\\rb"),
    ("\u202eabc\u2066", "\\u202eabc\\u2066"),
]


@pytest.mark.parametrize("text, shown", OBEYED)
def test_what_a_terminal_would_obey(text, shown):
    """Guards against: an answer that clears the screen, or that reads from right to left."""
    assert printable(text) == shown


def test_a_console_without_a_character():
    """Guards against: a run that ends as a console of Windows lacks an arrow."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from core.cli import run_command;"
    code += "run_command(lambda: print('a \\u2192 b'))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)],
        capture_output=True,
        env={"PYTHONIOENCODING": "cp1252", "PATH": ""},
    )
    assert done.returncode == 0 and done.stdout.split() == [b"a", b"\\u2192", b"b"]


def test_half_of_the_slots_where_the_memory_is_full(chat, monkeypatch, capsys):
    """Guards against: a stage lost for want of memory; other texts with fewer slots; no end."""
    model = tiny_gpt().double()
    prompts = [[5, 6, 7], [8, 9], [4]]
    sampling = Sampling(8, n=2, slots=6)
    keys = ["a", "b", "c"]
    expected = generate(Writer(model, chat), prompts, sampling, keys)
    real, tried = sample.write_all, []

    def full(writer, prompts, sampling, keys, **more):
        tried.append(sampling.slots)
        if sampling.slots > most:
            raise RuntimeError(ALLOCATOR)
        return real(writer, prompts, sampling, keys, **more)

    monkeypatch.setattr(sample, "write_all", full)
    most = 3
    assert generate(Writer(model, chat), prompts, sampling, keys) == expected
    assert tried == [6, 3] and "3 slots now" in capsys.readouterr().err
    most, tried = 1, []
    with pytest.raises(RuntimeError, match="not enough memory"):
        generate(Writer(model, chat), prompts, sampling, keys)
    assert tried == [6, 3]


def test_a_full_disk(tmp_path, monkeypatch):
    """Guards against: a half-written file under its own name, and a message without its name."""
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [{"a": 1}])

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda *args, **more: Full())
    with pytest.raises(UserError, match="rows.jsonl cannot be written .No space left on device."):
        write_jsonl(path, [{"a": 2}])
    monkeypatch.undo()
    assert path.read_text() == '{"a": 1}\n'


def test_weights_on_a_full_disk(tmp_path, model, monkeypatch):
    """Guards against: a traceback of the library that writes them; its words are its own."""

    def onto_full(*_, **more) -> None:
        raise SafetensorError("Error: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(core.checkpoint, "save_file", onto_full)
    monkeypatch.setattr(core.progress, "save_file", onto_full)
    with pytest.raises(UserError, match="M2 cannot be written .*No space left"):
        save(model, tmp_path / "M2")
    assert not (tmp_path / "M2").exists()
    progress = Progress(tmp_path / "training.safetensors")
    progress.written = -math.inf
    with pytest.raises(UserError, match="training.safetensors cannot be written .*No space left"):
        progress.keep(model, [torch.optim.AdamW(model.parameters())], [{"step": 0}], 9)


def test_a_folder_that_is_closed_to_us(tmp_path, model):
    """Guards against: the same where a file stands in the place of a folder."""
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match="M2 cannot be written .*[Nn]ot a directory"):
        save(model, tmp_path / "runs" / "M2")
    with pytest.raises(UserError, match="log.jsonl cannot be written .*(Not a directory|exists)"):
        write_jsonl(tmp_path / "runs" / "log.jsonl", [])
