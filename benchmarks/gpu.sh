#!/usr/bin/env bash
# What wants an accelerator, in ten minutes on one CUDA machine: correctness of every strategy, the step and the selection
# against their baselines, and 100-epoch searches of conv6 and resnet18-cifar on CIFAR-10.
#
#     SUPERMASK_DATA=data benchmarks/gpu.sh
#     benchmarks/gpu.sh --small     the same on a CPU in a minute, on the digits, to see that it works
#
# Environment:
#     OUT             folder of the results (gpu-results); summary.json there is complete after every step
#     SUPERMASK_DATA  folder with CIFAR-10: cifar-10-batches-py as torchvision keeps it, or cifar10-jpeg75/{train,test}
#     WHEELS          folder of wheels (hatchling and editables, which build us, among them) to install what is missing
#                     from, in a virtual environment in OUT that sees the machine's own packages; no network is used.
#                     Without it, python is taken as it is.
set -euo pipefail

if [ $# -gt 1 ] || [ "${1:---small}" != "--small" ]; then
    echo "usage: benchmarks/gpu.sh [--small]" >&2
    exit 2
fi
small=${1:-}
limit=590 # seconds for everything
if [ "$small" ]; then
    device=cpu
    data=(--data digits --epochs 1)
else
    device=cuda
    root=$(cd "${SUPERMASK_DATA:?names the folder with CIFAR-10}" && pwd)
    data=(--data-root "$root")
    if [ ! -d "$root/cifar-10-batches-py" ]; then data=(--data "folder:$root/cifar10-jpeg75"); fi
fi
mkdir -p "${OUT:=gpu-results}"
OUT=$(cd "$OUT" && pwd)
rm -rf "$OUT"/summary.json "$OUT"/tests.xml "$OUT"/conv6 "$OUT"/resnet18-cifar
: > "$OUT/steps.jsonl"
cd "$(dirname "$0")/.."

trap 'exit 130' INT

# bounded NAME SECONDS COMMAND...: run it with its output in NAME.json and NAME.log, for so long or for what is left of
# the limit; keep the time and the exit status (124: stopped). SIGINT lets a search save where it stands.
bounded() {
    local name=$1 most=$2 status=0 began=$SECONDS
    shift 2
    local left=$((limit - SECONDS))
    if [ "$most" -gt "$left" ]; then most=$left; fi
    if [ "$most" -gt 0 ]; then
        timeout --foreground --signal INT --kill-after 10 "$most" "$@" > "$OUT/$name.json" 2> "$OUT/$name.log" || status=$?
    else
        status=124
    fi
    printf '{"name": "%s", "status": %d, "seconds": %d, "limit": %d}\n' \
        "$name" "$status" "$((SECONDS - began))" "$most" >> "$OUT/steps.jsonl"
    echo "$name: status $status, $((SECONDS - began)) s" >&2
    python benchmarks/summary.py "$OUT"
}

install() {
    python3 -m venv --system-site-packages "$OUT/venv"
    # shellcheck source=/dev/null
    . "$OUT/venv/bin/activate"
    # Isolated builds read these too. What the machine has is left as it is.
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$WHEELS PIP_DISABLE_PIP_VERSION_CHECK=1
    local needed
    # Exports and the Hub stay out of it; torch and torchvision are the machine's.
    mapfile -t needed < <(python -c '
import tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
unused = ("huggingface", "import-linter", "mypy", "onnx", "playwright", "pytest-cov", "ruff", "timm", "torch")
print(*(name for name in wanted if not name.startswith(unused)), sep="\n")
')
    pip install --quiet --no-index --find-links "$WHEELS" "${needed[@]}"
    pip install --quiet --no-index --find-links "$WHEELS" --no-deps -e .
}

if [ "${WHEELS:-}" ]; then
    WHEELS=$(cd "$WHEELS" && pwd)
    install
fi

tests=(tests/test_device.py tests/test_select.py)
if [ "$small" ]; then tests=(tests/test_device.py -k selection); fi
bounded tests 150 python -m pytest -q -p no:cacheprovider --junitxml "$OUT/tests.xml" "${tests[@]}"
bounded select 60 python -m supermask bench select --device "$device" --json ${small:+--small}
bounded step 90 python -m supermask bench step --device "$device" --json ${small:+--small}
# What stays of the limit is the larger network's: stopped, it has the epochs that it came to.
bounded conv6 150 python -m supermask search --recipe conv6-cifar10 "${data[@]}" --device "$device" --json \
    --run-dir "$OUT/conv6"
bounded resnet18-cifar "$limit" python -m supermask search --recipe resnet18-cifar10 "${data[@]}" --device "$device" \
    --json --run-dir "$OUT/resnet18-cifar"

cat "$OUT/summary.json"
python benchmarks/summary.py "$OUT" --check
