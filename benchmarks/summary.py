"""summary.json of a folder of benchmarks/gpu.sh: the machine, the versions, and what each step came to so far.

python benchmarks/summary.py OUT           writes OUT/summary.json
python benchmarks/summary.py OUT --check   exits with 1 if a step failed; a search stopped in time did not
"""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import version
from pathlib import Path
from typing import Any

from supermask.files import write_atomically

PACKAGES = ("supermask", "torch", "torchvision", "numpy", "safetensors", "pydantic", "typer")
SEARCHES = ("conv6", "resnet18-cifar")
BENCHMARKS = ("select", "step")
# What timeout exits with.
STOPPED = 124

Record = dict[str, Any]


def steps(folder: Path) -> dict[str, Record]:
    """The steps taken so far by name: exit status, seconds and the limit of seconds."""
    records = [json.loads(line) for line in (folder / "steps.jsonl").read_text("utf-8").splitlines()]
    return {record.pop("name"): record for record in records}


def tests(report: Path) -> Record:
    """How many tests passed, failed and were skipped, and the names of those that failed."""
    cases = list(ET.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {"passed": len(cases) - len(failed) - skipped, "failed": failed, "skipped": skipped}


def search(run: Path) -> Record:
    """Epochs done, their seconds, and the accuracy of the last one; all metrics if the search came to its end.

    Raises:
        FileNotFoundError: it did not end its first epoch.
    """
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    result = {
        "epochs": len(epochs),
        "seconds_of_epochs": round(sum(epoch["seconds"] for epoch in epochs), 3),
        "test_accuracy": epochs[-1]["test_accuracy"],
    }
    printed = run.with_suffix(".json").read_text("utf-8")
    if printed:
        final: Record = json.loads(printed)
        kept = ("test_accuracy", "test_pictures", "random_mask_accuracy", "random_network_accuracy")
        result |= {key: final[key] for key in kept}
        result |= {"data": final["config"]["data"]["name"], "precision": final["config"]["precision"]}
    return result | {"ended": bool(printed)}


def summary(folder: Path) -> Record:
    """Everything that is known so far."""
    taken = steps(folder)
    ended = [name for name in BENCHMARKS if name in taken and taken[name]["status"] == 0]
    printed = {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in ended}
    searched = [name for name in SEARCHES if name in taken and (folder / name / "metrics.jsonl").exists()]
    return {
        "machine": next((result["machine"] for result in printed.values()), None),
        "versions": {package: version(package) for package in PACKAGES},
        "seconds": sum(step["seconds"] for step in taken.values()),
        "steps": taken,
        "tests": tests(folder / "tests.xml") if (folder / "tests.xml").exists() else None,
        "benchmarks": {name: [in_words(row) for row in result["results"]] for name, result in printed.items()},
        "searches": {name: search(folder / name) for name in searched},
    }


def in_words(row: Record) -> str:
    """One measurement of `supermask bench`."""
    return f"{row['what']}: {row['way']} {row['seconds']:.3g} s, {row['ratio']:.2f} of {row['baseline']}"


def failures(taken: dict[str, Record]) -> list[str]:
    """The steps that failed; a search that was stopped in time did not."""
    return [
        name for name, step in taken.items() if step["status"] and not (name in SEARCHES and step["status"] == STOPPED)
    ]


def main(folder: Path, check: bool) -> None:
    """Write summary.json, or look for failures."""
    if not check:
        write_atomically(folder / "summary.json", (json.dumps(summary(folder), indent=2) + "\n").encode())
    elif failed := failures(steps(folder)):
        raise SystemExit(f"error: {', '.join(failed)} failed; see the logs in {folder}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["--check"])
