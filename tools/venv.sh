#!/usr/bin/env bash
# Make the virtual environment with exactly the pinned packages. Usage: tools/venv.sh DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."
venv=$1

for candidate in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
  [ -n "$candidate" ] || continue
  if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done
if [ -z "${python:-}" ]; then
  echo "tools/venv.sh: no Python >= 3.11 with venv found; install python3 and python3-venv (Debian), or set PYTHON" >&2
  exit 1
fi

echo "setting up $venv with $("$python" --version) and the pinned packages (once, about a minute)"
"$python" -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
touch "$venv/.ready"
