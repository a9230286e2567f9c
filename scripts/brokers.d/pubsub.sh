# shellcheck shell=bash disable=SC2034
# The test server of Google's own Pub/Sub client. It keeps nothing over a restart.

fetch() { fetch_go pubsub .; }
version() { awk '$1 == "cloud.google.com/go/pubsub/v2" || $2 == "cloud.google.com/go/pubsub/v2" { print $NF }' "$HERE/pubsub/go.mod"; }
ports() { printf '%s\n' grpc; }

configure() {
  COMMAND=("$(go_dir pubsub)/pubsub" -address "127.0.0.1:$(port grpc)"
    -stream-timeout "${TRUNKLINE_BROKERS_PUBSUB_STREAM_TIMEOUT:-0s}")
}

answers() { "$(go_dir pubsub)/pubsub" -address "127.0.0.1:$(port grpc)" -ask; }

settings() {
  setting PUBSUB "127.0.0.1:$(port grpc)"
  setting PUBSUB_PROGRAM "$(go_dir pubsub)/pubsub"
  setting PUBSUB_VERSION "pstest $(version)"
}
