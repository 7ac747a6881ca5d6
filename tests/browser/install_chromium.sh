#!/usr/bin/env bash
# Installs the browser of the tests in tests/browser, where it is missing: as root, in continuous integration.
set -euo pipefail
if ! command -v chromium chromium-browser > /dev/null; then
    apt-get update -qq
    apt-get install --yes -qq --no-install-recommends chromium fonts-dejavu-core libgl1-mesa-dri libegl1
fi
