#!/bin/sh
# Draws docs/images/report.png from a demo's report: sh docs/images/make.sh RUN   (needs chromium and Pillow)
set -eu
shot=$(mktemp --suffix=.png)
chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --force-device-scale-factor=1.5 --window-size=1050,1178 \
    --screenshot="$shot" "file://$(realpath "$1")/report.html" >/dev/null 2>&1
python3 -c 'import sys; from PIL import Image; Image.open(sys.argv[1]).convert("RGB").quantize(128).save(sys.argv[2], optimize=True)' \
    "$shot" "$(dirname "$0")/report.png"
rm "$shot"
