"""A consumer's process may answer, fail, hang or not start."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from compress.verify.child import ChildFailed, run_child


def child(tmp_path, code, timeout_seconds=20.0, python=sys.executable):
    script = tmp_path / "script.py"
    script.write_text(f"import json, os, sys, time\n{code}\n")
    return run_child(python, script, {"x": 3}, timeout_seconds=timeout_seconds)


ANSWER = "json.dump({'y': json.load(open(sys.argv[1]))['x']}, open(sys.argv[2], 'w'))"


def test_it_is_asked_and_answers(tmp_path):
    assert child(tmp_path, f"print('noise'); {ANSWER}") == {"y": 3}


def test_what_it_imports_is_not_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "shadow.py").touch()
    with pytest.raises(ChildFailed, match="ModuleNotFoundError: No module named 'shadow'"):
        child(tmp_path, "import shadow")


def test_it_is_alone_where_we_are_one_of_many(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    names = "[n for n in os.environ if 'RANK' in n or 'MASTER' in n or n.startswith('TORCHEL')]"
    told = f"json.dump({{'names': {names}}}, open(sys.argv[2], 'w'))"
    assert child(tmp_path, told) == {"names": []}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('no such weights')", "ValueError: no such weights"),
        (
            "print('RuntimeError: the cause'); raise RuntimeError('failed. See root cause above.')",
            "RuntimeError: the cause",
        ),
        (
            "print('ValueError: no kernel. Reasons: ')\n"
            "print('(Worker) K1 cannot implement due to: 8 bits')\n"
            "print('(Worker) K2 cannot implement due to: no GPU')\n"
            "raise Exception('worker failed. See stack trace for root cause.')",
            "ValueError: no kernel. Reasons: K1 cannot implement due to: 8 bits; K2 cannot",
        ),
        ("sys.exit(7)", "exit code 7: it said nothing"),
        ("print('so'); os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("pass", "exit code 0: it said nothing"),
    ],
)
def test_its_failure_has_a_reason(tmp_path, code, message):
    with pytest.raises(ChildFailed, match=message):
        child(tmp_path, code)


def test_one_that_hangs_is_killed_with_what_it_started(tmp_path):
    told = repr(str(tmp_path / "pid"))
    code = (
        "import subprocess; p = subprocess.Popen(['sleep', '60'])\n"
        f"open({told}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    with pytest.raises(ChildFailed, match="no answer within 2 s"):
        child(tmp_path, code, timeout_seconds=2.0)
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(pid)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_interpreter_that_is_not_there(tmp_path):
    with pytest.raises(ChildFailed, match="cannot be run"):
        child(tmp_path, "", python=os.fspath(tmp_path / "python"))
