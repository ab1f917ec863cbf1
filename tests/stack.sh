#!/usr/bin/env bash
# Builds the Collector of collector-config/builder.yaml into .build/collector with Go and prints its path.
# Built again only when the manifest or Go changes. Without Go the tests that need it skip (CI: fail).
set -euo pipefail
cd "$(dirname "$0")/.."
manifest=collector-config/builder.yaml
out=.build/collector
builder=go.opentelemetry.io/collector/cmd/builder@v0.155.0
needed=1.26

fail() { echo "== No Collector, so tests that need it are skipped: $*"; exit 0; }

command -v go >/dev/null || fail "no go here (version $needed or later, https://go.dev/dl)"
version=$(go env GOVERSION)
[ "$(printf '%s\n' "go$needed" "$version" | sort -V | head -1)" = "go$needed" ] || fail "$version is older than $needed"

stamp=$({ cat "$manifest"; echo "$version $(go env GOARCH)"; } | sha256sum | cut -d' ' -f1)
[ "$(cat "$out/built" 2>/dev/null)" = "$stamp" ] && [ -x "$out/otelcol" ] && exit 0

echo "== Building the Collector of $manifest into $out with $version (about two minutes)"
mkdir -p "$out"
exec 9>"$out/lock"
flock 9  # two builds at a time would spoil each other's
[ "$(cat "$out/built" 2>/dev/null)" = "$stamp" ] && [ -x "$out/otelcol" ] && exit 0
rm -rf "$out/source" "$out/built"
{
  GOBIN="$PWD/$out" go install "$builder" &&
  # Its last step, `go mod tidy`, may ask for modules that only other people's tests import.
  { "$out/builder" --config "$manifest" --skip-compilation || [ -f "$out/source/go.mod" ]; } &&
  (cd "$out/source" && go build -mod=mod -trimpath -ldflags='-s -w' -o ../otelcol.new .)
} >"$out/build.log" 2>&1 || { tail -20 "$out/build.log"; fail "the build failed, see $out/build.log"; }
mv "$out/otelcol.new" "$out/otelcol"
echo "$stamp" >"$out/built"
