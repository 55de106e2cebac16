"""What a GPU that is at hand for minutes is spent on: tests, ladders, kernels, the run.

Every group of rows is a process of its own, so that a fault on the device or a compiler that takes
too long costs those rows alone. Processes of a wave prepare at once, on many cores, and are timed
one after the other; records are written after every round.
"""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.harness import RESULTS, seconds_per_call
from benchmarks.turns import Group, Outcome, run_wave
from combicam.errors import first_line

_GIB = 2**30
# Those with the marker gpu; a worker that crashes is one failure.
GPU_TESTS = ("tests/end_to_end/test_gpu.py", "tests/engine/pipeline/test_explain_stage.py")


def _graph(case: str, part: str, rows: tuple[str, ...], *more: str) -> Group:
    name = f"graph-{case.partition(':')[0]}-{part}"
    record = ("--output", f"{{output}}/{name}.json", "--device", "cuda", "--profile", *more)
    return Group(name, ("benchmarks", "graph", "--cases", case, "--rows", *rows, *record))


def _kernels(case: str, batch: int) -> Group:
    name = f"kernels-{case}-{batch}"
    options = ("--cases", f"{case}:{batch}", "--device", "cuda")
    return Group(name, ("benchmarks", "kernels", *options, "--output", f"{{output}}/{name}.json"))


def _ladder(case: str) -> list[Group]:
    return [
        _graph(case, "forward", ("forward",)),
        _graph(case, "eager", ("joint graph, eager float32", "… bfloat16")),
        _graph(case, "operator", ("… head as one operator", "… replayed CUDA graph")),
    ]


def _tests(*where: str) -> Group:
    """Tests that need a GPU; those that compile for one do not, and run elsewhere."""
    options = ("-q", "-n", "6", "--timeout", "100", "--maxfail", "30", "-p", "no:cacheprovider")
    left_out = ("-m", "not slow", "--ignore", "tests/kernels/test_compile_kernels.py")
    return Group("tests-" + Path(where[0]).name, ("pytest", *where, *options, *left_out))


def _pipeline(backend: str, load_in: str, decoder: str = "auto") -> Group:
    name = f"pipeline-{backend}-{load_in}-{decoder}"
    options = ("--model", "timm:resnet50", "--photos", "8000", "--batch", "250", "--workers", "16")
    compute = ("--device", "cuda", "--amp-dtype", "bfloat16", "--backend", backend)
    record = ("--rounds", "1", "--growth", "0", "--output", f"{{output}}/{name}.json")
    command = ("benchmarks", "pipeline", *options, *compute, "--load-in", load_in, *record)
    command = (*command, "--decoder", decoder)
    return Group(name, command, timed_s=45)


def _decode() -> Group:
    options = ("--cases", "480x480:90", "500x375:85", "--threads", "1", "3", "--rounds", "3")
    record = ("--device", "cuda", "--output", "{output}/decode.json")
    return Group("decode", ("benchmarks", "decode", *options, *record))


def _runs(cores: int) -> Group:
    """Whole commands, by decoder; runs of fewer than 10,000 images decode in threads."""
    name = f"runs-{cores}"
    options = ("--model", "torchvision:resnet50", "--images", "60000", "--cores", str(cores))
    compute = ("--device", "cuda", "--amp-dtype", "bfloat16", "--decoders", "auto", "gpu")
    record = ("--output", f"{{output}}/{name}.json")
    return Group(name, ("benchmarks", "runs", *options, *compute, *record), timed_s=120)


