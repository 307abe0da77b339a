#!/bin/bash
# Install what some tests run and pip does not bring, on Debian: Prometheus (promtool checks the alert rules, the
# server watches a gateway; its service is kept from starting), Chromium and ffmpeg. Where they cannot be had
# their tests are skipped, which is said here and by the tests.
set -euo pipefail

declare -A package=([promtool]=prometheus [chromium]=chromium [ffmpeg]=ffmpeg)
missing=()
for command in "${!package[@]}"; do
    command -v "$command" >/dev/null || missing+=("$command")
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
    echo "not here: ${missing[*]}; their tests will be skipped"
    exit 0
fi
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
names=()
for command in "${missing[@]}"; do
    names+=("${package[$command]}")
done
apt-get update -qq &&
    apt-get install -y -qq --no-install-recommends "${names[@]}" >/dev/null ||
    echo "could not be installed: ${missing[*]}; their tests will be skipped"
