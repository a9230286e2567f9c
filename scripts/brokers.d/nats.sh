# shellcheck shell=bash disable=SC2034
# NATS with JetStream, plain: everybody may do all. nats-tls, nats-token and nats-creds are the same with TLS and one way each
# to log in: a server takes only one of them.

fetch() { fetch_go nats . github.com/nats-io/nats-server/v2; }
version() { awk '$1 == "github.com/nats-io/nats-server/v2" { print substr($2, 2) }' "$HERE/nats/go.mod"; }
ports() { printf '%s\n' client; }

# nats_configure: reads more configuration from standard input.
nats_configure() {
  mkdir -p "$STATE/data"
  (umask 077 && cat > "$STATE/nats.conf") <<EOF
server_name: $NAME
listen: 127.0.0.1:$(port client)
jetstream {
  store_dir: $STATE/data
  # \`always\` syncs each write. A killed server loses nothing without it, a machine without power does.
  sync_interval: ${TRUNKLINE_BROKERS_NATS_SYNC:-2m}
}
$(cat)
EOF
  COMMAND=("$(go_dir nats)/nats-server" -c "$STATE/nats.conf")
}

# nats_tls: the TLS part of the configuration.
nats_tls() {
  printf 'tls { cert_file: %s, key_file: %s, ca_file: %s }\n' "$DIR/tls/server.pem" "$DIR/tls/server.key" "$DIR/tls/ca.pem"
}

# nats_permissions: what the limited user may: publish and consume what is there and begins with its name.
nats_permissions() {
  cat <<EOF
{
  publish: ["$LIMITED_USER.>", "\$JS.API.INFO", "\$JS.API.STREAM.INFO.*", "\$JS.API.STREAM.NAMES", "\$JS.API.CONSUMER.INFO.*.*",
    "\$JS.API.CONSUMER.MSG.NEXT.*.*", "\$JS.ACK.>"]
  subscribe: ["$LIMITED_USER.>", "_INBOX.>"]
}
EOF
}

nats_ask() { "$(go_dir nats)/nats" ask "$@"; }

configure() { nats_configure < /dev/null; }
answers() { nats_ask -url "nats://127.0.0.1:$(port client)"; }
settings() {
  setting NATS "nats://127.0.0.1:$(port client)"
  setting NATS_VERSION "$(version)"
}
