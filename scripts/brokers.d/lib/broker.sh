# shellcheck shell=bash disable=SC2153,SC2317 # names from scripts/brokers; functions that a broker's file calls or replaces
# One broker's life. A file brokers.d/NAME.sh defines, on the variables NAME, STATE, DIR, HERE and CACHE:
#   needs      "command package" lines: Debian's packages for commands that are missing
#   check      whether what is installed will do
#   fetch      what no package has, into the cache
#   version    the server's version
#   ports      names of its ports; the first is the one `status` shows
#   configure  writes the configuration, makes the data on the first start, sets COMMAND
#   answers    whether it answers its protocol
#   prepare    once, after it has answered for the first time
#   settings   `setting NAME VALUE` for each variable the tests read
#   before, after   other processes it needs
#   forget     removes what lies outside the state directory
# What follows are the defaults.

load() {
  # shellcheck disable=SC2034 # read by the files that are sourced here
  NAME=$1 STATE=$DIR/$1 STOP_SIGNAL=TERM COMMAND=()
  needs() { :; }
  check() { :; }
  fetch() { :; }
  prepare() { :; }
  before() { :; }
  after() { :; }
  forget() { :; }
  # shellcheck disable=SC1090 # one of the files beside this folder
  source "$HERE/$NAME.sh"
}

# with_lock NAME: one command at a time for one broker; held until this subshell ends.
with_lock() {
  mkdir -p "$DIR/locks"
  exec 9>> "$DIR/locks/$1"
  flock -w 600 9 || die "$1: another command does not end"
}

# setting NAME VALUE: one line of the environment.
setting() { printf 'export %s=%q\n' "TRUNKLINE_TEST_$1" "$2"; }

common_env() {
  printf 'export TRUNKLINE_BROKERS_DIR=%q\n' "$DIR"
  setting BROKERS "$SCRIPT"
  if [ -f "$DIR/secrets" ]; then
    setting USER "$TEST_USER"
    setting PASSWORD "$(secret password)"
    setting LIMITED_USER "$LIMITED_USER"
    setting LIMITED_PASSWORD "$(secret limited)"
    setting TLS_CA "$DIR/tls/ca.pem"
    setting TLS_OTHER_CA "$DIR/tls/other-ca.pem"
    setting TLS_CERT "$DIR/tls/client.pem"
    setting TLS_KEY "$DIR/tls/client.key"
  fi
}

up() {
  if owned server; then
    signal_all CONT server
  else
    # What a crash left behind.
    kill_tree server
    after
    mkdir -p "$STATE"
    make_secrets
    allocate_ports
    start
  fi
  await
  if [ ! -f "$STATE/prepared" ]; then
    prepare >> "$STATE/log" 2>&1 || { tail -n 10 "$STATE/log" >&2; die "$NAME: could not be set up"; }
    : > "$STATE/prepared"
  fi
  say "$NAME: $(version) answers on port $(port "$(ports | head -n 1)")"
}

start() {
  local name
  for name in $(ports); do
    ! listening "$(port "$name")" || die "$NAME: port $(port "$name") ($name) is taken by a process that is not ours"
  done
  before
  configure
  # The last run's log is kept: it tells why a server died.
  [ ! -f "$STATE/log" ] || mv "$STATE/log" "$STATE/log.old"
  spawn server "${COMMAND[@]}"
}

await() {
  local end=$((SECONDS + DEADLINE))
  until answers > /dev/null 2>&1; do
    if ! owned server; then
      tail -n 20 "$STATE/log" >&2
      die "$NAME: the server ended before it answered (see $STATE/log)"
    fi
    if [ "$SECONDS" -ge "$end" ]; then
      tail -n 20 "$STATE/log" >&2
      die "$NAME: no answer within $DEADLINE s (see $STATE/log)"
    fi
    sleep 0.1
  done
}

need_server() { owned server || die "$NAME does not run; start it with: scripts/brokers up $NAME"; }

kill_server() { need_server; kill_tree server; after; say "$NAME: killed"; }
stop_server() { need_server; signal_all STOP server; say "$NAME: stopped"; }
cont_server() { need_server; signal_all CONT server; say "$NAME: continued"; }

restart() {
  [ -f "$STATE/server.pid" ] || die "$NAME is not up; start it with: scripts/brokers up $NAME"
  kill_tree server
  after
  start
  await
  say "$NAME: restarted"
}

down() {
  [ -d "$STATE" ] || return 0
  local was=false
  if owned server; then was=true; fi
  end_tree server "$STOP_SIGNAL" 30
  after
  if $was; then say "$NAME: down"; fi
}

purge() {
  down
  if [ -d "$STATE" ]; then forget; fi
  release_ports
  rm -rf "$STATE"
}

# purge_common: what no single broker owns, once the last one is gone.
purge_common() {
  local name
  for name in "${NAMES[@]}"; do [ ! -d "$DIR/$name" ] || return 0; done
  rm -rf "$DIR/tls" "$DIR/tls.log" "$DIR/secrets" "$DIR/secrets.lock" "$DIR/locks"
  rmdir "$DIR" 2> /dev/null || true
}

status() {
  local state=down pid=null rss=0 port=null version=null first size
  if owned server; then
    pid=$PID
    if [ "$PROC_STATE" = T ]; then state=stopped; else state=running; fi
    while read -r first _; do
      if size=$(awk '/^VmRSS:/ { print $2 }' "/proc/$first/status" 2> /dev/null); then rss=$((rss + ${size:-0})); fi
    done < <(members server)
  elif [ -f "$STATE/server.pid" ]; then
    state=dead
  fi
  if [ -f "$STATE/ports" ]; then port=$(port "$(ports | head -n 1)"); version=$(version); fi
  if $1; then
    [ "$version" = null ] || version="\"$version\""
    printf '{"name":"%s","version":%s,"pid":%s,"port":%s,"state":"%s","rss":%s}\n' \
      "$NAME" "$version" "$pid" "$port" "$state" "$((rss * 1024))"
  else
    printf '%-12s %-10s %8s %6s %-8s %6s\n' "$NAME" "${version/null/-}" "${pid/null/-}" "${port/null/-}" "$state" "$((rss / 1024))"
  fi
}
