#!/usr/bin/env bash
# Sets a checkout up: `setup.sh` for Cove, `setup.sh tests` for the suite's other clients,
# `setup.sh bench` for what the benchmarks compare with. Idempotent; quick when nothing changed.
set -euo pipefail
cd "$(dirname "$0")/.."

export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
export PATH="$PATH:/usr/sbin:/sbin" # runc and nginx live there on Debian, also for ordinary users

say() { printf 'setup: %s\n' "$*"; }
fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# --- the system's packages ------------------------------------------------------------------

# RUNLEVEL=1 keeps a package from starting its service: nginx is wanted as a program only.
apt_install() {
    local try
    for try in 1 2 3; do
        if RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 \
            install -y -qq --no-install-recommends "$@" >"$log" 2>&1; then
            return 0
        fi
        [ "$try" = 3 ] && break
        say "refreshing the package lists"
        apt-get update -qq >>"$log" 2>&1 || sleep 3
    done
    tail -n 5 "$log" >&2
    return 1
}

can_install() { [ "$(id -u)" = 0 ] && have apt-get; }

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# --- a Python ------------------------------------------------------------------------------

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$name" -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

has_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }

need_venv() {
    has_venv "$1" && return 0
    local package
    package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
    if can_install; then
        say "installing $package"
        apt_install "$package" || fail "$package could not be installed (see above)"
        has_venv "$1" || fail "$1 still has no venv; set PYTHON to another Python >= 3.11"
    elif have apt-get; then
        fail "this Python cannot make environments yet. Run:  sudo apt-get install -y $package"
    else
        fail "$1 has no venv or ensurepip; install them, or set PYTHON to another Python >= 3.11"
    fi
}

# --- parts ----------------------------------------------------------------------------------

# hash FILE…: names a state of these files, this folder and this script
hash_of() { { printf '%s\n' "$PWD"; cat "$@" scripts/setup.sh; } | sha256sum | cut -d' ' -f1; }

# environment DIR LOCK FILE…: a venv in DIR holding exactly what LOCK names
environment() {
    local dir=$1 lock=$2 want stamp python
    shift 2
    want=$(hash_of "$lock" "$@")
    stamp=$dir/.cove-setup
    if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && "$dir/bin/python" -c '' 2>/dev/null; then
        return 0
    fi
    if ! "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
        python=$(find_python) ||
            fail "no Python >= 3.11 found. Run:  sudo apt-get install -y python3 python3-venv" \
                "(or set PYTHON to one)"
        need_venv "$python"
        say "making $dir with $("$python" --version)"
        "$python" -m venv --clear "$dir"
    fi
    rm -f "$stamp"
    say "installing $lock into $dir"
    "$dir/bin/python" -m pip install -qq --require-hashes -r "$lock"
    if [ "$dir" = .venv ]; then
        "$dir/bin/python" -m pip install -qq --no-deps --no-build-isolation -e .
    fi
    printf '%s\n' "$want" >"$stamp"
}

system_parts() {
    local missing=()
    have runc || have crun || missing+=(runc)
    have curl || missing+=(curl)
    [ ${#missing[@]} = 0 ] && return 0
    # one failed attempt is enough: every target comes through here
    if can_install && [ ! -e .venv/.cove-system-failed ]; then
        say "installing ${missing[*]}"
        apt_install "${missing[@]}" || {
            touch .venv/.cove-system-failed
            say "without ${missing[*]} some of Cove does not work, see: .venv/bin/cove doctor"
        }
        # the faster of the two where the release has it; Cove probes both and takes what works
        have crun || apt_install crun 2>/dev/null || true
    elif ! have runc && ! have crun; then
        say "no OCI runtime: functions will run unisolated (process)." \
            "For containers, as root: apt-get install -y runc"
    fi
}

typescript() {
    local dir=tests/ts want stamp
    have npm && have node || {
        say "no npm: the TypeScript SDK's tests will be skipped"
        return 0
    }
    want=$(hash_of $dir/package.json $dir/package-lock.json)
    stamp=$dir/node_modules/.cove-setup
    [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return 0
    say "installing the TypeScript SDK for tests into $dir"
    if (cd $dir && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error) >"$log" 2>&1; then
        printf '%s\n' "$want" >"$stamp"
    else
        tail -n 5 "$log" >&2
        say "npm could not install it: the TypeScript SDK's tests will be skipped"
    fi
}

bench_tools() {
    local missing=()
    have wrk || missing+=(wrk)
    have nginx || missing+=(nginx-light)
    [ ${#missing[@]} = 0 ] && return 0
    can_install || fail "benchmarks need ${missing[*]}. Run:  sudo apt-get install -y ${missing[*]}"
    say "installing ${missing[*]}"
    apt_install "${missing[@]}" || fail "${missing[*]} could not be installed (see above)"
}

case "${1:-}" in
    "")
        environment .venv requirements.lock pyproject.toml
        system_parts
        ;;
    tests)
        environment .env1x tests/requirements-mcp1.lock
        typescript
        ;;
    bench) bench_tools ;;
    *) fail "unknown part: $1 (tests, bench or nothing)" ;;
esac
