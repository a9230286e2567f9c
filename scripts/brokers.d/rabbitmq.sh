# shellcheck shell=bash disable=SC2034
# RabbitMQ, with its own name server (epmd). Two listeners: plain and TLS, both with the same users.

RABBITMQ_BIN=/usr/lib/rabbitmq/bin
# Not in the way of a RabbitMQ that the machine may run.
RABBITMQ_NODE=trunkline@localhost

# amqp-tools are the foreign client of tests.
needs() { printf 'rabbitmqctl rabbitmq-server\namqp-get amqp-tools\n'; }
check() { [ -x "$RABBITMQ_BIN/rabbitmq-server" ] || die "rabbitmq: expected $RABBITMQ_BIN/rabbitmq-server, as Debian's package has it"; }
version() {
  local folder
  for folder in /usr/lib/rabbitmq/lib/rabbitmq_server-*; do printf '%s' "${folder##*-}"; done
}
ports() { printf '%s\n' plain secure distribution epmd; }

# What the server and rabbitmqctl have in common. Nothing listens beyond loopback, and nobody starts another epmd.
rabbitmq_environment() {
  printf '%s\n' "HOME=$STATE/home" "ERL_EPMD_PORT=$(port epmd)" ERL_EPMD_ADDRESS=127.0.0.1 "RABBITMQ_NODENAME=$RABBITMQ_NODE" \
    "RABBITMQ_CONF_ENV_FILE=$STATE/no-rabbitmq-env.conf" "RABBITMQ_ENABLED_PLUGINS_FILE=$STATE/enabled_plugins" \
    "RABBITMQ_CTL_ERL_ARGS=-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}" LANG=C.UTF-8
}

configure() {
  mkdir -p "$STATE/home" "$STATE/data" "$STATE/conf.d"
  [ -f "$STATE/home/.erlang.cookie" ] || (umask 377 && openssl rand -hex 16 > "$STATE/home/.erlang.cookie")
  printf '[].\n' > "$STATE/enabled_plugins"
  cat > "$STATE/rabbitmq.conf" <<EOF
listeners.tcp.local = 127.0.0.1:$(port plain)
listeners.ssl.local = 127.0.0.1:$(port secure)
ssl_options.cacertfile = $DIR/tls/ca.pem
ssl_options.certfile = $DIR/tls/server.pem
ssl_options.keyfile = $DIR/tls/server.key
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
load_definitions = $STATE/definitions.json
log.console = true
log.console.level = info
log.file = false
# The default, a share of the machine's memory, would let it grow by gigabytes.
vm_memory_high_watermark.absolute = 1GiB
raft.wal_max_size_bytes = 67108864
EOF
  local all='"configure": ".*", "write": ".*", "read": ".*"' vhost=trunkline
  (umask 077 && cat > "$STATE/definitions.json") <<EOF
{
  "vhosts": [{"name": "/"}, {"name": "$vhost"}],
  "users": [
    {"name": "guest", "password": "guest", "tags": "administrator"},
    {"name": "$TEST_USER", "password": "$(secret password)", "tags": ""},
    {"name": "$LIMITED_USER", "password": "$(secret limited)", "tags": ""}
  ],
  "permissions": [
    {"user": "guest", "vhost": "/", $all},
    {"user": "guest", "vhost": "$vhost", $all},
    {"user": "$TEST_USER", "vhost": "$vhost", $all},
    {"user": "$LIMITED_USER", "vhost": "$vhost", "configure": "^\$", "write": "^$LIMITED_USER.*", "read": "^$LIMITED_USER.*"}
  ]
}
EOF
  local environment
  mapfile -t environment < <(rabbitmq_environment)
  {
    # shellcheck disable=SC2016 # the PATH of whoever runs it
    printf '#!/bin/sh\nexec env -i PATH="$PATH"'
    printf " '%s'" "${environment[@]}"
    printf ' %s/rabbitmqctl "$@"\n' "$RABBITMQ_BIN"
  } > "$STATE/rabbitmqctl"
  chmod 755 "$STATE/rabbitmqctl"
  # RABBITMQ_ALLOW_INPUT makes the script exec the server, so that the recorded process is the server itself.
  COMMAND=(env "${environment[@]}" "RABBITMQ_DIST_PORT=$(port distribution)" "RABBITMQ_MNESIA_BASE=$STATE/data"
    "RABBITMQ_LOG_BASE=$STATE" RABBITMQ_LOGS=- "RABBITMQ_CONFIG_FILE=$STATE/rabbitmq.conf" "RABBITMQ_CONFIG_FILES=$STATE/conf.d"
    "RABBITMQ_ADVANCED_CONFIG_FILE=$STATE/no-advanced.config" "ERL_CRASH_DUMP=$STATE/erl_crash.dump" RABBITMQ_ALLOW_INPUT=1
    "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-noinput -start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
    "$RABBITMQ_BIN/rabbitmq-server")
}

before() { spawn epmd env ERL_EPMD_ADDRESS=127.0.0.1 epmd -port "$(port epmd)"; }
after() {
  end_tree epmd TERM 5
  # Where its epmd was killed, RabbitMQ starts another as a daemon. That one is ours if it has the environment we gave.
  local path name
  for path in /proc/[0-9]*; do
    if read -r name 2> /dev/null < "$path/comm" && [ "$name" = epmd ] && grep -zqsx "HOME=$STATE/home" "$path/environ"; then
      proc_stat "${path#/proc/}" || continue
      record epmd "${path#/proc/}"
      end_tree epmd TERM 5
    fi
  done
}

# The server's first frame: channel 0, method connection.start (10, 10).
answers() {
  local reply
  exec 7<> "/dev/tcp/127.0.0.1/$(port plain)" || return 1
  printf 'AMQP\0\0\011\001' >&7
  reply=$(timeout 5 head -c 11 <&7 | od -An -v -tx1 | tr -d ' \n')
  exec 7>&-
  [ "${reply:0:6}" = 010000 ] && [ "${reply:14:8}" = 000a000a ] && speaks_tls "$(port secure)"
}

settings() {
  setting RABBITMQ "amqp://guest:guest@127.0.0.1:$(port plain)/%2f"
  setting RABBITMQ_TLS "amqps://127.0.0.1:$(port secure)"
  setting RABBITMQ_VHOST trunkline
  setting RABBITMQCTL "$STATE/rabbitmqctl"
  setting RABBITMQ_VERSION "$(version)"
}
