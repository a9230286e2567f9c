# shellcheck shell=bash disable=SC2034
# Redis. Two listeners: plain, where everybody may do all, and TLS, for the users.

needs() { printf 'redis-server redis-server\nredis-cli redis-tools\n'; }
check() { at_least 7.0 "$(version)" || die "redis: needs Redis 7.0 or later, not $(version)"; }
version() { redis-server --version | sed -n 's/.* v=\([0-9.]*\).*/\1/p'; }
ports() { printf '%s\n' plain secure; }

configure() {
  mkdir -p "$STATE/data"
  # appendfsync always: with everysec Redis answers before it writes while an earlier fsync still runs, and SIGKILL would lose
  # what it has confirmed.
  (umask 077 && cat > "$STATE/redis.conf") <<EOF
bind 127.0.0.1
port $(port plain)
tls-port $(port secure)
tls-cert-file $DIR/tls/server.pem
tls-key-file $DIR/tls/server.key
tls-ca-cert-file $DIR/tls/ca.pem
tls-auth-clients optional
dir $STATE/data
appendonly yes
appendfsync ${TRUNKLINE_BROKERS_REDIS_APPENDFSYNC:-always}
save ""
user $TEST_USER on >$(secret password) ~* &* +@all
user $LIMITED_USER on >$(secret limited) ~$LIMITED_USER* &$LIMITED_USER* +@read +@write +@stream +@pubsub +@connection
EOF
  COMMAND=("$(type -P redis-server)" "$STATE/redis.conf")
}

answers() {
  [ "$(timeout 5 redis-cli -h 127.0.0.1 -p "$(port plain)" ping)" = PONG ] && speaks_tls "$(port secure)"
}

settings() {
  setting REDIS "redis://127.0.0.1:$(port plain)"
  setting REDIS_TLS "rediss://127.0.0.1:$(port secure)"
  setting REDIS_VERSION "$(version)"
}
