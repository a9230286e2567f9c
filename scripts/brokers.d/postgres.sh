# shellcheck shell=bash disable=SC2034
# PostgreSQL. It refuses to run as root, so for root it runs as the package's user.

# Fast shutdown; SIGTERM would wait for clients.
STOP_SIGNAL=INT

postgres_bin() {
  local bin
  bin=$(printf '%s\n' /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
  [ -x "$bin/postgres" ] || bin=$(dirname "$(PATH=$SEARCH_PATH type -P postgres)")
  printf '%s' "$bin"
}

needs() {
  # Debian keeps the server off the PATH.
  compgen -G '/usr/lib/postgresql/*/bin/postgres' > /dev/null || printf 'postgres postgresql\n'
  printf 'psql postgresql-client\n'
}
check() { at_least 15 "$(version)" || die "postgres: needs PostgreSQL 15 or later, not $(version)"; }
version() { "$(postgres_bin)/postgres" --version | sed -n 's/.*) \([0-9.]*\).*/\1/p'; }
ports() { printf '%s\n' tcp; }

as_postgres() {
  if [ "$(id -u)" -eq 0 ]; then setpriv --reuid=postgres --regid=postgres --init-groups "$@"; else "$@"; fi
}

# Where its data lies: in the state directory, or where that user can reach it.
postgres_home() {
  if [ -d "$STATE/server" ] && as_postgres test -x "$STATE/server"; then printf '%s' "$STATE/server"
  else printf '/var/tmp/trunkline-postgres-%s' "$(printf '%s' "$STATE" | sha256sum | cut -c 1-12)"; fi
}

configure() {
  local home owner=()
  [ "$(id -u)" -ne 0 ] || owner=(-o postgres -g postgres)
  install -d -m 700 "${owner[@]}" "$STATE/server"
  home=$(postgres_home)
  install -d -m 700 "${owner[@]}" "$home"
  install -m 600 "${owner[@]}" "$DIR/tls/server.key" "$DIR/tls/server.pem" "$DIR/tls/ca.pem" "$home"
  if [ ! -f "$home/data/PG_VERSION" ] || [ ! -f "$STATE/initialized" ]; then
    rm -rf "$home/data"
    (cd / && as_postgres "$(postgres_bin)/initdb" -D "$home/data" -U "$TEST_USER" -A trust -E UTF8 --locale=C.UTF-8) \
      > "$STATE/initdb.log" 2>&1 || { cat "$STATE/initdb.log" >&2; die "postgres: initdb failed"; }
    : > "$STATE/initialized"
  fi
  # Nothing of ours runs, or we would not be here. While the last one is a zombie, PostgreSQL would take its pid for a server.
  rm -f "$home/data/postmaster.pid"
  COMMAND=("$(postgres_bin)/postgres" -D "$home/data" -p "$(port tcp)" -h 127.0.0.1 -k '' -c shared_buffers=32MB
    -c max_connections=200 -c ssl=on -c "ssl_cert_file=$home/server.pem" -c "ssl_key_file=$home/server.key"
    -c "ssl_ca_file=$home/ca.pem")
  if [ "$(id -u)" -eq 0 ]; then COMMAND=(setpriv --reuid=postgres --regid=postgres --init-groups "${COMMAND[@]}"); fi
}

postgres_sql() { timeout 10 psql -X -q -At -v ON_ERROR_STOP=1 -h 127.0.0.1 -p "$(port tcp)" -U "$TEST_USER" -d "$1" -c "$2"; }

answers() { [ "$(postgres_sql postgres 'select 1')" = 1 ]; }

prepare() {
  [ -n "$(postgres_sql postgres "select 1 from pg_database where datname = '$TEST_USER'")" ] ||
    postgres_sql postgres "create database $TEST_USER"
}

forget() { rm -rf "$(postgres_home)"; }

settings() {
  setting POSTGRES "postgres://$TEST_USER@127.0.0.1:$(port tcp)/$TEST_USER"
  setting POSTGRES_VERSION "$(version)"
}
