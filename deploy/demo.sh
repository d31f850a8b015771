#!/usr/bin/env bash
# Starts the simulator and the gateway, prints the story of the README, and stops both on Ctrl-C.
set -euo pipefail
cd "$(dirname "$0")/.."

target/debug/emporix-simulator --listen 127.0.0.1:8090 &
simulator=$!
target/debug/emporix-gateway serve --config config/demo.yaml &
gateway=$!
trap 'kill "$gateway" "$simulator" 2>/dev/null || true; wait' EXIT
trap 'exit 0' INT TERM
until (exec 3<>/dev/tcp/127.0.0.1/8080) 2>/dev/null; do
  kill -0 "$gateway" 2>/dev/null && kill -0 "$simulator" 2>/dev/null || exit 1
  sleep 0.1
done

printf '\nThe gateway: http://127.0.0.1:8080 (admin http://127.0.0.1:9090). The simulator: http://127.0.0.1:8090.\n'
printf 'Paste this into another terminal:\n\n'
sed -n '/^```sh story$/,/^```$/p' README.md | sed '/^```/d'
printf '\n'
wait -n "$gateway" "$simulator"
