#!/usr/bin/env bash
#SBATCH --job-name=mmduet2kit --ntasks-per-node=1 --signal=B:TERM@300 --requeue --open-mode=append
# The one entry point: sets up its own environment, then runs, tests, redraws or checks (sbatch takes it too).
#   ./run_all.sh [run|test|figures|doctor] [--profile P] [--from NN] [--only NN] [--force] [--dry-run]
# P: smoke, tiny, study (study@2: seed 2 of it alone), single_gpu, paper, or the path of a YAML file. `run` and `tiny` are the
# defaults; `test --all` adds the long tests. Exit: 0 done, 1 a stage failed (named), 2 bad usage or input, 3 doctor says stop, 143 terminated.
set -euo pipefail
say() { printf '%s\n' "$*"; }
stop() { printf 'run_all.sh: %s\n' "$1" >&2; exit "${2:-2}"; }
cd -P "$(dirname "${BASH_SOURCE[0]}")"
# sbatch runs a copy of this script from its spool folder: the repository is where it was submitted from.
[ -f pyproject.toml ] || cd -P "${SLURM_SUBMIT_DIR:-.}"
[ -f pyproject.toml ] || stop "no pyproject.toml in $PWD: start it from the repository."

# --- 1. What is wanted? Usage errors show before anything is installed. -----------------------------------
command=run
case "${1:-}" in
  run|test|figures|doctor) command=$1; shift ;;
  -h|--help) sed -n '3,6p' run_all.sh; exit 0 ;;
  ""|-*) ;;
  *) stop "unknown command '$1': choose run, test, figures or doctor." ;;
esac
test_all=no
if [ "$command" = test ]; then
  case "$*" in "") ;; --all) test_all=yes ;; *) stop "test takes no other argument than --all." ;; esac
fi
value=""  # the option that waits for its value; what a value may be, the package says
for word in "$@"; do
  if [ -n "$value" ]; then value=""; continue; fi
  case "$command:$word" in
    *:-h|*:--help|test:--all|run:--force|run:--dry-run|*:--*=*) ;;
    run:--profile|run:--from|run:--only|figures:--profile|figures:--data|figures:--out|doctor:--profile) value=$word ;;
    *) stop "$command does not take '$word': see ./run_all.sh --help." ;;
  esac
done
[ -z "$value" ] || stop "$value needs a value."

# Long steps run in the background and are waited for, so that TERM and Ctrl-C end them too.
child=""
ended() {  # Slurm tells the batch script alone that its time is over: the job goes back into the queue, and on from there.
  if [ -n "$child" ]; then kill "$child" 2>/dev/null; wait "$child" || true; fi
  if [ -n "${SLURM_JOB_ID:-}" ] && [ "$1" = TERM ]; then scontrol requeue "$SLURM_JOB_ID" || true; fi; exit 143
}
for signal in TERM INT HUP; do trap "ended $signal" "$signal"; done
step() { "$@" & child=$!; local code=0; wait "$child" || code=$?; child=""; return $code; }

# --- 2. Which environment? An active conda environment made from environment.yml, else .venv in this folder. 
# One set-up at a time; the lock also outlives a killed set-up whose pip still runs.
mkdir -p runs; exec 9>>runs/.set-up.lock
if command -v flock >/dev/null && ! flock -n 9; then say "Waiting for another set-up."; step flock 9; fi
is_fit='import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
if [ -n "${CONDA_PREFIX:-}" ] && [ "${CONDA_DEFAULT_ENV:-}" != base ] \
   && "$CONDA_PREFIX/bin/python" -c 'import importlib.metadata as m; m.version("mmduet2kit")' 2>/dev/null
then
  env=$CONDA_PREFIX
else
  env=$PWD/.venv
  # A killed set-up leaves this mark: such an environment is not trusted but made anew (downloads are cached).
  if [ -e "$env/set-up-unfinished" ]; then say "The last set-up was cut short: anew."; rm -rf "$env"; fi
  if ! "$env/bin/python" -c "$is_fit" 2>/dev/null; then
    base=""
    for candidate in "${PYTHON:-python3.11}" python3.11 python3.12 python3; do
      if "$candidate" -c "$is_fit" 2>/dev/null; then base=$candidate; break; fi
    done
    [ -n "$base" ] || stop "no Python 3.11 or 3.12 with venv was found: install one (or set PYTHON to it)."
    [ ! -e "$env" ] || [ -e "$env/mmduet2kit-stamp" ] || stop "$env is not ours and not fit: move it away."
    say "Making .venv with $("$base" --version)."
    rm -rf "$env"; mkdir "$env"; touch "$env/set-up-unfinished"
    step "$base" -m venv "$env"
  fi
