#!/usr/bin/env bash
# Installs what the tests need from Debian, where this user may; without it those tests skip (CI: fail).
set -euo pipefail
packages=(
  gcc libc6-dev  # the stub of NVIDIA's library is in C
  gir1.2-gst-plugins-base-1.0 gir1.2-gstreamer-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good
  gstreamer1.0-tools mosquitto prometheus python3-gi
)
command -v node >/dev/null || packages+=(nodejs)  # runs trace_processor; wherever it came from
if ! command -v dpkg-query >/dev/null; then
  echo "== No Debian: tests that need these packages, where they are not installed, are skipped: ${packages[*]}"
  exit 0
fi
missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ]; then
  echo "== Installing from Debian, for the tests: ${missing[*]}"
  # prometheus and mosquitto start servers where there is a service manager; the tests start their own
  apt-get update -qq &&
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null &&
  exit 0
fi
echo "== Not installed here, so tests that need them are skipped: ${missing[*]}"
echo "   As root: apt-get install ${missing[*]}"
