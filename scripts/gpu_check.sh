#!/usr/bin/env bash
# What an NVIDIA GPU is needed to prove: kernels, their memory accesses, their times, and the paper's throughput.
#
#   scripts/gpu_check.sh [--device cuda|cpu] [--out DIR] [--wheels DIR] [--quick]
#
# It needs Python with torch, timm, onnx, NumPy, Pillow and pytest, a C++ compiler and, for some parts, the CUDA toolkit; no
# network, and nothing of ztdeploy installed. A Python package that is missing (pydantic, often) is taken from --wheels, a
# folder of wheels made elsewhere: pip download --only-binary :all: --python-version 3.12 --dest DIR pydantic
# --device cpu tries the whole script where no GPU is. --quick spends half of the time on the throughput.
#
# Every part has a time limit, 6 minutes in all, and leaves its log beside gpu_check.json and gpu_check.md in --out.
# The exit code is 0 where every part passed.
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda out=gpu_check wheels='' seconds=110
usage() {
    echo "error: '$1'; expected --device cuda or cpu, --out DIR, --wheels DIR or --quick; see the top of $0" >&2
    exit 2
}
while [ $# -gt 0 ]; do
    case $1 in
        --quick) seconds=50; shift; continue ;;
        --device | --out | --wheels) [ $# -gt 1 ] || usage "$1" ;;
        *) usage "$1" ;;
    esac
    case $1 in
        --device) device=$2 ;;
        --out) out=$2 ;;
        --wheels) wheels=$2 ;;
    esac
    shift 2
done
case $device in cuda | cpu) ;; *) usage "--device $device" ;; esac
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
export TORCHINDUCTOR_CACHE_DIR=$out/compiled
[ "$device" = cpu ] && export ZTDEPLOY_STAND_IN_GPU=1 CUDA_VISIBLE_DEVICES=''

# part NAME SECONDS COMMAND...: runs a command, with its output in NAME.log and how it ended in NAME.part.json.
part() {
    local name=$1 limit=$2 began code took left=$((350 - SECONDS))
    shift 2
    [ "$limit" -lt "$left" ] || limit=$((left > 5 ? left : 5))
    began=$(date +%s.%N)
    timeout --kill-after 5 "$limit" "$@" >"$out/$name.log" 2>&1
    code=$?
    took=$(awk "BEGIN { printf \"%.1f\", $(date +%s.%N) - $began }")
    echo "{\"exit_code\": $code, \"seconds\": $took, \"limit_seconds\": $limit}" >"$out/$name.part.json"
    echo "$name: exit code $code after $took s" >&2
}

if ! "$python" -c 'import pydantic' 2>/dev/null; then
    if [ -z "$wheels" ]; then
        echo "error: this Python has no pydantic; expected it installed, or --wheels with a folder of wheels that hold it" >&2
        exit 2
    fi
    part wheels 20 "$python" -m pip install --quiet --no-index --find-links "$wheels" --target "$out/packages" pydantic
    export PYTHONPATH=$PYTHONPATH:$out/packages
fi

# torch.compile takes half a minute per model; its cache fills while the kernels are tested, before anything is timed.
compiling=()
for model in dense slice zero-tprune novelty-merge tome; do
    timeout 150 "$python" -m benchmarks.torch_throughput --device "$device" --compile-only "$model" >"$out/compile-$model.log" 2>&1 &
    compiling+=($!)
done
part machine 20 "$python" -m benchmarks.gpu_report --machine "$device" --out "$out/machine.json"
part tests 80 "$python" -m pytest tests/target/plugins/test_gpu.py -m gpu -W default -p no:cacheprovider --junitxml "$out/tests.xml"
if command -v compute-sanitizer >/dev/null && [ "$device" = cuda ]; then
    for tool in memcheck racecheck; do
        part "$tool" 40 compute-sanitizer --tool "$tool" --error-exitcode 99 \
            "$python" -m pytest tests/target/plugins/test_gpu.py -m gpu -W default -p no:cacheprovider -k checker_of_memory
    done
fi
wait "${compiling[@]}"
part kernels 40 "$python" -m benchmarks.kernels --times "$device" --out "$out/kernels.json"
part throughput $((seconds + 20)) "$python" -m benchmarks.torch_throughput --device "$device" --seconds "$seconds" --out "$out/throughput.json"
part providers 40 "$python" -m benchmarks.providers --device "$device" --out "$out/providers.json"
"$python" -m benchmarks.gpu_report --collect "$out"
