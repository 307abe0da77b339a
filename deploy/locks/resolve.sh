#!/usr/bin/env bash
# Resolve the lock files from pyproject.toml: make lock. UV names the program; options go to it (--upgrade).
#
# Everything is resolved together first, dev.txt, and the others are parts of that: what is tested is what is
# deployed. torch is left out, see deploy/lock.py.
set -euo pipefail
folder=deploy/locks

resolve() { # SOURCE LOCK OPTIONS…
    local source=$1 lock=$2
    shift 2
    "${UV:-uv}" pip compile --quiet --config-file "$folder/uv.toml" --universal --python-version 3.11 \
        --generate-hashes --no-annotate --no-emit-package torch --custom-compile-command 'make lock' \
        "$source" --output-file "$folder/$lock.txt" "$@"
}

resolve pyproject.toml dev --extra dev --extra otel "$@"
part=(--constraints "$folder/dev.txt" "$@")
resolve pyproject.toml search --extra search "${part[@]}"
resolve pyproject.toml loadtest --extra loadtest "${part[@]}"
resolve pyproject.toml router --extra router --extra otel "${part[@]}"
resolve "$folder/build.in" build "${part[@]}"
