#!/usr/bin/env bash
# Pin all packages: requirements/dev.txt for people and CI, requirements/device.txt (a subset, same versions) for the device.
# Usage: tools/lock.sh DIRECTORY-WITH-pip-compile
set -euo pipefail
cd "$(dirname "$0")/.."
common=(--quiet --generate-hashes --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --strip-extras --allow-unsafe)
"$1/pip-compile" "${common[@]}" --extra server --extra release --extra pkcs11 --extra factory --extra dev --output-file requirements/dev.txt pyproject.toml
"$1/pip-compile" "${common[@]}" --constraint requirements/dev.txt --output-file requirements/device.txt pyproject.toml
if grep -nE '^[^#]*(https?://|file:)' requirements/*.txt; then
  echo "tools/lock.sh: a requirement file names an address; nothing of this machine or of a registry belongs there" >&2
  exit 1
fi
