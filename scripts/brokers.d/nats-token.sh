# shellcheck shell=bash source-path=SCRIPTDIR
# NATS with TLS and a token.

# shellcheck source=nats.sh
source "$HERE/nats.sh"

configure() {
  nats_configure <<EOF
$(nats_tls)
authorization { token: "$(secret token)" }
EOF
}

answers() { NATS_TOKEN=$(secret token) nats_ask -url "tls://127.0.0.1:$(port client)" -ca "$DIR/tls/ca.pem"; }

settings() {
  setting NATS_TOKEN_TLS "tls://127.0.0.1:$(port client)"
  setting NATS_TOKEN "$(secret token)"
}
