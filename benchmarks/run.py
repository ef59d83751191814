"""Run benchmarks and print their ratios.

    python -m benchmarks.run                      all, timed and counted
    python -m benchmarks.run latent_cache --counted           exact gates only, in seconds
    python -m benchmarks.run --device cuda --json rows.json

Exit status: 0 ok, 1 a gate does not hold or two arms disagree, 2 a user error. A time never fails:
the machine may be shared.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import torch

import benchmarks
from benchmarks.base import PAIRS, Count, Disagreement, Options, Timing
from nanogen.bench.record import commit, versions
from nanogen.errors import ConfigError, UserError, suggest
from nanogen.files import write_text
from nanogen.run import pick_device

OTHERS = ("base", "run")
"""modules of the folder that are no benchmark"""


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    given = _parser().parse_args(arguments)
    try:
        options = Options(pick_device(given.device), given.pairs)
        modules = [_module(name) for name in given.names or names()]
        torch.set_num_threads(1)
        return _run(modules, options, given.counted, given.json)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def names() -> list[str]:
    """All benchmarks: one file each."""
    found = [module.name for module in pkgutil.iter_modules(benchmarks.__path__)]
    return [name for name in found if name not in OTHERS]


def _run(modules: list[ModuleType], options: Options, counted: bool, file: Path | None) -> int:
    rows, status = [], 0
    about = {"device": _device(options.device), "commit": commit(), "versions": versions()}
    print(f"device: {about['device']}")
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        try:
            found: list[Count | Timing] = list(module.counted(options))
            if not counted:
                found += module.timed(options)
        except Disagreement as problem:
            print(f"{name}: FAILED: {problem}", file=sys.stderr)
            status = 1
            continue
        for row in found:
            print(f"{name}: {_line(row)}", flush=True)
            status |= isinstance(row, Count) and not row.holds
            extra = {"noisy": row.noisy} if isinstance(row, Timing) else {"holds": row.holds}
            rows.append({"benchmark": name, **dataclasses.asdict(row), **extra, **about})
    if file is not None:
        write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    return int(status)


def _line(row: Count | Timing) -> str:
    if isinstance(row, Count):
        verdict = "ok" if row.holds else f"FAILED, must be {row.must_be:g}"
        return f"{row.what}: {row.found:g} ({verdict})"
    noisy = ", noisy" if row.noisy else ""
    return (
        f"{row.what}: {row.plain:.3g} -> {row.shipped:.3g} {row.unit}/s, {row.ratio:.2f}x "
        f"(quartiles {100 * row.spread:.0f} % apart{noisy}; {row.clock}; {row.agreement})"
    )


def _module(name: str) -> ModuleType:
    if name not in names():
        raise ConfigError(f"unknown benchmark {name!r}; {suggest(name, names())}")
    return importlib.import_module(f"benchmarks.{name}")


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", help=f"of {', '.join(names())}; all if left out")
    parser.add_argument("--counted", action="store_true", help="exact gates only")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or auto")
    parser.add_argument("--pairs", type=int, default=PAIRS, help="times that each arm is run")
    parser.add_argument("--json", type=Path, help="write a JSON object a line to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())
