#!/usr/bin/env bash
# Resolves dependencies for every supported Python and writes them with hashes, naming no index.
# Pins stay where they are unless they must move: UPGRADE=1 make lock moves them all.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() {
    .venv/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" ${UPGRADE:+--upgrade} "$@"
}

compile pyproject.toml --group dev --group build -o requirements.lock
compile tests/requirements-mcp1.in -o tests/requirements-mcp1.lock
if command -v npm >/dev/null 2>&1; then
    (cd tests/ts && npm install --package-lock-only --ignore-scripts --no-audit --no-fund \
        --loglevel=error)
fi
