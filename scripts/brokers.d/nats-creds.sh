# shellcheck shell=bash source-path=SCRIPTDIR
# NATS with TLS in operator mode: users are known by a credentials file.

# shellcheck source=nats.sh
source "$HERE/nats.sh"

configure() {
  if [ ! -d "$STATE/creds" ]; then
    rm -rf "$STATE/creds.new"
    mkdir -p "$STATE/creds.new"
    "$(go_dir nats)/nats" credentials -limited "$LIMITED_USER" "$STATE/creds.new"
    mv "$STATE/creds.new" "$STATE/creds"
  fi
  nats_configure <<EOF
$(nats_tls)
include creds/operator.conf
EOF
}

answers() {
  nats_ask -url "tls://127.0.0.1:$(port client)" -ca "$DIR/tls/ca.pem" -creds "$STATE/creds/trunkline.creds"
}

settings() {
  setting NATS_CREDS_TLS "tls://127.0.0.1:$(port client)"
  setting NATS_CREDS "$STATE/creds/trunkline.creds"
  setting NATS_LIMITED_CREDS "$STATE/creds/limited.creds"
}