fi
python=$env/bin/python
"$python" -c "$is_fit" || stop "$env has $("$python" --version 2>&1), but 3.11 or 3.12 is needed."

# --- 3. Install what pyproject.toml pins (what comes along: $held), once: a stamp remembers for which. ----
held=mmduet2kit/constraints.txt extras=dev; if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then extras=dev,gpu,adam8bit; fi
wanted="$(cat pyproject.toml "$held" - <<<"$("$python" -VV) $extras $PWD" | "$python" -c \
  'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
pin() { grep -om1 "\"$1==[^\"]*" pyproject.toml | tr -d '"'; }
install() { step env PIP_CONSTRAINT="$held" PIP_BUILD_CONSTRAINT="$held" "$python" -m pip install -qq --disable-pip-version-check "$@"; }
there="$(cat "$env/mmduet2kit-stamp" 2>/dev/null || true)"  # doctor and figures take what is there: a job may be using it
case "$command" in doctor|figures) wanted=${there:-$wanted} ;; esac
if [ "$there" != "$wanted" ]; then
  [ "$env" != "$PWD/.venv" ] || touch "$env/set-up-unfinished"
  rm -f "$env/mmduet2kit-stamp"
  export DS_BUILD_OPS=0  # DeepSpeed compiles its CUDA parts when they are first used, not here
  say "Setting up $env, once: 0.42 GB to download, 2 GB on disk where pip offers a CPU build of torch,"
  say "about 1.6 and 6 GB where it offers the CUDA build. Two minutes and more, depending on the line."
  failed="the set-up failed: pip says above why; the next ./run_all.sh tries again. A version that is gone: delete its line in $held."
  # torch first: some packages look for it while they are built.
  say "  1 of 2: $(pin torch)"; install "$(pin torch)" || stop "$failed" 1
  say "  2 of 2: everything else"; install -e ".[$extras]" || stop "$failed" 1
  if [ "$extras" != dev ]; then
    say "  A GPU is here: building $(pin flash-attn), which may take long (an attempt; nothing depends on it)"
    install --no-build-isolation "$(pin flash-attn)" >"$env/flash-attn.log" 2>&1 \
      || say "  flash-attn could not be built (see $env/flash-attn.log): PyTorch's SDPA serves instead."
  fi
  [ "$env" != "$PWD/.venv" ] || echo "$SECONDS" >"$env/set-up-seconds"  # for the manifest
  rm -f "$env/set-up-unfinished"; printf '%s' "$wanted" >"$env/mmduet2kit-stamp"
  say "Set-up done. To look around by hand: $env/bin/jupyter lab"
fi
export PATH="$env/bin:$PATH"; exec 9>&-  # the set-up's lock

# --- 4. Do it. exec: signals for this script then reach the runner itself (under Slurm it must outlive it). 
if [ -n "${SLURM_JOB_ID:-}" ] && [ "$command" = run ]; then step "$python" -m mmduet2kit run "$@"; exit 0; fi
[ "$command" = test ] || exec "$python" -m mmduet2kit "$command" "$@"

# --- 5. Tests, cheapest first. The smoke run goes through this script itself, not through a second path. --
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"; result=0
check() { say "== $1"; shift; step "$@" || { result=1; say "== FAILED"; }; }
check "unit tests" "$python" -m pytest -q -n 2 -m "not slow and not smoke and not kill and not distributed and not all_only"
check "training on several ranks" "$python" -m pytest -q -m "distributed and not all_only"
unset OMP_NUM_THREADS
check "smoke: every notebook, tiny numbers" ./run_all.sh run --profile smoke
check "what the smoke run made" "$python" -m pytest -q -m "smoke and not all_only"
check "kill tests of the runner" "$python" -m pytest -q -n 2 -m "kill and not all_only"
if [ $test_all = yes ]; then check "long tests" "$python" -m pytest -q -m "slow or all_only"; fi
[ $result = 0 ] && say "All tests passed." || say "Some tests failed: see above."
exit $result