PLAN: dict[str, list[Group]] = {
    "tests": [_tests("tests/kernels"), _tests(*GPU_TESTS)],
    "kernels": [
        *(_kernels(*case) for case in (("resnet50", 256), ("resnet50", 1))),
        *(_kernels(*case) for case in (("efficientnet_b4", 64), ("convnext", 64))),
    ],
    "resnet50": _ladder("resnet50:128"),
    "efficientnet_b4": _ladder("efficientnet_b4:32"),
    "reference-heads": [
        _graph("resnet50:128", "compiled", ("… compiled, reference head",)),
        _graph("efficientnet_b4:32", "compiled", ("… compiled, reference head",)),
    ],
    "packages": [
        _graph("resnet50:128", "package", ("AOTInductor package",)),
        _graph("efficientnet_b4:32", "package", ("AOTInductor package",)),
    ],
    "others": [
        _graph("resnet50:128", "others", ("pytorch-grad-cam", "torchcam")),
        _graph("efficientnet_b4:32", "others", ("pytorch-grad-cam", "torchcam")),
    ],
    "pipeline": [
        _pipeline("eager", "processes"),
        _pipeline("eager", "processes", "gpu"),
        _pipeline("compile", "threads"),
        _pipeline("compile", "processes"),
    ],
    "runs": [_decode(), _runs(16), _runs(4)],
}


@dataclass(frozen=True)
class DeviceConfig:
    """Tests, ladders, kernels and a run on a GPU that is at hand for minutes.

    Args:
        budget: seconds after which every process is ended.
        waves: groups that prepare at once, names joined by ``+``; waves follow each other.
        output: folder of records and logs.
    """

    budget: float = 540.0
    waves: tuple[str, ...] = (
        "tests+kernels+resnet50+efficientnet_b4",
        "pipeline",
        "others",
    )
    output: Path = RESULTS / "device"

    def __post_init__(self) -> None:
        unknown = {name for wave in self.waves for name in wave.split("+")} - set(PLAN)
        if unknown:
            raise ValueError(f"device: expected waves of {list(PLAN)}, got {sorted(unknown)}")


def ceilings(device: torch.device) -> dict[str, float]:
    """Bytes/s of a copy (read and written), FLOP/s of a bfloat16 product on random data."""
    source = torch.randn(_GIB // 2, device=device).view(torch.uint8)  # 2 GiB
    target = torch.empty_like(source)
    copy = seconds_per_call(lambda: target.copy_(source))
    side = 8192
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = seconds_per_call(lambda: a @ b)
    return {"copy_bytes_per_s": 2 * source.nbytes / copy, "bf16_flop_per_s": 2 * side**3 / product}


def _driver() -> str:
    fields = "name,driver_version,clocks.sm,clocks.mem,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown: {first_line(error)}"
    return found.stdout.strip()


def run_device(config: DeviceConfig) -> None:
    """Wave by wave; ``device.json`` says how every process ended, in this call and those before."""
    end = time.monotonic() + config.budget
    config.output.mkdir(parents=True, exist_ok=True)
    path = config.output / "device.json"
    earlier = json.loads(path.read_text())["groups"] if path.exists() else []
    outcomes: list[Outcome] = []

    def record(**more: object) -> None:
        new = [outcome.to_dict() for outcome in outcomes]
        names = {group["name"] for group in new}
        kept = [group for group in earlier if group["name"] not in names]
        content = {"env": environment(), **more, "groups": [*kept, *new]}
        path.write_text(json.dumps(content, indent=1) + "\n")

    limits: dict[str, object] = {}
    if torch.cuda.is_available():
        limits = {"driver": _driver()}
        try:
            limits |= ceilings(torch.device("cuda"))
            torch.cuda.empty_cache()
        except RuntimeError as error:  # of a device that fails; what the groups find is told, too
            limits["error"] = first_line(error)
        print(limits, flush=True)
    record(**limits)
    for wave in config.waves:
        groups = [group for name in wave.split("+") for group in PLAN[name]]
        if time.monotonic() > end:
            outcomes += [Outcome(group.name, "not begun") for group in groups]
        else:
            outcomes += run_wave(groups, config.output, end)
        record(**limits)
        for outcome in outcomes[-len(groups) :]:
            print(
                f"{outcome.name}: {outcome.how} ({outcome.code}), prepared in "
                f"{outcome.prepared_s or 0:.0f} s, timed in {outcome.timed_s or 0:.0f} s",
                flush=True,
            )
