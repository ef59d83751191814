"""The sweep behind the CPU presets: equal CPU seconds for every variant, one thread, one seed.

    python scripts/sweep_animals.py animals --seconds 150 --out runs/sweep
    python scripts/sweep_animals.py scenes --seconds 150 --out runs/sweep

Each variant first measures its own speed for a few steps, then trains as many images as fit into
the CPU seconds. Prints a Markdown table, and appends a line of JSON for each variant to
`<out>/<task>.jsonl`; variants found there are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import chz

from nanogen import config, recipes
from nanogen.data.loader import batches
from nanogen.evaluation import measure, online
from nanogen.evaluation.subjects import DrawnByRun
from nanogen.run import Run, build
from nanogen.run_folder import Opened
from nanogen.train.diffusion import DiffusionTrainer
from nanogen.train.log import read
from nanogen.train.loop import Hooks, train
from nanogen.train.signals import Check

WARM, TIMED = 3, 10

BACKBONES = {
    "4x128+1x160": "backbone.depth=4 backbone.width=128 backbone.decoder_width=160",
    "4x160+1x192": "backbone.depth=4 backbone.width=160 backbone.decoder_width=192",
    "6x128+1x160": "backbone.depth=6 backbone.width=128 backbone.decoder_width=160",
}
OPTIMISERS = {
    "adamw 3e-3": "optimiser=adamw optimiser.lr=3e-3",
    "muon 0.02": "optimiser=muon optimiser.lr=0.02 optimiser.adamw.lr=2e-3",
    "muon 0.015": "optimiser=muon optimiser.lr=0.015 optimiser.adamw.lr=2e-3",
    "muon 0.06": "optimiser=muon optimiser.lr=0.06 optimiser.adamw.lr=4e-3",
    "muon 0.03": "optimiser=muon optimiser.lr=0.03 optimiser.adamw.lr=4e-3",
}
VARIANTS = [
    ("4x128+1x160", "muon 0.015", 0.0),
    ("4x128+1x160", "muon 0.03", 0.0),
    ("4x160+1x192", "muon 0.03", 0.0),
    ("4x128+1x160", "adamw 3e-3", 0.0),
    ("6x128+1x160", "muon 0.03", 0.0),
    ("4x128+1x160", "muon 0.06", 0.0),
    ("4x128+1x160", "muon 0.02", 0.0),
    ("4x128+1x160", "muon 0.02", 0.8),
]
"""backbone, optimiser, mean of the logit of the training times"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=("animals", "scenes"))
    parser.add_argument(
        "--seconds", type=float, default=150.0, help="CPU seconds of training for each variant"
    )
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--out", type=Path, default=Path("runs/sweep"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    lines = arguments.out / f"{arguments.task}.jsonl"
    done = {row["variant"]: row for row in read(lines)}
    for backbone, optimiser, mean in VARIANTS:
        variant = f"{backbone}, {optimiser}, time mean {mean}"
        if variant not in done:
            overrides = f"{BACKBONES[backbone]} {OPTIMISERS[optimiser]} objective.time_mean={mean}"
            run = config.override(recipes.preset(f"{arguments.task}/pixels-v"), overrides.split())
            done[variant] = {"variant": variant, **trial(run, arguments)}
            with lines.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(done[variant]) + "\n")
            print(json.dumps(done[variant]), flush=True)
    print(table(list(done.values())))


def trial(run: Run, arguments: argparse.Namespace) -> dict[str, float]:
    """Train a run for the CPU seconds asked for, and measure it."""
    speed = images_per_cpu_second(run)
    images = int(arguments.seconds * speed / run.train.batch) * run.train.batch
    run = chz.replace(
        run,
        schedule=chz.replace(run.schedule, warmup=images // 20),
        train=chz.replace(
            run.train, images=images, log_every=images // 10, save_every=images, sample_every=0
        ),
        evaluation=chz.replace(run.evaluation, samples=arguments.samples),
    )
    parts = build(run)
    records = []
    folder = arguments.out / "cells" / config.digest(run)
    folder.mkdir(parents=True, exist_ok=True)

    def evaluate(seen: int, check: Check) -> None:
        subject = DrawnByRun(Opened(parts, seen, "ema"))
        records.extend(measure.evaluate(subject, online.plan_of(parts, folder, check)))

    hooks = Hooks(evaluate=evaluate)
    train(DiffusionTrainer(parts), folder, hooks)
    scores = {record.metric: round(record.value, 4) for record in records}
    loss = read(folder / "log.jsonl")[-1]["flow"]
    return {
        "steps": images // run.train.batch,
        "images_per_cpu_second": round(speed, 1),
        "loss": round(loss, 4),
        **scores,
    }


def images_per_cpu_second(run: Run) -> float:
    """Measured over a few steps, after a few to warm up."""
    trainer = DiffusionTrainer(build(run))
    stream = batches(trainer.task, 0, run.train.batch, run.train.batch, 0)
    for _ in range(WARM):
        trainer.step(stream)
    started = time.process_time()
    for _ in range(TIMED):
        trainer.step(stream)
    return TIMED * run.train.batch / (time.process_time() - started)


def table(rows: list[dict[str, float]]) -> str:
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    lines += [
        "| " + " | ".join(str(row.get(column, "")) for column in columns) + " |" for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
