"""Every console, in processes of their own: encodings, closed and broken streams, full disks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import configured, save_photos

from combicam.engine.runner import run_images

COMBICAM = f"{sys.executable} -c 'from combicam.cli import main; main()'"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fakes import FakeExplainer

    folder = tmp_path_factory.mktemp("console")
    save_photos(folder / "in", 9)
    run_images(configured(folder, output="σ-run"), FakeExplainer())
    return folder / "σ-run"


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command with bash; the exit code is that of its first failing part."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        check=False,
        env=os.environ | environment,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii", "utf-16", "utf-8"])
def test_every_encoding_of_the_console(encoding: str, run: Path) -> None:
    for arguments in ("--help", "status --help", f"status {run}", "status nowhere-σ"):
        done = shell(f"{COMBICAM} {arguments}", PYTHONIOENCODING=encoding)
        assert done.returncode == ("nowhere" in arguments), done.stderr
        assert b"Traceback" not in done.stderr and done.stdout + done.stderr


@pytest.mark.slow
def test_a_run_prints_its_summary_in_every_encoding(tmp_path: Path) -> None:
    save_photos(tmp_path / "σ", 3)
    command = f"{COMBICAM} run {tmp_path}/σ -o {tmp_path}/run-σ -m demo --layers last"
    done = shell(command, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert rb"run-\u03c3" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_services_close(closed: str, run: Path, tmp_path: Path) -> None:
    assert shell(f"{COMBICAM} status {run} --metrics /dev/null {closed}").returncode in (0, 1)
    script = tmp_path / "script.py"
    tests = Path(__file__).parent
    script.write_text(
        f"import sys; sys.path.insert(0, {str(tests)!r})\n"
        "from fakes import FakeExplainer, configured\nfrom pathlib import Path\n"
        "from combicam.engine.runner import run_images\n"
        f"config = configured(Path({str(run.parent)!r}), output={str(tmp_path / 'run')!r}, "
        "progress=True)\n"
        "assert run_images(config, FakeExplainer()).images == 9\n"
    )
    assert shell(f"{sys.executable} {script} {closed}").returncode == 0
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("arguments", ["--help", "status --help", "status RUN"])
def test_readers_that_go_away(arguments: str, run: Path) -> None:
    command = f"{COMBICAM} {arguments.replace('RUN', str(run))}"
    done = shell(f"{command} | true")
    assert done.returncode in (0, 141) and done.stderr == b""
    done = shell(f"(sleep 0.1; {command} 2>&1) | true")
    assert done.returncode in (0, 141)


def test_output_on_a_full_disk(run: Path) -> None:
    done = shell(f"{COMBICAM} status {run} > /dev/full")
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == [
        "combicam: error: the output: No space left on device; free space, or choose another output"
    ]
    done = shell(f"{COMBICAM} status nowhere 2> /dev/full")
    assert done.returncode == 1


@pytest.mark.slow
def test_progress_that_nobody_reads_does_not_end_a_run(tmp_path: Path) -> None:
    save_photos(tmp_path / "in", 20)
    command = f"{COMBICAM} run {tmp_path}/in -o {tmp_path}/run -m demo --layers last -b 2"
    done = shell(f"{command} 2> >(true)")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "run" / "summary.json").exists()


@pytest.mark.slow
def test_a_script_without_a_guard_is_told(tmp_path: Path) -> None:
    save_photos(tmp_path / "in", 4)
    (tmp_path / "script.py").write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nimport spawned\nfrom fakes import configured\n"
        "from combicam.engine.runner import run\n"
        f"run(configured(Path({str(tmp_path)!r}), devices=('cpu', 'cpu')), make=spawned.slow)\n"
    )
    done = shell(f"cd {tmp_path} && {sys.executable} script.py")
    assert done.returncode == 1
    assert b"begins its work under `if __name__ == '__main__':`" in done.stderr.splitlines()[-1]
    assert b"may lack memory" not in done.stderr


def test_descriptors_are_not_reused(tmp_path: Path) -> None:
    """With stderr closed, the next file would be number 2, and get what C libraries print."""
    code = (
        "import os; from combicam.console import console\n"
        "with console():\n"
        f"    number = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY)\n"
        "    assert number > 2, number\n"
    )
    assert shell(f'exec 2>&-; {sys.executable} -c "$CODE"', CODE=code).returncode == 0
