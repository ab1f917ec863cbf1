#!/usr/bin/env bash
# Installs the vendor's benchlab-pytools into .build/pytools, for the tests that read from it: an environment
# of its own, as its servers are pinned to older packages than ours. Without it those tests skip (CI: fail).
set -euo pipefail
cd "$(dirname "$0")/.."
release=3.4.0
out=.build/pytools
[ "$(cat "$out/installed" 2>/dev/null)" = "$release" ] && exit 0
echo "== Installing benchlab-pytools $release into $out, for the tests"
mkdir -p .build
exec 9>.build/pytools.lock
flock 9
[ "$(cat "$out/installed" 2>/dev/null)" = "$release" ] && exit 0
python3 -m venv --clear "$out"
"$out/bin/pip" install --disable-pip-version-check -q "benchlab-pytools[mqtt,restapi]==$release" \
  || { echo "== Not installed, so tests that need it are skipped"; exit 0; }
echo "$release" >"$out/installed"
