# shellcheck shell=bash source-path=SCRIPTDIR
# NATS with TLS, users and passwords.

# shellcheck source=nats.sh
source "$HERE/nats.sh"

configure() {
  nats_configure <<EOF
$(nats_tls)
authorization {
  users: [
    { user: $TEST_USER, password: "$(secret password)" }
    { user: $LIMITED_USER, password: "$(secret limited)", permissions: $(nats_permissions) }
  ]
}
EOF
}

answers() {
  NATS_USER=$TEST_USER NATS_PASSWORD=$(secret password) nats_ask -url "tls://127.0.0.1:$(port client)" -ca "$DIR/tls/ca.pem"
}

settings() { setting NATS_TLS "tls://127.0.0.1:$(port client)"; }
